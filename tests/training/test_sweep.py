"""Several adapters trained in one loop: each ends with the losses and weights of a run of its own."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.data import tokens
from luthier.data.pack import pack
from luthier.data.source import EpochSource
from luthier.errors import NotFinite
from luthier.models import adapters
from luthier.models.grouped import Shelf
from luthier.models.policy import policy
from luthier.objectives import OBJECTIVES, Objective
from luthier.recipe import Lora, Training
from luthier.training.loop import train
from luthier.training.optim import adamw
from luthier.training.sweep import Lane, Tally, _Part, groups, train_together
from tests.chain import sequence

SUPERVISED = OBJECTIVES["supervised"]


def store(folder, count=10, *, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        n = int(rng.integers(4, 20))
        rows.append((i, sequence(rng.integers(3, 400, n), rng.choice([0.0, 0.5, 1.0], n))))
    tokens.write(folder / f"train-{seed}", rows)
    return tokens.open_store(folder / f"train-{seed}")


def case(adapter, *, slice_=0, **settings):
    return (
        adapter,
        slice_,
        Training(
            **{"rate": 1e-2, "warmup": 0.2, "batch_examples": 4, "epochs": 2.0, "microbatch_tokens": 4096, **settings}
        ),
    )


CASES = {
    "rates": [case(Lora(rank=2), rate=rate) for rate in (1e-3, 1e-2, 5e-2)],
    "ranks, scales and LoRA+": [
        case(Lora(rank=1, alpha=4)), case(Lora(rank=6, alpha=3, rslora=True)), case(Lora(rank=2, plus=16), clip=0.1),
    ],
    "seeds": [case(Lora(rank=2), seed=seed) for seed in (0, 1, 2)],
    "data": [case(Lora(rank=2), slice_=n) for n in (0, 1)],
    "lengths": [case(Lora(rank=2), batch_examples=3), case(Lora(rank=2), max_steps=2), case(Lora(rank=2), epochs=1.0)],
    "upper layers": [case(Lora(rank=2, layers=[1]), rate=1e-3), case(Lora(rank=4, layers=[1]))],
    "dropout": [case(Lora(rank=2, dropout=0.5)), case(Lora(rank=2)), case(Lora(rank=2), rate=1e-3)],
    "small microbatches": [case(Lora(rank=2), microbatch_tokens=n) for n in (1, 30, 64)],
}  # fmt: skip


def source(folder, slice_, training):
    return EpochSource(
        store(folder, seed=slice_), training.batch_examples, training.microbatch_tokens, training.epochs, training.seed,
        training.max_steps,
    )  # fmt: skip


def lane_of(shelf, adapter, training, steps):
    parameters = shelf.add(adapter, seed=training.seed).parameters
    optimizer = adamw(parameters, training, rate=training.rate, plus=adapter.plus)
    place = len(shelf.arms) - 1
    return Lane(place, steps, optimizer, list(parameters.values()), training, draws=adapter.dropout > 0)


def alone(tiny, folder, family, adapter, slice_, training):
    """(losses, norms, weights) of a run of its own."""
    model = tiny(family, dtype=torch.float64)
    adapters.attach(model, adapter, seed=training.seed)
    parameters = adapters.trained(model)
    optimizer = adamw(parameters, training, rate=training.rate, plus=adapter.plus)
    reports = list(train(policy(model), source(folder, slice_, training), SUPERVISED, optimizer, training))
    return [(r.step, r.loss, r.grad_norm, r.rate, r.units, r.tokens) for r in reports], parameters


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", CASES)
def test_every_arm_ends_as_it_does_alone(tiny, tmp_path, name, family):
    shelf = Shelf(policy(tiny(family, dtype=torch.float64)))
    lanes = [lane_of(shelf, a, training, source(tmp_path, s, training)) for a, s, training in CASES[name]]
    found = {lane.arm: [] for lane in lanes}
    tally = Tally()
    for results in train_together(shelf, lanes, SUPERVISED, tally=tally):
        for lane, r in results:
            found[lane.arm].append((r.step, r.loss, r.grad_norm, r.rate, r.units, r.tokens))
    for place, (adapter, slice_, training) in enumerate(CASES[name]):
        expected, weights = alone(tiny, tmp_path, family, adapter, slice_, training)
        assert len(found[place]) == len(expected)
        for ours, theirs in zip(found[place], expected, strict=True):
            # A step of AdamW divides a gradient by its own size, which magnifies the last bits of small ones.
            assert ours == pytest.approx(theirs, rel=1e-6)
        for key, value in shelf.arms[place].parameters.items():
            torch.testing.assert_close(value, weights[key], rtol=0, atol=1e-7)
    assert tally.passes < tally.microbatches or name == "small microbatches"
    assert (tally.layer_rows_run < tally.layer_rows) == (name == "upper layers")


def test_one_arm_whose_loss_is_no_number_ends_and_the_others_go_on(tiny, tmp_path):
    _, _, training = case(Lora(rank=2))
    shelf = Shelf(policy(tiny("llama", dtype=torch.float64)))
    lanes = [lane_of(shelf, Lora(rank=2), training, source(tmp_path, 0, training)) for _ in range(3)]
    before = {key: p.detach().clone() for key, p in shelf.arms[1].parameters.items()}
    ill = 3

    def loss(signals, batch):
        nonlocal ill
        ill -= 1
        # The second of three arms, in the first round.
        return SUPERVISED.loss(signals, batch) * (math.nan if ill == 1 else 1.0)

    ended = {}
    for results in train_together(shelf, lanes, Objective(loss, SUPERVISED.units, "token"), tally=Tally()):
        for lane, report in results:
            ended.setdefault(lane.arm, []).append(report)
    assert [len(ended[arm]) for arm in range(3)] == [len(lanes[0].source), 1, len(lanes[0].source)]
    assert isinstance(ended[1][0], NotFinite)
    assert ended[1][0].where == "step 1"
    assert all(torch.equal(p, before[key]) for key, p in shelf.arms[1].parameters.items())
    expected, weights = alone(tiny, tmp_path, "llama", Lora(rank=2), 0, training)
    for arm in (0, 2):
        assert [r.loss for r in ended[arm]] == pytest.approx([e[1] for e in expected], rel=1e-8)
        for key, value in shelf.arms[arm].parameters.items():
            torch.testing.assert_close(value, weights[key], rtol=0, atol=1e-7)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 80), st.booleans()), min_size=1, max_size=12),
    limit=st.integers(1, 100),
)
def test_microbatches_share_a_pass_within_every_limit(sizes, limit):
    parts = []
    for tokens_, room, draws in sizes:
        lane = Lane(0, None, None, [], Training(microbatch_tokens=room), draws)
        parts.append(_Part(lane, pack([sequence([1] * tokens_, [1.0] * tokens_)])))
    found = groups(parts, limit)
    assert sorted(id(p) for group in found for p in group) == sorted(id(p) for p in parts)
    for group in found:
        if len(group) > 1:
            total = sum(part.batch.tokens for part in group)
            assert total <= min(limit, *(part.lane.training.microbatch_tokens for part in group))
            assert not any(part.lane.draws for part in group)
