"""What a run takes over from an earlier one, what it computes once, and that neither changes a result."""

import json
import os
import shutil
import stat

import pytest
from safetensors.torch import load_file

from luthier import cache
from luthier.errors import Interrupted
from luthier.runs.folder import read_json
from luthier.workflow.prepare import prepare
from luthier.workflow.tune import resume, tune
from tests.chain import ROWS, conversations, events, labelled, losses, recipe, write_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def said(run):
    """What is said of the rows, without the times and where they came from."""
    return [
        {key: value for key, value in event.items() if key not in ("time", "taken_from")}
        for event in events(run)
        if event["event"] in ("derived", "finding", "prepared")
    ]


@pytest.fixture
def past(tmp_path):
    return tmp_path / "cache" / "past"


# Rows and tokens


@pytest.mark.parametrize(
    ("family", "objective"), [("llama", "supervised"), ("gpt2", "text"), ("bert", "classify_multi")]
)
def test_a_second_run_with_another_rate_takes_rows_and_tokens_from_the_first(
    saved_tiny, tmp_path, past, family, objective
):
    data = write_rows(tmp_path / "rows.jsonl", ROWS[objective](40))
    settings = {"evaluation": {"enabled": False}, "training": {"rate": 3e-3}}
    first = tune(recipe(saved_tiny(family), data, evaluation={"enabled": False}), tmp_path / "first", past=past)
    heard = []
    second = tune(recipe(saved_tiny(family), data, **settings), tmp_path / "second", past=past, tell=heard.append)
    alone = tune(recipe(saved_tiny(family), data, **settings), tmp_path / "alone")

    assert {event["taken_from"] for event in events(first, "prepared")} == {None}
    assert {event["taken_from"] for event in events(second, "prepared")} == {str(first.root)}
    assert events(second, "finished")[0]["saved"]["tokens"] == str(first.root)
    assert not any(event.get("what", "").startswith(("reading", "rendering")) for event in heard)
    assert files(second.root / "data") == files(first.root / "data")
    assert said(second) == said(alone)
    assert losses(second) == losses(alone) != losses(first)
    assert read_json(second.manifest)["data"] == read_json(alone.manifest)["data"]
    for name, value in load_file(next(alone.model.glob("*.safetensors"))).items():
        assert value.equal(load_file(next(second.model.glob("*.safetensors")))[name])


CHANGES = {
    "a row": lambda rows, sections: rows.append(conversations(41)[40]),
    "one letter of a row": lambda rows, sections: rows[3]["messages"][1].update(content="Spruce"),
    "the split": lambda rows, sections: sections.update(data={"split": {"validation": 0.3, "test": 0.1}}),
    "the longest example": lambda rows, sections: sections.update(training={"max_length": 300}),
    "the template": lambda rows, sections: sections["model"].update(template="plain"),
    "what is learnt": lambda rows, sections: sections.update(objective={"kind": "supervised", "turns": "last"}),
    "a system message": lambda rows, sections: sections.update(data={"system": "Answer shortly."}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_preparation_is_made_anew(saved_tiny, tmp_path, past, what):
    rows, sections = conversations(40), {"model": {}}
    place = tmp_path / "rows.jsonl"
    first = tmp_path / "first"
    kept = prepare(recipe(saved_tiny("llama"), write_rows(place, rows)), first, past=past)
    cache.remember(past, "prepared", kept.key, first / "data" / "prepared.json")
    assert prepare(recipe(saved_tiny("llama"), place), tmp_path / "same", past=past).taken_from == first
    CHANGES[what](rows, sections)
    write_rows(place, rows)
    changed = prepare(recipe(saved_tiny("llama"), place, **sections), tmp_path / "changed", past=past)
    assert changed.taken_from is None
    assert changed.key != kept.key


def test_a_run_that_was_deleted_or_changed_gives_nothing(saved_tiny, tmp_path, past):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    wanted = recipe(saved_tiny("llama"), data)

    def prepared(name):
        found = prepare(wanted, tmp_path / name, past=past)
        cache.remember(past, "prepared", found.key, tmp_path / name / "data" / "prepared.json")
        return found.taken_from

    assert prepared("first") is None
    tokens = tmp_path / "first" / "data" / "train" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-4] + b"\0\0\0\0")
    assert prepared("second") is None
    assert prepared("third") == tmp_path / "second"
    shutil.rmtree(tmp_path / "third")
    assert prepared("fourth") is None
    assert not list(tmp_path.rglob(".*.partial"))


