"""Evaluation by itself, and talking to a tuned model."""

import json

import pytest

from luthier.errors import DataError, InputError
from luthier.models import adapters
from luthier.runs.folder import read_json
from luthier.workflow.chat import load, open_chat
from luthier.workflow.evaluate import evaluate
from luthier.workflow.tune import tune
from tests.chain import ROWS, conversations, labelled, recipe, write_rows

KINDS = {
    "answers": ("llama", "supervised", {}),
    "answers in full": ("llama", "supervised", {"adapter": {"kind": "full"}}),
    "text": ("llama", "text", {}),
    "labels": ("bert", "classify", {}),
    "labels, LoRA": ("llama", "classify", {"adapter": {"kind": "lora", "rank": 4}}),
    "several labels": ("bert", "classify_multi", {}),
    "numbers": ("modernbert", "regress", {}),
}


@pytest.fixture(scope="module")
def tuned(saved_tiny, tmp_path_factory):
    """`tuned(kind)`: a finished run, made once."""
    made = {}

    def make(kind):
        if kind not in made:
            family, objective, sections = KINDS[kind]
            place = tmp_path_factory.mktemp("evaluated")
            data = write_rows(place / "rows.jsonl", ROWS[objective](40))
            made[kind] = tune(recipe(saved_tiny(family), data, **sections), place / "run")
        return made[kind]

    return make


def held_back(run, tmp_path, objective):
    """The run's own test rows as a file."""
    rows = ROWS[objective](40)
    kept = {json.loads(line)["row"] for line in run.predictions.read_text().splitlines()}
    return write_rows(tmp_path / "test.jsonl", [rows[i] for i in sorted(kept)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_rows_of_the_run_give_the_figures_of_the_run(tuned, tmp_path, kind):
    run = tuned(kind)
    own = read_json(run.evaluation)
    data = held_back(run, tmp_path, KINDS[kind][1])
    found = evaluate(str(run.root), [str(data)], against="base", out=tmp_path / "out")
    assert found["items"] == own["items"]
    assert found["primary"] == own["primary"]
    for ours, theirs in zip(found["metrics"], own["metrics"], strict=True):
        for arm in ("base", "tuned"):
            assert ours[arm] == pytest.approx(theirs[arm], rel=1e-6), (ours["name"], arm)
    assert found["verdict"]["word"] == own["verdict"]["word"]
    assert read_json(tmp_path / "out" / "evaluation.json") == found
    written = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert len(written) == 2 * found["items"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_arm_alone_has_values_and_no_verdict(tuned, tmp_path, kind):
    run = tuned(kind)
    found = evaluate(str(run.root), [str(held_back(run, tmp_path, KINDS[kind][1]))])
    assert found["verdict"] is None
    assert found["arms"]["base"] is None
    tuned_figures = {m["name"]: m["tuned"] for m in read_json(run.evaluation)["metrics"]}
    for metric in found["metrics"]:
        assert metric["tuned"] == pytest.approx(tuned_figures[metric["name"]], rel=1e-6)


def test_a_model_that_was_never_tuned_is_evaluated(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(6))
    found = evaluate(
        str(saved_tiny("llama")), [str(data)], overrides=["evaluation.max_new_tokens=4", "training.threads=1"]
    )
    assert found["items"] == 6
    assert found["task"] == "answers"


@pytest.mark.parametrize("kind", ["answers", "answers in full", "labels"])
def test_a_packaged_model_is_evaluated_without_its_run(tuned, tmp_path, kind):
    run = tuned(kind)
    data = held_back(run, tmp_path, KINDS[kind][1])
    overrides = ["evaluation.max_new_tokens=8", "training.threads=1", "model.precision=fp32"]
    found = evaluate(str(run.model), [str(data)], overrides=overrides)
    expected = {m["name"]: m["tuned"] for m in read_json(run.evaluation)["metrics"]}
    assert {m["name"]: m["tuned"] for m in found["metrics"]} == pytest.approx(expected, rel=1e-6)


def test_two_runs_are_compared(tuned, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(50)[40:])
    full, lora = tuned("answers in full"), tuned("answers")
    found = evaluate(str(full.root), [str(data)], against=str(lora.root))
    back = evaluate(str(lora.root), [str(data)], against=str(full.root))
    loss = next(m for m in found["metrics"] if m["name"] == "loss")
    other = next(m for m in back["metrics"] if m["name"] == "loss")
    assert (loss["base"], loss["tuned"]) == pytest.approx((other["tuned"], other["base"]), rel=1e-6)


def test_one_row_is_enough(tuned, tmp_path):
    data = write_rows(tmp_path / "one.jsonl", conversations(50)[49:])
    assert evaluate(str(tuned("answers").root), [str(data)], against="base")["items"] == 1


def test_labels_that_the_model_does_not_know_are_refused(tuned, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [{**row, "label": "odd"} for row in labelled(6)])
    with pytest.raises(DataError, match="label"):
        evaluate(str(tuned("labels").root), [str(data)])


def test_rows_of_one_label_are_enough_to_evaluate_on(tuned, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", [row for row in labelled(12) if row["label"] == "soft"])
    found = evaluate(str(tuned("labels").root), [str(data)], against="base")
    assert found["items"] == 6


def test_a_folder_with_something_in_it_is_left_alone(tuned, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(6))
    with pytest.raises(InputError, match="not empty"):
        evaluate(str(tuned("answers").root), [str(data)], out=tmp_path)


# Chat


def test_the_chat_writes_what_the_evaluation_wrote(tuned):
    run = tuned("answers")
    speakers = open_chat(str(run.root), against="base")
    assert [s.name for s in speakers] == ["base", str(run.root)]
    rows = [json.loads(line) for line in run.predictions.read_text().splitlines()]
    for speaker, arm in zip(speakers, ("base", "tuned"), strict=True):
        item = next(row for row in rows if row["arm"] == arm)
        short = type(speaker)(speaker.name, speaker.policy, speaker.tokenizer, max_new_tokens=8)
        assert short.answer(item["prompt"]) == item["answer"]


def test_the_chat_shows_text_as_it_appears(tuned):
    speaker = load(tuned("answers").root)
    pieces = []
    answer = speaker.answer("Which wood for the top, number 0?", on_text=pieces.append)
    assert "".join(pieces).strip().startswith(answer.rstrip("\ufffd"))
    assert any(True for _ in adapters.lora_layers(speaker.model))


@pytest.mark.parametrize("place", ["run", "model", "base"])
def test_runs_packaged_models_and_bases_are_opened(tuned, saved_tiny, place):
    run = tuned("answers")
    target = {"run": run.root, "model": run.model, "base": saved_tiny("llama")}[place]
    assert isinstance(load(target).answer([{"role": "user", "content": "Which wood?"}]), str)


def test_a_model_that_gives_labels_does_not_chat(tuned):
    with pytest.raises(InputError, match="does not chat"):
        open_chat(str(tuned("labels").root))


def test_a_conversation_longer_than_the_model_reads_is_refused(tuned):
    with pytest.raises(InputError, match="longer than the model can read"):
        load(tuned("answers").root).answer("Which wood? " * 400)
