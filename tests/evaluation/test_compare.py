"""evaluation.json from stored items: planted gains, failures that count, and words that do not depend on the order."""

import json
import math
import random
import re
import subprocess
import sys

import pytest

from luthier.errors import InputError
from luthier.evaluation.compare import compare
from luthier.evaluation.scorers import score_items

ROW = {
    "name", "label", "higher_is_better", "unit", "base", "tuned", "difference", "low", "high", "p", "test", "word",
    "sentence", "items", "margin", "smallest_detectable",
}  # fmt: skip
WORDS = r"better|worse|not worse within delta|identical outputs|inconclusive: need [\d,]+ more items"


def item(row, answer, reference, *, arm="base", **more):
    return {
        "id": f"item{row:03}",
        "arm": arm,
        "row": row,
        "prompt": "",
        "reference": reference,
        "answer": answer,
        "finish": "stop",
        "prompt_tokens": 5,
        "answer_tokens": 4,
        "loss_sum": 8.0 + row % 3,
        "loss_units": 4.0,
        "probabilities": None,
        "scores": {},
        **more,
    }


def labelled(right, *, n=120, arm="base", answer="other", **more):
    """n items of three labels, of which those in `right` are answered right."""
    names = ["red", "green", "blue"]
    return [
        item(i, names[i % 3] if i in right else (names[(i + 1) % 3] if answer == "other" else answer), names[i % 3])
        | {"arm": arm, **more}
        for i in range(n)
    ]


def written(right, *, n=60, **more):
    return [
        item(i, f"answer number {i}" if i in right else "nothing at all", f"answer number {i}", **more)
        for i in range(n)
    ]


def by_name(report):
    return {row["name"]: row for row in report["metrics"]}


def test_a_planted_gain_of_k_items_is_found_exactly():
    report = compare(labelled(range(60)), labelled(range(100), arm="tuned"), task="labels")
    row = by_name(report)["accuracy"]
    assert row["difference"] == pytest.approx(40 / 120)
    assert (row["base"], row["tuned"]) == pytest.approx((0.5, 100 / 120))
    assert report["verdict"]["word"] == "better"
    assert report["verdict"]["sentence"].startswith("Accuracy rose from 0.50 to 0.83 (+0.33, 95 % interval +0.2")
    assert row["test"] == "Bonett-Price interval, exact McNemar test"
    assert set(report["improved"]) <= {f"item{i:03}" for i in range(60, 100)}
    assert len(report["improved"]) == 10
    assert report["worsened"] == []


def test_the_file_has_all_its_parts_and_is_plain_json():
    report = compare(labelled(range(60)), labelled(range(100)), task="labels", names=("small", "small-tuned"))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report) == {
        "version", "task", "primary", "margin", "confidence", "items", "clusters", "arms", "metrics", "verdict",
        "per_class", "confusion", "calibration", "improved", "worsened", "notes",
    }  # fmt: skip
    assert [row["name"] for row in report["metrics"]] == ["accuracy", "macro_f1", "loss"]
    assert all(set(row) == ROW for row in report["metrics"])
    assert report["arms"]["tuned"]["name"] == "small-tuned"
    assert (report["version"], report["items"], report["clusters"], report["margin"]) == (1, 120, None, 0.02)
    assert report["confusion"]["labels"] == ["blue", "green", "red"]
    assert sum(map(sum, report["confusion"]["base"])) == 120
    assert [entry["items"] for entry in report["per_class"]] == [40, 40, 40]


@pytest.mark.parametrize("task", ["answers", "labels", "multi_labels", "number", "text"])
@pytest.mark.parametrize("clustered", [False, True])
def test_the_same_arm_twice_is_never_better(task, clustered):
    answers = {"answers": "a b", "labels": "x", "multi_labels": ["x"], "number": 1.5, "text": None}
    references = {"answers": "a c", "labels": "y", "multi_labels": ["x", "y"], "number": 1.0, "text": ""}
    items = [item(i, answers[task], references[task]) for i in range(40)]
    clusters = {one["id"]: str(one["row"] % 7) for one in items} if clustered else None
    report = compare(items, items, task=task, clusters=clusters)
    assert {row["word"] for row in report["metrics"]} == {"identical outputs"}
    assert report["verdict"]["word"] == "identical outputs"