def test_the_taken_rows_outlive_the_run_that_they_came_from(saved_tiny, tmp_path, past):
    data = write_rows(tmp_path / "rows.jsonl", labelled(40))
    first = tune(recipe(saved_tiny("bert"), data), tmp_path / "first", past=past)
    before = files(first.root / "data")
    second = tune(recipe(saved_tiny("bert"), data), tmp_path / "second", past=past)
    shutil.rmtree(first.root)
    assert files(second.root / "data") == before


def test_rows_from_a_pipe_are_read_and_not_looked_up(saved_tiny, tmp_path, past):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    if os.fork() == 0:
        pipe.write_bytes(data.read_bytes())
        os._exit(0)
    found = prepare(recipe(saved_tiny("llama"), pipe), tmp_path / "run", past=past)
    os.wait()
    assert found.key is None
    assert found.sides["train"].sequences > 20


# The base's answers


@pytest.mark.parametrize(
    ("family", "objective", "adapter"),
    [
        ("llama", "supervised", {"kind": "lora", "rank": 4}),
        ("gpt2", "text", {"kind": "lora", "rank": 4}),
        ("bert", "classify", {"kind": "full"}),
    ],
)
def test_the_base_is_asked_once(saved_tiny, tmp_path, past, family, objective, adapter):
    data = write_rows(tmp_path / "rows.jsonl", ROWS[objective](40))

    def run(name, rate, past):
        heard = []
        wanted = recipe(saved_tiny(family), data, adapter=adapter, training={"rate": rate})
        return tune(wanted, tmp_path / name, past=past, tell=heard.append), heard

    first, _ = run("first", 1e-2, past)
    second, heard = run("second", 3e-3, past)
    alone, _ = run("alone", 3e-3, None)
    assert second.predictions.read_bytes() == alone.predictions.read_bytes()
    ours, theirs = read_json(second.evaluation), read_json(alone.evaluation)
    assert ours["metrics"] == theirs["metrics"]
    assert [note for note in ours["notes"] if note not in theirs["notes"]] == [
        "the base's answers are those of the run first, which asked the same base the same rows"
    ]
    assert not any(event.get("what") == "answers of base" for event in heard)
    assert events(first, "evaluated")[0]["base_from"] is None
    assert events(second, "finished")[0]["saved"]["reference"] == str(first.root)


def test_predictions_that_were_changed_are_not_taken_over(saved_tiny, tmp_path, past):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    first = tune(recipe(saved_tiny("llama"), data), tmp_path / "first", past=past)
    first.predictions.write_text(first.predictions.read_text().replace('"loss_sum": ', '"loss_sum": 1'))
    second = tune(recipe(saved_tiny("llama"), data), tmp_path / "second", past=past)
    assert events(second, "evaluated")[0]["base_from"] is None


@pytest.mark.parametrize("change", [{"max_new_tokens": 5}, {"limit": 3}, {"generate": False}])
def test_another_question_is_asked_anew(saved_tiny, tmp_path, past, change):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    tune(recipe(saved_tiny("llama"), data), tmp_path / "first", past=past)
    second = tune(recipe(saved_tiny("llama"), data, evaluation=change), tmp_path / "second", past=past)
    assert events(second, "evaluated")[0]["base_from"] is None
    assert events(second, "prepared")[0]["taken_from"] is not None
    # The losses of the same rows are known all the same, to the bit.
    alone = tune(recipe(saved_tiny("llama"), data, evaluation=change), tmp_path / "alone")
    assert second.predictions.read_bytes() == alone.predictions.read_bytes()
    assert (second.side("test") / "reference.npy").exists() == ("limit" in change)


# What lies in the cache


def test_the_cache_holds_paths_and_hashes_and_nobody_elses_rows(saved_tiny, tmp_path, past):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    tune(recipe(saved_tiny("llama"), data), tmp_path / "first", past=past)
    notes = [path for path in past.rglob("*") if path.is_file()]
    assert sorted(path.parent.name for path in notes) == ["base", "gate", "prepared", "reference"]
    for note in notes:
        assert sorted(json.loads(note.read_text())) == ["file", "sha256"]
    assert stat.S_IMODE(past.stat().st_mode) == 0o700


