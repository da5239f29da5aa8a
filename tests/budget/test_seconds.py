"""Time is counted from a layer's costs: linear in the costs, and what is left out takes nothing."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.budget.memory import Row
from luthier.budget.seconds import FIRST_STEPS, LEAST_SPREAD, WARM_STEPS, Costs, Speed, pace, seconds
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


def test_compiling_for_sizes_costs_once_a_pass_whatever_the_layers() -> None:
    compiled = replace(SPEED, both=replace(SPEED.both, shape=0.5))
    for layers in (2, 40):
        sizes = replace(SMALL, layers=layers)
        plain, more = (seconds(sizes, WORK, speed, recompute=False).train for speed in (SPEED, compiled))
        assert more - plain == pytest.approx(0.5 * WORK.train.calls)


tokens = st.integers(50, 2000)
warm = st.lists(tokens, min_size=3, max_size=FIRST_STEPS)


@given(tokens=warm, warmup=st.lists(st.tuples(tokens, st.floats(0, 100)), min_size=WARM_STEPS, max_size=WARM_STEPS))
def test_the_first_steps_of_all_say_nothing_of_the_pace(tokens: list[int], warmup: list[tuple[int, float]]) -> None:
    found = pace([*warmup, *((n, 2e-3 * n) for n in tokens)])
    assert found.token == pytest.approx(2e-3)
    assert found.spread == LEAST_SPREAD


@given(tokens=warm, held_up=st.floats(1, 1000))
def test_one_step_that_was_held_up_changes_nothing(tokens: list[int], held_up: float) -> None:
    steps = [(n, 2e-3 * n) for n in [100] * WARM_STEPS + tokens]
    late = [*steps[:-1], (steps[-1][0], steps[-1][1] + held_up)]
    assert pace(late) == pytest.approx(pace(steps))


def test_steps_that_differ_are_told_with_a_wider_spread() -> None:
    steps = [(100, 1.0)] * WARM_STEPS + [(100, 1.0), (100, 1.5), (100, 2.0), (100, 2.5), (100, 3.0)]
    assert pace(steps) == pytest.approx((0.02, 0.25))


def test_a_run_of_few_steps_is_told_by_its_last() -> None:
    assert pace([(100, 9.0), (100, 1.0)]).token == pytest.approx(0.01)
