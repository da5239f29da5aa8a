"""Each measure on answers that a person can check."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import InputError
from luthier.evaluation import scorers as s

TEXT_MEASURES = [s.exact_match, s.token_f1, s.rouge_l, s.chrf]


def item(answer, reference, **more):
    return {"id": "a", "arm": "base", "row": 0, "reference": reference, "answer": answer, **more}


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Paris", "paris."),
        ("  The   Eiffel\nTower ", "the eiffel tower"),
        ("“Yes”", "yes!"),
        ("ＡＢＣ", "abc"),
        ("**42**", "42"),
        ("(b)", "B"),
        ("Straße", "STRASSE"),
        ("はい。", "はい"),
    ],
)
def test_exact_match_ignores_how_it_is_written(answer, reference):
    assert s.exact_match(answer, reference) == 1


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("-5", "5"),
        (".5", "5"),
        ("5 %", "5"),
        ("$5", "5"),
        ("no", "not"),
        ("a b", "ab"),
        ("", ""),
        ("...", ""),
        ("<5", "5"),
    ],
)
def test_exact_match_keeps_what_carries_meaning(answer, reference):
    assert s.exact_match(answer, reference) == 0


def test_token_f1_counts_each_word_as_often_as_it_stands():
    # shared: the, cat -> precision 2/4, recall 2/3
    assert s.token_f1("The the cat ran", "the cat sat") == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert s.token_f1("cat, the!", "The cat") == 1
    assert s.token_f1("dog", "cat") == 0
    assert s.token_f1("東京都", "京都") == pytest.approx(2 * 2 / 5)


def test_rouge_l_is_the_longest_common_subsequence_of_stems():
    # cats sit -> cat sit; subsequence "the cat sit" of 3 in 3 and 5 words
    assert s.rouge_l("the cats sit", "the cat that I sit") == pytest.approx(2 * 3 / (3 + 5))
    assert s.rouge_l("running fast", "run fast") == 1


def test_chrf_is_sacrebleus():
    from sacrebleu import sentence_chrf

    pair = ("the cat sat on a mat", "the cat is on the mat")
    assert s.chrf(*pair) == pytest.approx(sentence_chrf(pair[0], [pair[1]]).score)
    assert s.chrf(pair[0], pair[0]) == pytest.approx(100)


@pytest.mark.parametrize("measure", TEXT_MEASURES)
@pytest.mark.parametrize("answer", ["", "  \n", "\u3000"])
def test_an_empty_answer_scores_zero(measure, answer):
    assert measure(answer, "the cat") == 0
    assert measure(answer, "") == 0


@settings(deadline=None)
@given(answer=st.text(max_size=30), reference=st.text(max_size=30))
def test_scores_stay_in_their_range(answer, reference):
    for measure in TEXT_MEASURES:
        assert 0 <= measure(answer, reference) <= (100 + 1e-9 if measure is s.chrf else 1)


def test_the_nearest_of_several_references_counts():
    found = s.score_items([item("yes", ["no", "Yes."])], "answers")[0]["scores"]
    assert found["exact_match"] == 1


@pytest.mark.parametrize("task", ["answers", "labels", "multi_labels"])
def test_no_answer_scores_zero(task):
    found = s.score_items([item(None, "x")], task)[0]["scores"]
    assert found
    assert set(found.values()) == {0.0}


def test_a_number_without_an_answer_has_no_worst_score():
    assert s.score_items([item(None, 1.0)], "number")[0]["scores"] == {"squared_error": None, "absolute_error": None}


def test_scoring_leaves_its_items_as_they_are_and_gives_plain_json():
    items = [
        item(1e200, -1e200, loss_sum=math.inf, loss_units=1.0),
        item(2.0, 0.5, loss_sum=3.0, loss_units=2.0),
    ]
    scored = s.score_items(items, "number")
    assert "scores" not in items[0]
    assert scored[0]["scores"] == {"squared_error": None, "absolute_error": 2e200, "loss": None}
    assert scored[1]["scores"] == {"squared_error": 2.25, "absolute_error": 1.5, "loss": 1.5}
    json.dumps([one["scores"] for one in scored], allow_nan=False)


def test_text_has_its_loss_only():
    assert s.score_items([item(None, "", loss_sum=6.0, loss_units=4.0)], "text")[0]["scores"] == {"loss": 1.5}


def test_label_sets():
    scores = s.score_items([item(["b", "a"], ["a", "b"]), item(["a"], ["a", "b"]), item([], [])], "multi_labels")
    assert [one["scores"]["exact_match"] for one in scores] == [1, 0, 1]
    assert [one["scores"]["set_f1"] for one in scores] == pytest.approx([1, 2 / 3, 1])


THREE = [item("a", "a"), item("b", "a"), item("b", "b"), item("c", "b")]


def corpus(items, metric, labels):
    return float(metric(s.label_counts(items, labels).sum(axis=0)[None])[0])


def test_macro_f1_by_hand_leaves_out_labels_that_never_occur():
    # a: 2*1/(2+1); b: 2*1/(2+2); c: predicted once, never right: 0; d: never seen
    assert corpus(THREE, s.macro_f1, ["a", "b", "c", "d"]) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_micro_f1_of_single_labels_is_accuracy():
    assert corpus(THREE, s.micro_f1, ["a", "b", "c"]) == pytest.approx(0.5)


def test_micro_f1_of_label_sets_by_hand():
    items = [item(["a", "b"], ["a"]), item([], ["b", "c"]), item(["c"], ["c"])]
    assert corpus(items, s.micro_f1, ["a", "b", "c"]) == pytest.approx(2 * 2 / (4 + 3))


def test_nothing_wanted_and_nothing_given_is_right():
    assert corpus([item([], [])], s.micro_f1, ["a"]) == 1
    assert corpus([item([], [])], s.macro_f1, ["a"]) == 1


def test_precision_and_recall_of_each_label():
    a, b, c, d = s.per_label(THREE, ["a", "b", "c", "d"])
    assert a == pytest.approx((1, 1 / 2, 2 / 3))
    assert b == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert c == (0, None, 0)
    assert d == (None, None, None)


def test_confusion_counts_references_by_answers():
    table = s.confusion([*THREE, item(None, "a")], ["a", "b", "c", s.NO_ANSWER])
    assert table == [[1, 1, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_loss_is_summed_over_tokens_and_not_averaged_over_items():
    items = [item(None, "", loss_sum=10.0, loss_units=10.0), item(None, "", loss_sum=4.0, loss_units=1.0)]
    assert s.mean_loss(items) == pytest.approx(14 / 11)
    assert s.perplexity(s.mean_loss(items)) == pytest.approx(math.exp(14 / 11))
    assert s.perplexity(1e4) == math.inf
    assert math.isnan(s.mean_loss([]))


def test_r_squared():
    assert s.r_squared([item(1.0, 1.0), item(2.0, 3.0)]) == pytest.approx(1 - 1 / 2)
    assert math.isnan(s.r_squared([item(1.0, 2.0), item(1.0, 2.0)]))
    assert math.isnan(s.r_squared([]))


def test_calibration_error_by_hand():
    # two bins of two: |0.5 - 1/2|... (0.4 + 0.6) / 2 against 1/2, and 0.9 against 1/2
    found = s.calibration([0.4, 0.9, 0.6, 0.9], [1, 0, 0, 1], bins=2)
    assert found.ece == pytest.approx((0 + 2 * 0.4) / 4)
    assert found.bins == (pytest.approx((0.5, 0.5, 2)), pytest.approx((0.9, 0.5, 2)))


def test_a_calibrated_model_shows_the_error_that_is_expected_of_one():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.3, 1, 600)
    found = s.calibration(confidence, rng.random(600) < confidence)
    assert len(found.bins) == 15
    assert {one.items for one in found.bins} == {40}
    assert found.ece == pytest.approx(found.ece_if_calibrated, abs=0.03)
    assert found.ece_if_calibrated > 0.02
    too_sure = s.calibration(np.full(600, 0.99), rng.random(600) < 0.6)
    assert too_sure.ece > 0.3 > too_sure.ece_if_calibrated
    assert s.calibration(confidence, np.ones(600)) == s.calibration(confidence, np.ones(600))


def test_calibration_of_odd_input():
    assert s.calibration([], []).bins == ()
    assert s.calibration([math.nan], [1]).bins == ()
    assert s.calibration([0.8], [1]).ece == pytest.approx(0.2)


def test_the_table_names_every_measure_of_every_task():
    for task in s.TASKS.values():
        for name in (task.primary, *task.others):
            scorer = s.SCORERS[name]
            assert scorer.name == name
            assert (name in task.items) == (scorer.kind in ("binary", "mean"))


def test_the_recipe_knows_the_same_measures():
    from typing import get_args

    from luthier.recipe.evaluation import Metric

    assert set(get_args(Metric)) <= set(s.SCORERS)


def test_an_unknown_task_is_refused():
    with pytest.raises(InputError, match="no such task"):
        s.known_task("poetry")
