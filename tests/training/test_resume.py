"""A run that is killed at any moment and resumed gives the losses and the bytes of one that was never disturbed."""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from luthier.errors import InputError
from luthier.recipe.load import dump
from luthier.runs.folder import RunFolder
from luthier.training.checkpoint import listed
from luthier.workflow.tune import resume
from tests.chain import conversations, events, losses, recipe, write_rows

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="killed processes are made with fork"),
]
DRIVER = Path(__file__).with_name("driver.py")
WITHOUT_GATE = "a run is killed hundreds of times here, and before it is prepared nothing of it is kept"
ADAPTERS = {"lora": {"kind": "lora", "rank": 4, "dropout": 0.2}, "full": {"kind": "full"}}


@dataclass
class Ended:
    """How a process ended."""

    code: int | None
    signal: int | None
    out: str
    changes: list[str]


@pytest.fixture(scope="module")
def do(tmp_path_factory):
    """`do("tune", root, recipe=..., kill_at=...)`: runs a job in a process of its own."""
    place = tmp_path_factory.mktemp("driver")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, str(DRIVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    )

    def run(verb, root, **more):
        job = {"verb": verb, "root": str(root), "out": str(place / "out"), "log": str(place / "log"), **more}
        process.stdin.write(json.dumps(job) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        killed = os.WIFSIGNALED(status)
        return Ended(
            None if killed else os.WEXITSTATUS(status),
            os.WTERMSIG(status) if killed else None,
            (place / "out").read_text(),
            (place / "log").read_text().splitlines(),
        )

    yield run
    process.stdin.close()
    process.wait(timeout=30)
    process.stdout.close()


@dataclass
class Undisturbed:
    """A finished run, the recipe it came from, and what others must equal."""

    recipe: Path
    root: Path
    result: dict
    changes: int


@pytest.fixture(scope="module")
def undisturbed(do, saved_tiny, tmp_path_factory):
    """`undisturbed("lora")`: the run that all others of the same recipe must equal."""
    made = {}

    def make(adapter):
        if adapter not in made:
            place = tmp_path_factory.mktemp(adapter)
            data = write_rows(place / "rows.jsonl", conversations(24))
            wanted = recipe(
                saved_tiny("llama"), data, adapter=ADAPTERS[adapter], data={"gate": {"off": WITHOUT_GATE}},
                training={"max_steps": 7, "checkpoint_every": 2, "validate_every": 3, "batch_examples": 3},
            )  # fmt: skip
            path = place / "recipe.yaml"
            path.write_text(dump(wanted))
            ended = do("tune", place / "run", recipe=str(path))
            assert ended.code == 0, ended.out
            made[adapter] = Undisturbed(path, place / "run", result(place / "run"), len(ended.changes))
        return made[adapter]

    return make


def result(root):
    """What must not depend on interruptions."""
    run = RunFolder(root)
    counted = ("derived", "finding", "prepared")
    return {
        "losses": losses(run),
        "validations": [(e["step"], e["loss"], e["best"]) for e in events(run, "validation")],
        "said": {kind: [{k: v for k, v in e.items() if k != "time"} for e in events(run, kind)] for kind in counted},
        "evaluation": run.evaluation.read_text(),
        "predictions": run.predictions.read_text(),
        "model": {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in run.model.iterdir() if p.name != "README.md"
        },
        "card and report": (run.card.exists(), run.report.exists()),
    }


def assert_as_undisturbed(root, expected):
    found = result(root)
    for key, value in expected.items():
        assert found[key] == value, key
    assert not list(root.rglob(".*")), "something half-written was left behind"


def finish(do, root, job):
    """Resumes a run; one that was killed before it was one is begun again."""
    run = RunFolder(root)
    if run.events.exists() and run.asked.exists():
        ended = do("resume", root)
        if ended.code == 2 and "this run is finished" in ended.out:
            return
    else:
        shutil.rmtree(root, ignore_errors=True)
        ended = do("tune", root, recipe=job)
    assert ended.code == 0, ended.out


MOMENTS = {
    "preparation, examples": r"/data/offsets|/\.data\.",
    "preparation, tokens": r"/data/\.train\.partial/weights",
    "preparation, manifest": r"os.rename .*manifest\.json",
    "first checkpoint": r"\.step-000000\.partial/weights",
    "a checkpoint's weights": r"\.step-000004\.partial/weights",
    "a checkpoint's moments": r"\.step-000004\.partial/moments",
    "a checkpoint's state": r"\.step-000006\.partial/state",
    "a checkpoint's rename": r"os.rename .*\.step-000006\.partial",
    "pruning": r"shutil.rmtree .*step-000002",
    "predictions": r"os.rename .*predictions",
    "evaluation's result": r"os.rename .*evaluation\.json",
    "packaging": r"\.model\.partial/.*",
    "packaging, rename": r"os.rename .*\.model\.partial",
    "card": r"README\.md",
    "report": r"os.rename .*report\.html",
}
EVENTS = {
    "step 1": {"event": "step", "step": 1},
    "step 5": {"event": "step", "step": 5},
    "validation": {"event": "validation", "step": 6},
    "checkpoint": {"event": "checkpoint", "step": 4},
    "answers": {"event": "progress", "what": "answers of base"},
    "evaluated": {"event": "evaluated"},
    "finished": {"event": "finished"},
    "derived": {"event": "derived"},
    "prepared": {"event": "prepared", "side": "test"},
}


# Whole weights take other code paths in checkpoints, packaging and the base's evaluation; the rest is the same.
IN_FULL = ["a checkpoint's moments", "evaluation's result", "packaging", "packaging, rename"]


@pytest.mark.parametrize(("adapter", "moment"), [*product(["lora"], MOMENTS), *product(["full"], IN_FULL)])
def test_killed_before_a_file_changes(do, undisturbed, tmp_path, adapter, moment):
    base = undisturbed(adapter)
    root = tmp_path / "run"
    ended = do("tune", root, recipe=str(base.recipe), kill_match=MOMENTS[moment])
    assert ended.signal == signal.SIGKILL, (ended.out, ended.changes)
    finish(do, root, str(base.recipe))
    assert_as_undisturbed(root, base.result)


@pytest.mark.parametrize(("adapter", "moment"), [*product(["lora"], EVENTS), ("full", "step 5"), ("full", "answers")])
def test_killed_at_an_event(do, undisturbed, tmp_path, adapter, moment):
    base = undisturbed(adapter)
    root = tmp_path / "run"
    ended = do("tune", root, recipe=str(base.recipe), at=EVENTS[moment], signal="SIGKILL")
    assert ended.signal == signal.SIGKILL, ended.out
    finish(do, root, str(base.recipe))
    assert_as_undisturbed(root, base.result)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_killed_again_and_again_at_random(do, undisturbed, tmp_path, adapter):
    base = undisturbed(adapter)
    choose = random.Random(0)
    for attempt in range(4):
        root = tmp_path / str(attempt) / "run"
        root.parent.mkdir()
        ended = do("tune", root, recipe=str(base.recipe), kill_at=choose.randint(1, base.changes))
        assert ended.signal == signal.SIGKILL
        for _ in range(3):
            if RunFolder(root).events.exists():
                do("resume", root, kill_at=choose.randint(1, 40))
        finish(do, root, str(base.recipe))
        assert_as_undisturbed(root, base.result)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_killed_before_every_change_to_a_file(do, undisturbed, tmp_path, adapter):
    base = undisturbed(adapter)
    for n in range(1, base.changes + 1):
        root = tmp_path / str(n) / "run"
        root.parent.mkdir()
        ended = do("tune", root, recipe=str(base.recipe), kill_at=n)
        assert ended.signal == signal.SIGKILL, n
        finish(do, root, str(base.recipe))
        assert_as_undisturbed(root, base.result)
        shutil.rmtree(root)


@pytest.mark.parametrize("damage", ["truncated", "bit flip", "no state"])
def test_a_damaged_newest_checkpoint_costs_only_its_steps(do, undisturbed, tmp_path, damage):
    base = undisturbed("lora")
    root = tmp_path / "run"
    do("tune", root, recipe=str(base.recipe), at={"event": "step", "step": 7}, signal="SIGKILL")
    newest = listed(RunFolder(root).checkpoints)[-1]
    if damage == "truncated":
        os.truncate(newest / "moments.safetensors", 64)
    elif damage == "bit flip":
        data = bytearray((newest / "weights.safetensors").read_bytes())
        data[-3] ^= 4
        (newest / "weights.safetensors").write_bytes(data)
    else:
        (newest / "state.json").unlink()
    assert do("resume", root).code == 0
    warned = [e for e in events(RunFolder(root), "finding") if e["rule"] == "damaged_checkpoint"]
    assert len(warned) == 1
    assert newest.name in warned[0]["message"]
    expected = {k: v for k, v in base.result.items() if k != "said"}
    assert_as_undisturbed(root, expected)


# Stopped on purpose


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_request_to_stop_saves_the_step_and_says_how_to_go_on(do, undisturbed, tmp_path, name):
    base = undisturbed("lora")
    root = tmp_path / "run"
    ended = do("tune", root, recipe=str(base.recipe), at={"event": "step", "step": 5}, signal=name)
    assert ended.code == 130
    assert f"luthier resume {root}" in ended.out
    assert "after step 5 of 7" in ended.out
    assert listed(RunFolder(root).checkpoints)[-1].name == "step-000005"
    assert do("resume", root).code == 0
    assert [e["step"] for e in events(RunFolder(root), "resumed")] == [5]
    assert_as_undisturbed(root, base.result)


@pytest.mark.parametrize(
    "event", [{"event": "prepared", "side": "train"}, {"event": "step", "step": 7}, {"event": "evaluated"}]
)
def test_a_request_to_stop_is_heeded_between_stages_too(do, undisturbed, tmp_path, event):
    base = undisturbed("lora")
    root = tmp_path / "run"
    ended = do("tune", root, recipe=str(base.recipe), at=event, signal="SIGINT")
    assert ended.code == 130
    assert f"luthier resume {root}" in ended.out
    assert not RunFolder(root).model.exists()
    assert do("resume", root).code == 0
    assert_as_undisturbed(root, base.result)


# Refused


def test_a_finished_run_is_not_resumed(do, undisturbed):
    base = undisturbed("lora")
    before = base.root.joinpath("events.jsonl").read_bytes()
    with pytest.raises(InputError, match="this run is finished") as caught:
        resume(base.root)
    assert "luthier show" in caught.value.do
    assert base.root.joinpath("events.jsonl").read_bytes() == before


def test_a_folder_that_is_no_run_is_not_resumed(tmp_path):
    with pytest.raises(InputError, match="no such run"):
        resume(tmp_path / "none")
    with pytest.raises(InputError, match="holds no run"):
        resume(tmp_path)


def stopped(do, saved_tiny, tmp_path):
    """A run stopped after step 2, on a copy of the model."""
    model = tmp_path / "model"
    shutil.copytree(saved_tiny("llama"), model)
    data = write_rows(tmp_path / "rows.jsonl", conversations(24))
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(recipe(model, data, adapter=ADAPTERS["lora"])))
    root = tmp_path / "run"
    ended = do("tune", root, recipe=str(path), at={"event": "step", "step": 2}, signal="SIGINT")
    assert ended.code == 130, ended.out
    return root, model