def test_equal_scores_of_different_answers_are_said_to_be_that():
    report = compare(written([]), [{**one, "answer": "quite wrong"} for one in written([])], task="answers")
    assert report["verdict"]["word"] == "identical outputs"
    assert "60 answers differ although every item has the same ROUGE-L." in report["notes"]


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize(("make", "task"), [(labelled, "labels"), (written, "answers")])
def test_swapping_the_arms_turns_signs_and_words_round(make, task, clustered):
    low, high = make(range(10)), make(range(50))
    clusters = {one["id"]: str(one["row"] // 2) for one in low} if clustered else None
    there = by_name(compare(low, high, task=task, clusters=clusters))
    back = by_name(compare(high, low, task=task, clusters=clusters))
    turned = {"better": "worse"}
    for name, row in there.items():
        assert back[name]["difference"] == pytest.approx(-row["difference"])
        assert (back[name]["low"], back[name]["high"]) == pytest.approx((-row["high"], -row["low"]))
        assert back[name]["word"] == turned.get(row["word"], row["word"])
    assert [row["word"] for row in there.values()].count("better") >= 2


def test_the_order_of_rows_changes_nothing():
    low, high = labelled(range(50)), labelled(range(20, 90))
    shuffled = [random.Random(i).sample(rows, len(rows)) for i, rows in enumerate((low, high))]
    clusters = {one["id"]: str(one["row"] // 3) for one in low}
    assert compare(low, high, task="labels") == compare(*shuffled, task="labels")
    assert compare(low, high, task="labels", clusters=clusters) == compare(*shuffled, task="labels", clusters=clusters)


def test_scores_that_were_stored_are_used_and_others_computed():
    low, high = written(range(10)), written(range(50))
    assert compare(score_items(low, "answers"), score_items(high, "answers"), task="answers") == compare(
        low, high, task="answers"
    )


def test_failures_count_as_zero_and_their_number_is_shown():
    tuned = written(range(60))
    for one in tuned[:30]:
        one["answer"] = "" if one["row"] % 2 else None
    for one in tuned[30:34]:
        one["finish"] = "length"
    report = compare(written(range(60)), tuned, task="answers")
    assert report["verdict"]["word"] == "worse"
    assert by_name(report)["exact_match"]["tuned"] == pytest.approx(0.5)
    assert (report["arms"]["tuned"]["empty_answers"], report["arms"]["tuned"]["cut_answers"]) == (30, 4)
    assert "4 of 60 tuned answers were cut at the length limit and scored as they stand." in report["notes"]
    assert report["worsened"][0] == "item000"


def test_labels_without_an_answer_have_a_column_of_their_own():
    report = compare(labelled(range(120)), labelled(range(60), answer=None), task="labels")
    assert report["confusion"]["labels"][-1] == "(no answer)"
    assert sum(row[-1] for row in report["confusion"]["tuned"]) == 60


def test_loss_is_summed_over_all_tokens_and_lower_is_better():
    base = [item(i, None, "", loss_sum=30.0 + i, loss_units=10.0 + i) for i in range(40)]
    tuned = [{**one, "loss_sum": one["loss_sum"] - 5 - one["row"] % 2} for one in base]
    report = compare(base, tuned, task="text")
    units = sum(one["loss_units"] for one in base)
    assert report["arms"]["base"]["metrics"]["loss"] == pytest.approx(sum(one["loss_sum"] for one in base) / units)
    assert report["arms"]["base"]["metrics"]["perplexity"] == pytest.approx(
        math.exp(report["arms"]["base"]["metrics"]["loss"])
    )
    assert report["verdict"]["word"] == "better"
    assert " fell from " in report["verdict"]["sentence"]
    assert "delta-method" in report["metrics"][0]["test"]


def test_a_loss_that_is_no_number_ends_without_a_claim():
    base = [item(i, None, "") for i in range(40)]
    tuned = [{**one, "loss_sum": math.nan if one["row"] < 2 else 1.0} for one in base]
    report = compare(base, tuned, task="text")
    assert report["verdict"]["word"] == "inconclusive: need 2 more items"
    assert "2 of 40 items have no finite score, so nothing is shown" in report["verdict"]["sentence"]
    assert report["metrics"][0]["difference"] is None
    json.dumps(report, allow_nan=False)


def test_numbers_have_a_margin_relative_to_the_bases_error():
    base = [item(i, i + 2.0, float(i)) for i in range(40)]
    tuned = [item(i, i + 0.1 * (i % 5), float(i)) for i in range(40)]
    report = compare(base, tuned, task="number")
    assert report["margin"] == pytest.approx(0.02 * 4)
    assert report["verdict"]["word"] == "better"
    assert report["arms"]["tuned"]["metrics"]["r2"] > 0.99
    perfect = compare([item(i, float(i), float(i)) for i in range(40)], tuned, task="number")
    assert perfect["margin"] > 0
    assert perfect["verdict"]["word"] == "worse"


def test_label_sets_are_judged_by_micro_f1():
    references = [["a"], ["a", "b"], ["c"], []] * 15
    base = [item(i, ["a"], r) for i, r in enumerate(references)]
    tuned = [item(i, r, r) for i, r in enumerate(references)]
    report = compare(base, tuned, task="multi_labels")
    assert report["primary"] == "micro_f1"
    assert report["verdict"]["word"] == "better"
    assert by_name(report)["micro_f1"]["base"] == pytest.approx(2 * 30 / (60 + 60))
    assert by_name(report)["exact_match"]["tuned"] == 1
    assert report["confusion"] is None
    assert report["improved"][0] in {f"item{i:03}" for i in range(60) if i % 4 in (2, 3)}


def test_groups_widen_the_interval_of_answers_that_go_together():
    low, high = labelled(range(0)), labelled(range(60), n=120)
    plain = by_name(compare(low, high, task="labels"))["accuracy"]
    report = compare(low, high, task="labels", clusters={one["id"]: str(one["row"] // 20) for one in low})
    grouped = by_name(report)["accuracy"]
    assert report["clusters"] == 6
    assert grouped["high"] - grouped["low"] > 2 * (plain["high"] - plain["low"])
    assert "in 6 groups" in report["verdict"]["sentence"]
    assert any("Fewer than 10 groups" in note for note in report["notes"])


def test_secondary_p_values_are_adjusted_and_the_primarys_is_not():
    low, high = labelled(range(60)), labelled(range(6, 72))
    alone = by_name(compare(low, high, task="labels", primary="macro_f1"))
    also = by_name(compare(low, high, task="labels"))
    assert also["accuracy"]["p"] <= alone["accuracy"]["p"]
    assert alone["macro_f1"]["p"] <= also["macro_f1"]["p"]
    assert also["macro_f1"]["low"] == alone["macro_f1"]["low"]


def test_a_better_loss_with_worse_answers_is_pointed_out():
    tuned = [{**one, "loss_sum": one["loss_sum"] - 3 - 0.01 * one["row"]} for one in written(range(10))]
    report = compare(written(range(50)), tuned, task="answers")
    assert report["verdict"]["word"] == "worse"
    assert by_name(report)["loss"]["word"] == "better"
    assert any(note.startswith("The loss improved while ROUGE-L got worse") for note in report["notes"])


def test_without_answers_the_losses_are_compared():
    base = [item(i, None, "text") for i in range(40)]
    report = compare(base, [{**one, "loss_sum": 1.0 + one["row"] % 2} for one in base], task="answers")
    assert report["primary"] == "loss"
    assert [row["name"] for row in report["metrics"]] == ["loss"]
    with pytest.raises(InputError, match="rouge_l: cannot be the primary"):
        compare(base, base, task="answers", primary="rouge_l")


def test_references_that_rouge_cannot_read_are_pointed_out():
    items = [item(i, "да", "нет, не сегодня") for i in range(40)]
    assert any("chrF is the better measure" in note for note in compare(items, items, task="answers")["notes"])


def test_calibration_of_each_arm_that_has_probabilities():
    tuned = labelled(range(90), probabilities=[0.75, 0.2, 0.05])
    report = compare(labelled(range(60)), tuned, task="labels", labels=["red", "green", "blue"])
    assert report["calibration"]["base"] is None
    found = report["calibration"]["tuned"]
    assert sum(one["items"] for one in found["bins"]) == 120
    assert found["bins"][0]["confidence"] == pytest.approx(0.75)
    assert report["confusion"]["labels"] == ["red", "green", "blue"]


@pytest.mark.parametrize("task", ["answers", "labels"])
def test_one_arm_alone_is_described_without_a_verdict(task):
    items = labelled(range(90)) if task == "labels" else written(range(50))
    report = compare(None, items, task=task)
    assert report["verdict"] is None
    assert report["arms"]["base"] is None
    row = report["metrics"][0]
    assert (row["base"], row["difference"], row["p"], row["word"]) == (None, None, None, None)
    assert row["low"] < row["tuned"] < row["high"]
    assert row["sentence"].startswith(("Accuracy is 0.75 (95 %", "ROUGE-L is 0.83 (95 %"))
    assert report["improved"] == report["worsened"] == []
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize("n", [0, 1, 2])
@pytest.mark.parametrize("task", ["answers", "labels", "multi_labels", "number", "text"])
def test_hardly_any_items_give_a_word_and_no_crash(task, n):
    pairs = {
        "answers": ("a", "b"),
        "labels": ("a", "b"),
        "multi_labels": (["a"], ["b"]),
        "number": (1.0, 2.0),
        "text": (None, ""),
    }
    answer, reference = pairs[task]
    base = [item(i, answer, reference) for i in range(n)]
    tuned = [item(i, reference if task != "text" else None, reference, loss_sum=1.0) for i in range(n)]
    for report in (compare(base, tuned, task=task), compare(None, tuned, task=task)):
        json.dumps(report, allow_nan=False)
        assert all(row["word"] is None or re.fullmatch(WORDS, row["word"]) for row in report["metrics"])
    if n < 2:
        assert compare(base, tuned, task=task)["verdict"]["word"] != "better"


def test_arms_that_do_not_belong_together_are_refused():
    items = labelled(range(60))
    with pytest.raises(InputError, match="not asked the same items"):
        compare(items, items[:-1], task="labels")
    with pytest.raises(InputError, match="answered twice"):
        compare(items, [*items, items[0]], task="labels")
    with pytest.raises(InputError, match="different references"):
        compare(items, [{**one, "reference": "red"} for one in items], task="labels")
    with pytest.raises(InputError, match="no group"):
        compare(items, items, task="labels", clusters={"item000": "a"})


def test_nothing_here_loads_torch():
    code = "import sys, luthier.evaluation.compare; print(sorted({'torch', 'nltk', 'sacrebleu'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
