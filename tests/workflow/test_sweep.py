"""`tune --sweep` from rows to the chosen run: arms as they are alone, the choice, what is said of it, resume."""

import json
import os
import re
import signal

import pytest
import torch
from safetensors.torch import load_file

from luthier.errors import InputError, NotFinite, RecipeError
from luthier.recipe.load import dump, load
from luthier.recipe.sweep import axes
from luthier.runs.folder import RunFolder, read_json
from luthier.workflow.sweep import sweep
from luthier.workflow.tune import resume, tune
from tests.chain import conversations, events, labelled, losses, recipe, write_rows
from tests.training.test_resume import do

__all__ = ["do"]

pytestmark = pytest.mark.slow

RATES = "training.rate=1e-3,1e-2,3e-2"


@pytest.fixture(scope="module")
def wanted(saved_tiny, tmp_path_factory):
    """A recipe whose arms differ by their rates."""
    data = write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", conversations(40))
    return recipe(saved_tiny("llama"), data, adapter={"kind": "lora", "rank": 4})


@pytest.fixture(scope="module")
def swept(wanted, tmp_path_factory):
    return sweep(wanted, axes([RATES]), tmp_path_factory.mktemp("swept") / "run")


def arm_of(run, name):
    return RunFolder(run.arms / name)


def weights(run):
    return load_file(run.model / "adapter_model.safetensors")


