"""Checkpoints: whole or not there, exact to the bit, and none is lost to a full disk or a damaged file."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from luthier.errors import InputError, StorageError
from luthier.models import adapters
from luthier.models.policy import policy
from luthier.objectives import OBJECTIVES
from luthier.recipe import Full, Lora, Training
from luthier.training.checkpoint import (
    Progress,
    inspect,
    level,
    listed,
    load_checkpoint,
    prune,
    save_checkpoint,
    usable,
)
from luthier.training.loop import train
from luthier.training.optim import adamw
from tests.chain import Steps, sequence

STEPS = Steps([[[sequence(range(3 + n, 12 + n), [0, 0, 0, 1, 1, 1, 0.5, 1, 1])]] for n in range(8)])


class Engine:
    """What a training consists of while it goes on."""

    def __init__(self, tiny, adapter, dtype=torch.float32):
        self.settings = Training(rate=1e-2)
        model = tiny("llama", dtype=dtype)
        adapters.attach(model, adapter, seed=0)
        self.policy = policy(model)
        self.parameters = adapters.trained(model)
        self.optimizer = adamw(self.parameters, self.settings, rate=1e-2)

    def run(self, start, end):
        """Takes steps and returns their losses."""
        steps = train(self.policy, STEPS, OBJECTIVES["supervised"], self.optimizer, self.settings, start=start)
        return [next(steps).loss for _ in range(start, end)]

    def save(self, folder, step, **progress):
        return save_checkpoint(folder, self.parameters, self.optimizer, Progress(step=step, **progress))

    def load(self, path):
        return load_checkpoint(path, self.parameters, self.optimizer)

    def state(self):
        """Copies of the weights and of both moments."""
        found = {name: p.detach().clone() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            found |= {f"{name}|{key}": value.clone() for key, value in self.optimizer.state[p].items()}
        return found


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name


ADAPTERS = [Full(), Lora(rank=2, dropout=0.3), Lora(rank=2, modules_to_save=["norm"])]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=["full", "lora", "lora-and-norm"])
def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(tiny, tmp_path, adapter):
    ours = Engine(tiny, adapter)
    ours.run(0, 3)
    progress = {"best_step": 2, "best_loss": 0.1 + 0.2, "unimproved": 1}
    path = ours.save(tmp_path, 3, **progress)
    saved = ours.state()
    rest = ours.run(3, 8)

    other = Engine(tiny, adapter)
    assert other.load(path) == Progress(step=3, **progress)
    assert_equal(other.state(), saved)
    assert other.run(3, 8) == rest
    assert_equal(other.state(), ours.state())


def test_equal_states_give_equal_files(tiny, tmp_path):
    for folder in ("a", "b"):
        ours = Engine(tiny, Full())
        ours.run(0, 2)
        ours.save(tmp_path / folder, 2)
    for name in ("weights.safetensors", "moments.safetensors", "state.json"):
        assert (tmp_path / "a/step-000002" / name).read_bytes() == (tmp_path / "b/step-000002" / name).read_bytes()


def truncate(path):
    os.truncate(path / "moments.safetensors", 100)


def flip_a_bit(path):
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "weights.safetensors").write_bytes(data)


def lose_the_state(path):
    (path / "state.json").unlink()


def lose_the_weights(path):
    (path / "weights.safetensors").unlink()


def garble_the_state(path):
    (path / "state.json").write_text("[]")


DAMAGES = [truncate, flip_a_bit, lose_the_state, lose_the_weights, garble_the_state]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(tiny, tmp_path, damage):
    ours = Engine(tiny, Lora(rank=2))
    paths = []
    for step in (1, 2, 3):
        ours.run(step - 1, step)
        paths.append(ours.save(tmp_path, step))
    damage(paths[2])
    assert usable(tmp_path) == (paths[1], [paths[2]])
    with pytest.raises(InputError, match="damaged"):
        ours.load(paths[2])
    for path in paths[:2]:
        damage(path)
    assert usable(tmp_path) == (None, paths[::-1])


def save_state(folder, step, *, done=False):
    return save_checkpoint(folder, {}, torch.optim.AdamW([torch.zeros(1)]), Progress(step=step, done=done))


def steps(folder):
    return [int(path.name[5:]) for path in listed(folder)]


@pytest.mark.parametrize(
    ("before", "ended", "after"),
    [
        ([[4, 6], [2, 4]], {}, [[4], [2, 4]]),
        ([[0], []], {}, [[0], []]),
        ([[2, 4], [4, 6], [4, 6]], {0: 4}, [[2, 4], [4, 6], [4, 6]]),
        ([[2, 4], [2], [0, 2]], {0: 4}, [[2], [2], [0, 2]]),
        ([[4, 6], [1, 2]], {}, [[], []]),
        ([[5, 6], [5, 6]], {0: 6, 1: 6}, [[5, 6], [5, 6]]),
        ([[3], [6]], {0: 3, 1: 6}, [[3], [6]]),
    ],
    ids=[
        "one ahead",
        "at the start",
        "one ended early",
        "one ended ahead",
        "nothing in common",
        "ended",
        "ended apart",
    ],
)
def test_runs_that_go_together_go_back_to_the_newest_step_that_all_have(tmp_path, before, ended, after):
    folders = [tmp_path / str(i) for i in range(len(before))]
    for i, folder in enumerate(folders):
        for step in before[i]:
            save_state(folder, step, done=ended.get(i) == step)
    level(folders)
    assert list(map(steps, folders)) == after


def test_a_damaged_checkpoint_is_no_step_that_a_run_has(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        for step in (2, 4):
            save_state(folder, step)
    truncate(second / "step-000004")
    level([first, second])
    # It stays: whoever goes on with the run says so.
    assert (steps(first), steps(second)) == ([2], [2, 4])


def test_nothing_is_usable_where_nothing_was_saved(tmp_path):
    assert usable(tmp_path / "none") == (None, [])
    prune(tmp_path / "none")


def test_a_half_written_checkpoint_is_no_checkpoint(tiny, tmp_path):
    ours = Engine(tiny, Lora(rank=2))
    path = ours.save(tmp_path, 1)
    shutil.copytree(path, tmp_path / ".step-000002.partial")
    assert listed(tmp_path) == [path]
    assert usable(tmp_path) == (path, [])
    # The step that was being written is written again.
    assert ours.save(tmp_path, 2).name == "step-000002"
    shutil.copytree(path, tmp_path / ".step-000003.partial")
    prune(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000001", "step-000002"]


def test_pruning_keeps_the_newest_two_and_the_best_of_each(tiny, tmp_path):
    ours = Engine(tiny, Lora(rank=2))
    for step, best in ((0, None), (1, 1), (2, 1), (3, 3), (4, 3)):
        ours.save(tmp_path, step, best_step=best)
    prune(tmp_path)
    assert [p.name for p in listed(tmp_path)] == ["step-000003", "step-000004"]
    ours.save(tmp_path, 5, best_step=3)
    ours.save(tmp_path, 6, best_step=6)
    prune(tmp_path)
    # Were step 6 damaged, step 5 would need step 3.
    assert [p.name for p in listed(tmp_path)] == ["step-000003", "step-000005", "step-000006"]


def test_steps_beyond_a_million_are_ordered_by_number(tiny, tmp_path):
    ours = Engine(tiny, Lora(rank=2))
    for step in (999_999, 1_000_000):
        ours.save(tmp_path, step)
    assert usable(tmp_path)[0].name == "step-1000000"


def test_a_checkpoint_of_other_weights_is_refused(tiny, tmp_path):
    path = Engine(tiny, Lora(rank=2)).save(tmp_path, 1)
    with pytest.raises(InputError, match="other weights"):
        Engine(tiny, Full()).load(path)


def test_a_checkpoint_of_another_size_is_refused(tiny, tmp_path):
    path = Engine(tiny, Lora(rank=2)).save(tmp_path, 1)
    with pytest.raises(InputError, match="other weights"):
        Engine(tiny, Lora(rank=4)).load(path)


def test_the_state_is_readable_by_people(tiny, tmp_path):
    path = Engine(tiny, Lora(rank=2)).save(tmp_path, 7, best_step=4, best_loss=1.5)
    state = json.loads((path / "state.json").read_text())
    assert (state["step"], state["best_step"], state["best_loss"]) == (7, 4, 1.5)
    assert inspect(path).best_loss == 1.5


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A real disk of 4 MB that fills up."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root on Linux")
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let root mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def assert_nothing_lost(tiny, ours, place, make_room):
    """Saving step 4 fails; step 3 stands; after room is made, the run goes on to the bit."""
    path = ours.save(place, 3)
    files = {p.name: p.read_bytes() for p in path.iterdir()}
    ours.run(3, 4)
    make_room(False)
    with pytest.raises(StorageError) as caught:
        ours.save(place, 4)
    assert caught.value.exit_code == 5
    assert usable(place) == (path, [])
    assert {p.name: p.read_bytes() for p in path.iterdir()} == files
    assert not list(place.glob(".*.partial"))

    make_room(True)
    again = Engine(tiny, Full())
    again.load(usable(place)[0])
    again.run(3, 4)
    saved = again.save(place, 4)
    assert_equal(again.state(), ours.state())
    rest = ours.run(4, 8)
    third = Engine(tiny, Full())
    third.load(saved)
    assert third.run(4, 8) == rest


def _write_until_full(file):
    while True:
        file.write(b"x" * 4096)


def test_a_full_disk_costs_nothing_that_was_saved(tiny, small_disk):
    ours = Engine(tiny, Full())
    ours.run(0, 3)

    def make_room(enough):
        filler = small_disk / "filler"
        if enough:
            filler.unlink()
            return
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            _write_until_full(file)
        os.truncate(filler, filler.stat().st_size - 65_536)

    assert_nothing_lost(tiny, ours, small_disk, make_room)


def test_a_limit_on_file_sizes_costs_nothing_that_was_saved(tiny, tmp_path):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    ours = Engine(tiny, Full())
    ours.run(0, 3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def make_room(enough):
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if enough else 50_000, before[1]))

    try:
        assert_nothing_lost(tiny, ours, tmp_path, make_room)
    finally:
        make_room(True)
        signal.signal(signal.SIGXFSZ, handler)
