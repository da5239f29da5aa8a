"""Adapters of several arms side by side in one row: each gives what it gives alone."""

import math

import numpy as np
import pytest
import torch

from luthier.data.pack import pack
from luthier.models import adapters
from luthier.models.grouped import Shelf, joined
from luthier.models.policy import policy
from luthier.objectives import OBJECTIVES
from luthier.recipe import Lora
from tests.chain import sequence

LOSS = OBJECTIVES["supervised"].loss
ARMS = (
    Lora(rank=2, alpha=8),
    Lora(rank=5, alpha=3, rslora=True),
    Lora(rank=1, layers=[1]),
)


def shelf_of(tiny, family, arms):
    """Random arms on a tiny model in float64; B is not zero, so that everything has a gradient."""
    shelf = Shelf(policy(tiny(family, dtype=torch.float64)))
    for seed, adapter in enumerate(arms):
        for parameter in shelf.add(adapter, seed=seed).parameters.values():
            with torch.no_grad():
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
    shelf.policy.model.train()
    return shelf


def batch(seed, *, share=False):
    """Three documents; with `share`, two of them begin alike."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(3, 400, n) for n in (7, 12, 5)]
    if share:
        beginning = rng.integers(3, 400, 40)
        rows[1:] = [np.concatenate([beginning, row]) for row in rows[1:]]
    return pack([sequence(row, rng.choice([0.0, 0.5, 1.0], len(row))) for row in rows], share=share)


def alone(shelf, arm, given):
    with shelf.only(arm) as one:
        loss = LOSS(one.listen(given), given)
        loss.backward()
    return float(loss.detach()), gradients(shelf, arm)


def gradients(shelf, arm):
    parameters = shelf.arms[arm].parameters
    found = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    for p in parameters.values():
        p.grad = None
    return found


def together(shelf, arms, batches):
    with shelf.together(arms):
        losses = [LOSS(said, given) for said, given in zip(shelf.listen(batches), batches, strict=True)]
        sum(losses).backward()
    return [(float(loss.detach()), gradients(shelf, arm)) for loss, arm in zip(losses, arms, strict=True)]


def assert_alike(found, expected):
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    assert found[1].keys() == expected[1].keys()
    for name, value in found[1].items():
        torch.testing.assert_close(value, expected[1][name], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2"])
@pytest.mark.parametrize("share", [False, True], ids=["plain", "shared beginnings"])
def test_each_arm_has_the_loss_and_the_gradient_that_it_has_alone(tiny, family, share):
    names = ["q_proj", "down_proj"] if family != "gpt2" else ["c_attn"]
    arms = [*ARMS[:3], Lora(rank=3, targets=names)]
    shelf = shelf_of(tiny, family, arms)
    batches = [batch(seed, share=share) for seed in range(4)]
    expected = [alone(shelf, arm, given) for arm, given in enumerate(batches)]
    for found, wanted in zip(together(shelf, range(4), batches), expected, strict=True):
        assert_alike(found, wanted)


def test_arms_may_stand_in_any_order_and_not_all_of_them(tiny):
    shelf = shelf_of(tiny, "llama", ARMS[:3])
    batches = [batch(2), batch(0)]
    expected = [alone(shelf, arm, given) for arm, given in zip((2, 0), batches, strict=True)]
    for found, wanted in zip(together(shelf, (2, 0), batches), expected, strict=True):
        assert_alike(found, wanted)
    assert not gradients(shelf, 1)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_what_stands_below_every_arm_is_computed_once_for_all(tiny, family):
    from dataclasses import replace

    shelf = shelf_of(tiny, family, [Lora(rank=2, layers=[1]), Lora(rank=4, layers=[1])])
    assert [arm.lowest for arm in shelf.arms] == [1, 1]
    given = batch(0)
    expected = [alone(shelf, arm, given) for arm in (0, 1)]
    ready = replace(given, below=shelf.below(given, 1))
    assert not ready.below.states_TH.requires_grad
    for found, wanted in zip(together(shelf, (0, 1), [ready, ready]), expected, strict=True):
        assert_alike(found, wanted)


def test_a_number_that_is_none_stays_with_its_arm(tiny):
    shelf = shelf_of(tiny, "llama", ARMS[:3])
    batches = [batch(seed) for seed in range(3)]
    expected = [alone(shelf, arm, given) for arm, given in enumerate(batches)]
    with torch.no_grad():
        next(iter(shelf.arms[1].parameters.values())).fill_(math.nan)
    found = together(shelf, range(3), batches)
    assert math.isnan(found[1][0])
    for arm in (0, 2):
        assert_alike(found[arm], expected[arm])


def test_the_model_is_as_it_was_when_no_arm_is_in_place(tiny):
    shelf = shelf_of(tiny, "llama", ARMS[:2])
    plain = policy(tiny("llama", dtype=torch.float64))
    given = batch(0)
    with shelf.only(0), shelf.policy.inference():
        shelf.policy.listen(given)
    with shelf.together([0, 1]):
        shelf.listen([given, given])
    assert not adapters.trained(shelf.policy.model)
    with shelf.policy.inference(), plain.inference():
        assert torch.equal(shelf.policy.listen(given).logprobs_S, plain.listen(given).logprobs_S)


def test_an_arm_begins_as_it_does_in_a_model_of_its_own(tiny):
    shelf = Shelf(policy(tiny("llama")))
    for seed in (3, 4):
        arm = shelf.add(Lora(rank=2), seed=seed)
        model = tiny("llama")
        adapters.attach(model, Lora(rank=2), seed=seed)
        expected = adapters.trained(model)
        assert arm.parameters.keys() == expected.keys()
        assert all(torch.equal(p, expected[name]) for name, p in arm.parameters.items())


def test_joined_rows_keep_every_document_and_its_targets():
    batches = [batch(0), batch(1, share=True), batch(2)]
    row = joined(batches)
    assert row.documents == 9
    assert (row.tokens, row.plain_tokens) == tuple(
        sum(getattr(b, key) for b in batches) for key in ("tokens", "plain_tokens")
    )
    sums = row.sum_by_document(row.weight_S)
    assert torch.equal(sums, torch.cat([b.sum_by_document(b.weight_S) for b in batches]))