def test_another_base_model_than_the_run_began_with_is_refused(do, saved_tiny, tmp_path):
    root, model = stopped(do, saved_tiny, tmp_path)
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    ended = do("resume", root)
    assert ended.code == 2
    assert "the base model is not the one that this run began with" in ended.out
    data[-1] ^= 1
    weights.write_bytes(data)
    assert do("resume", root).code == 0


def test_another_recipe_than_the_run_began_with_is_refused(do, saved_tiny, tmp_path):
    root, _ = stopped(do, saved_tiny, tmp_path)
    path = RunFolder(root).recipe
    path.write_text(path.read_text().replace("max_steps: 6", "max_steps: 5"))
    ended = do("resume", root)
    assert ended.code == 2
    assert "the recipe is not the one that this run began with" in ended.out


def test_a_run_goes_on_without_its_data_files(do, saved_tiny, tmp_path):
    root, _ = stopped(do, saved_tiny, tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    assert do("resume", root).code == 0


# A full disk


@contextmanager
def small_disk(place, kilobytes):
    """A real disk of this size."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
    if (
        sys.platform != "linux"
        or os.geteuid() != 0
        or subprocess.run(mount, capture_output=True, check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root on Linux")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("room", [10_000, 60_000, 150_000])
def test_a_disk_that_fills_up_while_the_model_is_packaged(do, undisturbed, tmp_path, room):
    base = undisturbed("full")
    with small_disk(tmp_path / "disk", 8000) as disk:
        root = disk / "run"
        do("tune", root, recipe=str(base.recipe), at={"event": "evaluated"}, signal="SIGKILL")
        filler = disk / "filler"
        filler.write_bytes(b"x" * (shutil.disk_usage(disk).free - room))
        ended = do("resume", root)
        assert ended.code == 5, ended.out
        assert "the disk is full" in ended.out
        assert not RunFolder(root).model.exists()
        filler.unlink()
        assert do("resume", root).code == 0
        assert_as_undisturbed(root, base.result)


@pytest.mark.parametrize("kilobytes", [60, 200, 330])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(do, undisturbed, tmp_path, adapter, kilobytes):
    base = undisturbed(adapter)
    with small_disk(tmp_path / "disk", kilobytes * (1 if adapter == "lora" else 4)) as disk:
        root = disk / "run"
        ended = do("tune", root, recipe=str(base.recipe))
        assert ended.code == 5, ended.out
        assert "the disk is full" in ended.out
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        finish(do, root, str(base.recipe))
        assert_as_undisturbed(root, base.result)