def test_the_environment_says_where_it_lies_and_whether_it_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    monkeypatch.delenv("LUTHIER_REUSE")
    assert cache.past() == tmp_path / "past"
    monkeypatch.setenv("LUTHIER_REUSE", "0")
    assert cache.past() is None


# Frozen layers


CASES = {
    "answers": ("llama", "supervised", {"kind": "lora", "rank": 4, "layers": [1]}, 1),
    "answers, the upper layer in full": ("llama-untied", "supervised", {"kind": "full", "freeze_layers": 1}, 1),
    "labels, the head alone": ("modernbert", "classify", {"kind": "full", "freeze_layers": 2}, 2),
    "labels, BERT's head alone": ("bert", "classify", {"kind": "full", "freeze_layers": 2}, 2),
}


@pytest.mark.parametrize("case", CASES)
def test_frozen_layers_are_computed_once_and_give_the_same_run(saved_tiny, tmp_path, case):
    family, objective, adapter, layers = CASES[case]
    data = write_rows(tmp_path / "rows.jsonl", ROWS[objective](40))
    training = {"max_steps": 16, "validate_every": 4, "checkpoint_every": 4, "rate": 3e-3}
    heard = []
    run = tune(
        recipe(saved_tiny(family), data, adapter=adapter, training=training), tmp_path / "run", tell=heard.append
    )
    # With one pass only, every layer is run for every row.
    once = {**training, "max_steps": 7}
    plain = tune(recipe(saved_tiny(family), data, adapter=adapter, training=once), tmp_path / "plain")
    assert events(run, "started")[0]["saved"]["frozen_layers"] == layers
    assert events(plain, "started")[0]["saved"]["frozen_layers"] == 0
    assert any("computed once" in note for note in events(run, "started")[0]["notes"])
    assert any("read once only" in note for note in events(plain, "started")[0]["notes"])
    assert events(run, "finished")[0]["saved"]["frozen_layers"] == layers
    assert any(event.get("what") == "frozen layers, computed once" for event in heard)
    assert not run.frozen.exists()
    ours, theirs = losses(run), losses(plain)
    assert ours[0][1:] == pytest.approx(theirs[0][1:], rel=1e-4)


def test_a_run_that_is_stopped_in_the_middle_finds_its_states_again(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    adapter = {"kind": "lora", "rank": 4, "layers": [1]}
    wanted = recipe(saved_tiny("llama"), data, adapter=adapter, training={"max_steps": 16})
    whole = tune(wanted, tmp_path / "whole")

    def stop(event):
        if event["event"] == "step" and event["step"] == 9:
            signal_itself()

    with pytest.raises(Interrupted):
        tune(wanted, tmp_path / "run", tell=stop)
    kept = sorted((tmp_path / "run" / "frozen").iterdir())
    assert [path.name.partition("-")[0] for path in kept] == ["train", "validation"]
    written = [path.stat().st_mtime_ns for path in kept]
    seen = []

    def look(event):
        if event["event"] == "step":
            seen.append([path.stat().st_mtime_ns for path in kept])

    run = resume(tmp_path / "run", tell=look)
    assert seen[0] == written
    assert losses(run) == losses(whole)
    assert not run.frozen.exists()
    weights = [load_file(r.model / "adapter_model.safetensors") for r in (run, whole)]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


def signal_itself():
    import signal

    os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_before_the_first_step_is_heeded_and_resumed(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    adapter = {"kind": "lora", "rank": 4, "layers": [1]}
    wanted = recipe(saved_tiny("llama"), data, adapter=adapter, training={"max_steps": 16, "microbatch_tokens": 100})
    heard = []

    def stop(event):
        heard.append(event["event"])
        if event.get("what") == "frozen layers, computed once" and event["done"]:
            signal_itself()

    with pytest.raises(Interrupted, match="saved"):
        tune(wanted, tmp_path / "run", tell=stop)
    assert "step" not in heard
    whole = tune(wanted, tmp_path / "whole")
    assert losses(resume(tmp_path / "run")) == losses(whole)
