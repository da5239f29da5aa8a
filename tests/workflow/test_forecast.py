"""What a run will take: counted as the source counts, fitted to the memory there is, and told against fact."""

import dataclasses
import json

import pytest

from luthier.cli import main
from luthier.data.source import EpochSource
from luthier.data.tokens import open_store
from luthier.models.shape import read_shape
from luthier.runs.record import read_record
from luthier.runs.wording import expectation
from luthier.workflow import forecast as stage
from luthier.workflow.prepare import check, prepare
from luthier.workflow.probe import cached, probe
from luthier.workflow.tune import tune
from tests.chain import ROWS, recipe, write_rows


@pytest.fixture
def prepared(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", ROWS["supervised"](40))
    return prepare(recipe(saved_tiny("llama"), data, training={"microbatch_tokens": 96, "epochs": 2}), tmp_path / "run")


def test_counts_are_those_of_the_source(prepared, tmp_path):
    training = prepared.recipe.training
    work = stage.work_of(prepared.recipe, read_shape(prepared.origin), tmp_path / "run" / "data")
    source = EpochSource(
        open_store(tmp_path / "run" / "data" / "train"), batch_examples=training.batch_examples,
        microbatch_tokens=96, epochs=2, seed=training.seed, max_steps=training.max_steps, share=True,
    )  # fmt: skip
    batches = [batch for n in range(len(source)) for batch in source.step(n)]
    assert work.steps == len(source)
    assert work.tokens == sum(batch.plain_tokens for batch in batches)
    assert [row.tokens for row in work.train.rows] == [batch.tokens for batch in batches]
    assert work.train.tokens == sum(batch.tokens for batch in batches)
    assert work.largest.tokens == max(batch.tokens for batch in batches)


def test_what_is_left_open_is_filled_in(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", ROWS["supervised"](40))
    found = check(recipe(saved_tiny("llama"), data, training={"microbatch_tokens": None}))
    assert found.recipe.training.microbatch_tokens == 2048
    assert found.recipe.training.recompute is False
    assert {d.key for d in found.derived} >= {"training.microbatch_tokens", "training.recompute"}
    assert found.estimate["memory_bytes"] == max(found.estimate["phases"].values())


def test_a_small_machine_recomputes_before_it_computes_less_at_once(prepared, tmp_path):
    data, shape = tmp_path / "run" / "data", read_shape(prepared.origin)
    open_ = prepared.recipe.training.model_copy(update={"microbatch_tokens": None, "recompute": "auto"})
    asked = prepared.recipe.model_copy(update={"training": open_})
    sizes = stage.sizes_of(asked, shape, prepared.origin)
    work = stage.work_of(asked, shape, data)
    whole, less = (stage._memory(asked, sizes, work, None, recompute=r).train for r in (False, True))
    assert less < whole
    plenty, short, none = (
        stage.fit(asked, prepared.origin, data, free=n / stage.RESERVE + 1) for n in (whole, less, 1)
    )
    assert (plenty.recompute, plenty.microbatch_tokens) == (False, 2048)
    assert (short.recompute, short.microbatch_tokens) == (True, 2048)
    longest = int(open_store(data / "train").lengths.max())
    assert (none.recompute, none.microbatch_tokens) == (True, longest)


def test_a_probe_is_kept_and_foretells_time(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    assert cached(prepared.recipe, prepared.origin) is None
    measured = probe(prepared.recipe, prepared.origin)
    assert sum(dataclasses.astuple(measured.both)) > 0
    assert cached(prepared.recipe, prepared.origin) == measured
    told = stage.forecast(prepared.recipe, prepared.origin, tmp_path / "run" / "data", speed=measured)
    assert told.seconds is not None
    assert 0 < told.seconds.train < told.seconds.total


def test_every_run_tells_what_was_foretold(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", ROWS["supervised"](40))
    record = read_record(tune(recipe(saved_tiny("llama"), data, training={"max_steps": 6}), tmp_path / "run"))
    finished = record.last("finished")
    told = record.last("forecast")
    assert finished["expected"]["memory_bytes"] == told["memory_bytes"]
    assert finished["expected"]["by"] == "first steps"
    assert told["steps"] == 6
    assert [what for what, _ in expectation(finished)] == ["memory", "training"]
    assert "foretold" in record.run.report.read_text(encoding="utf-8")


@pytest.mark.slow
def test_plan_prints_phases_and_what_else_could_be_set(saved_tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    data = write_rows(tmp_path / "rows.jsonl", ROWS["supervised"](40))
    words = ["plan", "--model", str(saved_tiny("llama")), "--data", str(data), "-o", "training.max_length=512"]
    assert main([*words, "--price-per-hour", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["cost"] == pytest.approx(2 * found["estimate"]["seconds"] / 3600, rel=0.05)
    assert {option["key"] for option in found["options"]} >= {"training.recompute", "adapter.rank"}
    assert main(words) == 0
    out = capsys.readouterr().out
    for phrase in ("compare with the base", "training.recompute: yes", "of memory"):
        assert phrase in out