def assert_as_alone(arm, alone):
    ours, theirs = losses(arm), losses(alone)
    assert [step for step, *_ in ours] == [step for step, *_ in theirs]
    for found, expected in zip(ours, theirs, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    validations = [[(e["step"], e["loss"]) for e in events(run, "validation")] for run in (arm, alone)]
    for found, expected in zip(*validations, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    expected = weights(alone)
    assert weights(arm).keys() == expected.keys()
    for name, value in weights(arm).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-3)


def test_every_arm_is_what_a_run_of_its_own_gives(wanted, swept, tmp_path):
    for name in ("rate-0.001", "rate-0.03"):
        arm = arm_of(swept, name)
        assert_as_alone(arm, tune(load(arm.asked), tmp_path / name))


def test_the_arm_with_the_lowest_validation_loss_becomes_the_run(swept):
    (choice,) = events(swept, "swept")
    table = {row["name"]: row for row in choice["arms"]}
    assert list(table) == ["rate-0.001", "rate-0.01", "rate-0.03"]
    for name, row in table.items():
        best = min(events(arm_of(swept, name), "validation"), key=lambda e: e["loss"])
        assert (row["loss"], row["step"]) == (best["loss"], best["step"])
        assert row["steps"] == len(events(arm_of(swept, name), "step"))
    assert table[choice["chosen"]]["loss"] == min(row["loss"] for row in table.values())
    chosen = arm_of(swept, choice["chosen"])
    assert load(swept.recipe) == load(chosen.recipe)
    assert losses(swept) == losses(chosen)
    assert model_bytes(swept) == model_bytes(chosen)
    assert read_json(swept.manifest)["parents"] == [f"arms/{choice['chosen']}"]
    assert read_json(swept.evaluation)["verdict"]
    assert not list(swept.root.rglob(".*")), "nothing half-written is left"


def test_report_and_card_say_that_a_sweep_chose(swept):
    report, card = swept.report.read_text(), swept.card.read_text()
    for page in (report, card):
        assert "A sweep chose this arm out of 3" in page
        assert "took no part in the choice" in page
    for name in ("rate-0.001", "rate-0.01", "rate-0.03"):
        assert name in report
    assert "| 1 | training.rate 0.001 |" in card.replace("0.00100", "0.001")


def test_the_journal_says_what_one_pass_for_several_arms_has_spared(swept):
    (how,), (spared,) = [e for e in _all(swept) if e["event"] == "sweep"], events(swept, "spared")
    assert how["together"]
    assert spared["passes"] < spared["microbatches"] == 3 * 6


def _all(run):
    return [json.loads(line) for line in run.events.read_text().splitlines()]


def test_rows_are_prepared_once_for_all_arms(swept):
    first, *others = (events(arm_of(swept, f"rate-{rate}"), "prepared") for rate in ("0.001", "0.01", "0.03"))
    assert [e["taken_from"] for e in first] == [None] * 3
    for prepared in others:
        assert all(RunFolder(swept.arms / e["taken_from"]).root.parent == swept.arms for e in prepared)
    store = arm_of(swept, "rate-0.01").side("train") / "tokens.bin"
    assert store.samefile(swept.side("train") / "tokens.bin")


def test_an_arm_is_a_run_that_can_be_shown_and_whose_model_loads(swept):
    from luthier.door import load as open_model
    from luthier.runs.record import read_record
    from luthier.runs.wording import headline
    from luthier.workflow.show import sample

    arm = arm_of(swept, "rate-0.001")
    assert "has not been compared" in headline(read_record(arm))
    assert sample(arm.root, 0).supervised > 0
    assert open_model(arm).answer("Which wood for the top?") is not None


def test_arms_with_layers_in_common_compute_them_once(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(30))
    upper = {"kind": "lora", "rank": 4, "layers": [1]}
    run = sweep(recipe(saved_tiny("llama"), data, adapter=upper), axes([RATES]), tmp_path / "run")
    (spared,) = events(run, "spared")
    # One of two layers, for two of three arms.
    assert spared["layer_rows_run"] == pytest.approx(spared["layer_rows"] * (1 - 1 / 3), rel=1e-6)
    assert_as_alone(arm_of(run, "rate-0.01"), tune(load(arm_of(run, "rate-0.01").asked), tmp_path / "alone"))


def test_an_arm_that_ends_in_no_number_leaves_the_others_alone(wanted, tmp_path):
    run = sweep(wanted, axes(["training.rate=1e-2,1e30"]), tmp_path / "run")
    (choice,) = events(run, "swept")
    good, bad = choice["arms"]
    assert (choice["chosen"], good["failed"]) == ("rate-0.01", None)
    assert "not a finite number" in bad["failed"]
    assert_as_alone(arm_of(run, "rate-0.01"), tune(load(arm_of(run, "rate-0.01").asked), tmp_path / "alone"))


def test_a_sweep_in_which_every_arm_fails_says_so(wanted, tmp_path):
    with pytest.raises(NotFinite, match="no arm"):
        sweep(wanted, axes(["training.rate=1e29,1e30"]), tmp_path / "run")


def test_arms_that_cannot_stand_side_by_side_are_trained_in_turn(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", labelled(40))
    run = sweep(recipe(saved_tiny("bert"), data), axes(["training.rate=1e-3,1e-2"]), tmp_path / "run")
    how = next(e for e in _all(run) if e["event"] == "sweep")
    assert not how["together"]
    assert how["why"]
    assert read_json(run.evaluation)["verdict"]
    alone = tune(load(arm_of(run, "rate-0.01").asked), tmp_path / "alone")
    assert losses(arm_of(run, "rate-0.01")) == losses(alone)


def test_departments_with_rows_of_their_own_are_each_compared_by_themselves(saved_tiny, tmp_path):
    rows = conversations(80)
    files = [write_rows(tmp_path / f"{name}.jsonl", rows[i::2]) for i, name in enumerate(("sales", "workshop"))]
    wanted = recipe(saved_tiny("llama"), files[0])
    run = sweep(wanted, axes([f"data.train={files[0]},{files[1]}"]), tmp_path / "run")
    (choice,) = events(run, "swept")
    assert choice["chosen"] is None
    assert not run.model.exists()
    for name in ("sales", "workshop"):
        assert read_json(arm_of(run, name).evaluation)["verdict"]
        assert_as_alone(arm_of(run, name), tune(load(arm_of(run, name).asked), tmp_path / name))
    assert "each is a run by itself" in run.report.read_text()
    with pytest.raises(InputError, match="finished"):
        resume(run.root)


def test_departments_with_validation_rows_in_common_can_be_told_apart(saved_tiny, tmp_path):
    rows = conversations(90)
    files = [write_rows(tmp_path / f"part{i}.jsonl", rows[i::3]) for i in range(3)]
    wanted = recipe(saved_tiny("llama"), files[0], data={"train": [str(files[0])], "validation": [str(files[2])]})
    run = sweep(wanted, axes([f"data.train={files[0]},{files[1]}"]), tmp_path / "run")
    (choice,) = events(run, "swept")
    assert choice["chosen"] in ("part0", "part1")
    assert load(run.recipe).data.train == [str(files[int(choice["chosen"][-1])])]


def test_without_validation_rows_there_is_nothing_to_choose_by(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(30))
    split = {"train": [str(data)], "split": {"validation": 0.0, "test": 0.2}}
    with pytest.raises(RecipeError, match="validation"):
        sweep(recipe(saved_tiny("llama"), data, data=split), axes([RATES]), tmp_path / "run")


def test_a_sweep_that_is_refused_leaves_no_folder(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(30))
    wanted = recipe(saved_tiny("llama"), data)
    with pytest.raises(RecipeError):
        sweep(wanted, axes(["adapter.targets=[q_proj],[nothing]"]), tmp_path / "run" / "deep")
    with pytest.raises(InputError):
        sweep(wanted, axes([f"data.train={data},{tmp_path / 'missing.jsonl'}"]), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.models
def test_arms_on_a_real_model_end_as_they_do_alone(smollm2, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(30))
    settings = {"max_steps": 3, "batch_examples": 3, "threads": 1, "rate": 2e-4, "validate_every": 3}
    wanted = recipe(smollm2.source, data, training=settings, evaluation={"enabled": False})
    run = sweep(wanted, axes(["training.rate=2e-4,1e-3", "adapter.rank=4,8"]), tmp_path / "run")
    (spared,) = events(run, "spared")
    assert spared["passes"] < spared["microbatches"]
    for name in ("rate-0.0002_rank-4", "rate-0.001_rank-8"):
        arm = arm_of(run, name)
        alone = tune(load(arm.asked), tmp_path / name)
        for found, expected in zip(losses(arm), losses(alone), strict=True):
            assert found == pytest.approx(expected, rel=1e-3)
        for key, value in weights(arm).items():
            # AdamW's first steps are of the size of the rate, whatever the size of a gradient: where one is no more
            # than rounding, its step may go the other way.
            difference = (value - weights(alone)[key]).abs()
            assert difference.mean() < 0.02 * float(load(arm.recipe).training.rate)


MOMENTS = {
    "an arm's preparation": r"/arms/rate-0\.01/data",
    "before the first round": r"/arms/rate-0\.03/checkpoints/\.step-000000",
    "a checkpoint of the first arm": r"/arms/rate-0\.001/checkpoints/\.step-000004",
    "a checkpoint of the second arm": r"/arms/rate-0\.01/checkpoints/\.step-000004",
    "the last checkpoint of the last arm": r"/arms/rate-0\.03/checkpoints/\.step-000006",
    "packaging": r"/arms/rate-0\.01/\.model\.partial",
    "the choice, data": r"run/\.data\.partial|^os.mkdir /\.data",
    "the choice, manifest": r"^os.rename /\.manifest\.json|^open /\.manifest\.json",
    "the comparison": r"^open /\.predictions",
}
"""A name for each moment -> the change to the run's files before which the process is killed."""


def result(run):
    """What must not depend on interruptions, of each arm."""
    return [result_of(RunFolder(arm)) for arm in sorted(run.arms.iterdir())]


def result_of(arm):
    return losses(arm), [(e["step"], e["loss"]) for e in events(arm, "validation")], model_bytes(arm)


def model_bytes(run):
    return (run.model / "adapter_model.safetensors").read_bytes()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="killed processes are made with fork")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_sweep_that_is_killed_and_resumed_ends_as_one_that_was_not(do, wanted, swept, tmp_path, moment):
    path, run = tmp_path / "recipe.yaml", RunFolder(tmp_path / "run")
    path.write_text(dump(wanted))
    killed = do("sweep", run.root, recipe=str(path), axes=[RATES], kill_match=MOMENTS[moment])
    assert killed.signal == signal.SIGKILL, killed.out
    resumed = do("resume", run.root)
    assert resumed.code == 0, resumed.out
    assert result(run) == result(swept)
    assert events(run, "swept")[0]["chosen"] == events(swept, "swept")[0]["chosen"]
    assert read_json(run.evaluation)["verdict"] == read_json(swept.evaluation)["verdict"]
    assert run.report.exists()
    assert not list(run.root.rglob(".*"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="killed processes are made with fork")
def test_a_sweep_that_is_killed_in_the_round_in_which_an_arm_fails_ends_as_one_that_was_not(do, wanted, tmp_path):
    path, grid = tmp_path / "recipe.yaml", ["training.rate=1e30,1e-3,1e-2"]
    path.write_text(dump(wanted))
    undisturbed, run = RunFolder(tmp_path / "undisturbed"), RunFolder(tmp_path / "run")
    assert do("sweep", undisturbed.root, recipe=str(path), axes=grid).code == 0
    (bad,) = [row for row in events(undisturbed, "swept")[0]["arms"] if row["failed"]]
    step = int(re.search(r"step (\d+)", bad["failed"])[1])
    moment = rf"/arms/rate-0\.01/checkpoints/\.step-00000{step}"
    assert do("sweep", run.root, recipe=str(path), axes=grid, kill_match=moment).signal == signal.SIGKILL
    assert do("resume", run.root).code == 0
    names = ("rate-0.001", "rate-0.01")
    assert [result_of(arm_of(run, name)) for name in names] == [result_of(arm_of(undisturbed, name)) for name in names]
    assert [e["reason"] for e in events(arm_of(run, bad["name"]), "failed")] == [bad["failed"]]
