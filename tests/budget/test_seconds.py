"""Time is counted from a layer's costs: linear in the costs, and what is left out takes nothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.budget.memory import Row
from luthier.budget.seconds import LEAST_SPREAD, Costs, Speed, seconds
from luthier.budget.work import Pass, Work, largest
from tests.budget.test_memory import SMALL

SPEED = Speed(
    forward=Costs(1e-4, 1e-6, 1e-9), both=Costs(3e-4, 3e-6, 3e-9), head_forward=1e-6, head_both=2e-6, weight=1e-9,
    saved_byte=1e-9, answer_layer=1e-4, answer_head=1e-3, program=10**8, spread=0.05,
)  # fmt: skip
ROWS = (Row(1000, 400, 300_000), Row(500, 500, 100_000))
WORK = Work(
    steps=10, tokens=16_000, train=Pass(ROWS, 10), largest=largest(ROWS), validation=Pass(ROWS), validations=2,
    checkpoints=3, test=Pass(ROWS), passes_over_frozen=1.0, prompts=Pass((Row(100, 1, 10_000),)), answers=4,
    answer_tokens=80, most_tokens=64, batch=4, room=164,
)  # fmt: skip


@given(factor=st.floats(0.1, 10))
def test_training_takes_as_long_as_its_steps_are_many(factor: float) -> None:
    once = seconds(SMALL, WORK, SPEED, recompute=False)
    more = replace(WORK, train=Pass(ROWS, 10 * factor), steps=1)
    less = replace(WORK, steps=1)
    ratio = seconds(SMALL, more, SPEED, recompute=False).train / seconds(SMALL, less, SPEED, recompute=False).train
    assert ratio == pytest.approx(factor, rel=1e-2)
    assert once.total > once.train + once.validate


def test_recomputing_costs_one_more_forward_pass() -> None:
    plain, again = (seconds(SMALL, WORK, SPEED, recompute=r).train for r in (False, True))
    bare = replace(SPEED, head_both=0.0, weight=0.0)
    layers = seconds(SMALL, WORK, bare, recompute=False).train
    # The forward pass of these costs is a third of forward and backward.
    assert again - plain == pytest.approx(layers / 3)


def test_the_largest_microbatch_has_the_most_of_each_number() -> None:
    assert largest(ROWS) == Row(1000, 500, 300_000)


def test_an_interval_is_never_narrower_than_what_is_not_counted() -> None:
    assert seconds(SMALL, WORK, SPEED, recompute=False).spread == LEAST_SPREAD
    assert seconds(SMALL, WORK, replace(SPEED, spread=0.4), recompute=False).spread == 0.4
