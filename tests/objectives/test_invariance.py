"""Every objective of the table: hand values, and a gradient that does not depend on how a step is cut or packed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.batch import Batch, Signals
from luthier.data.pack import pack
from luthier.objectives import OBJECTIVES
from luthier.types import Sequence

VOCABULARY, CLASSES = 13, 3


def examples(lengths, seed):
    rng = np.random.default_rng(seed)
    found = []
    for n in lengths:
        weights = rng.choice([0.0, 0.25, 1.0], size=n).astype(np.float32)
        label = tuple(float(x) for x in rng.integers(0, 2, CLASSES))
        found.append(Sequence("x", rng.integers(0, VOCABULARY, n).astype(np.int32), weights, label))
    return found


class Model(torch.nn.Module):
    """A small model in which a document sees only itself: a token's output depends on the running mean up to it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = torch.nn.Parameter(torch.randn(VOCABULARY, 5, dtype=torch.float64, generator=generator))
        self.out = torch.nn.Parameter(torch.randn(5, VOCABULARY, dtype=torch.float64, generator=generator))
        self.classes = torch.nn.Parameter(torch.randn(5, CLASSES, dtype=torch.float64, generator=generator))

    def listen(self, batch: Batch) -> Signals:
        parts = []
        for a, b in zip(batch.bounds, batch.bounds[1:], strict=False):
            x = self.embed[batch.tokens_T[a:b]]
            parts.append(x.cumsum(0) / torch.arange(1, b - a + 1, dtype=x.dtype)[:, None])
        hidden = torch.cat(parts)
        logprobs = (hidden @ self.out).log_softmax(-1)[batch.select_S].gather(1, batch.target_S[:, None])[:, 0]
        ends = [b - 1 for b in batch.bounds[1:]]
        return Signals(logprobs_S=logprobs, scores_NC=hidden[ends] @ self.classes)


def step(objective, groups):
    """Loss and gradient of one step that is cut into `groups` of sequences."""
    model = Model()
    batches = [pack(group) for group in groups]
    if objective is OBJECTIVES["regress"] or objective is OBJECTIVES["classify"]:
        batches = [_single(batch) for batch in batches]
    units = math.fsum(objective.units(batch) for batch in batches)
    total = 0.0
    for batch in batches:
        signals = model.listen(batch)
        if objective is OBJECTIVES["regress"]:
            signals = Signals(scores_NC=signals.scores_NC[:, :1])
        loss = objective.loss(signals, batch) / units
        loss.backward()
        total += float(loss.detach())
    zero = torch.zeros(0, dtype=torch.float64)
    return total, torch.cat([p.grad.flatten() if p.grad is not None else zero for p in model.parameters()])


def _single(batch):
    columns = {**batch.columns, "label_NC": batch.columns["label_NC"][:, :1]}
    return Batch(
        batch.tokens_T, batch.positions_T, batch.bounds, batch.select_S, batch.target_S, batch.weight_S,
        batch.sequence_S, columns,
    )  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_any_cut_of_a_step_gives_the_same_loss_and_gradient(name, data):
    lengths = data.draw(st.lists(st.integers(2, 9), min_size=2, max_size=9))
    sequences = examples(lengths, data.draw(st.integers(0, 50)))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sequences) - 1))))
    groups = [sequences[a:b] for a, b in zip([0, *cuts], [*cuts, len(sequences)], strict=True)]
    if not any(s.weights_T[1:].any() for s in sequences):
        return
    whole, gradient = step(OBJECTIVES[name], [sequences])
    cut, cut_gradient = step(OBJECTIVES[name], groups)
    assert cut == pytest.approx(whole, rel=1e-13)
    torch.testing.assert_close(cut_gradient, gradient, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_order_in_a_packed_row_changes_nothing(name):
    sequences = examples([5, 2, 7, 3], 1)
    loss, gradient = step(OBJECTIVES[name], [sequences])
    other, other_gradient = step(OBJECTIVES[name], [sequences[::-1]])
    assert other == pytest.approx(loss, rel=1e-13)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-12, atol=1e-13)


def test_a_mean_of_means_would_be_caught():
    """The property above is not vacuous: the usual mistake breaks it by far more than rounding."""
    sequences = examples([9, 2, 2, 9], 3)
    objective = OBJECTIVES["supervised"]
    whole, _ = step(objective, [sequences])
    means = [step(objective, [group])[0] for group in (sequences[:1], sequences[1:])]
    assert abs(sum(means) / 2 - whole) > 1e-3


def _batch(**columns):
    return Batch(
        tokens_T=torch.tensor([0, 1, 2, 0, 1]),
        positions_T=torch.tensor([0, 1, 2, 0, 1]),
        bounds=(0, 3, 5),
        select_S=torch.tensor([0, 1, 3]),
        target_S=torch.tensor([1, 2, 1]),
        weight_S=torch.tensor([1.0, 0.5, 2.0]),
        sequence_S=torch.tensor([0, 0, 1]),
        columns=columns,
    )


def test_supervised_hand_value():
    signals = Signals(logprobs_S=torch.tensor([-1.0, -2.0, -0.25], dtype=torch.float64))
    batch = _batch()
    assert float(OBJECTIVES["supervised"].loss(signals, batch)) == 1.0 + 1.0 + 0.5
    assert OBJECTIVES["supervised"].units(batch) == 3.5


def test_classify_hand_value():
    scores = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
    batch = _batch(label_NC=torch.tensor([[1.0], [0.0]]))
    expected = math.log(4 / 3) + math.log(2)
    assert float(OBJECTIVES["classify"].loss(Signals(scores_NC=scores), batch)) == pytest.approx(expected)
    assert OBJECTIVES["classify"].units(batch) == 2


def test_classify_multi_hand_value():
    scores = torch.tensor([[0.0, math.log(3.0)], [0.0, 0.0]], dtype=torch.float64)
    batch = _batch(label_NC=torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    expected = math.log(2) + math.log(4 / 3) + 2 * math.log(2)
    assert float(OBJECTIVES["classify_multi"].loss(Signals(scores_NC=scores), batch)) == pytest.approx(expected)
    assert OBJECTIVES["classify_multi"].units(batch) == 4


def test_regress_hand_value():
    batch = _batch(label_NC=torch.tensor([[1.0], [-2.0]]))
    scores = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    assert float(OBJECTIVES["regress"].loss(Signals(scores_NC=scores), batch)) == pytest.approx(0.25 + 9)
    assert OBJECTIVES["regress"].units(batch) == 2


def test_every_objective_has_a_hand_value():
    assert set(OBJECTIVES) == {"supervised", "text", "classify", "classify_multi", "regress"}
