"""Time by phase: what a machine needs for a call, a token and a pair of tokens of one layer, times how much a run
computes. `workflow.probe` measures the first, `budget.work` counts the second. Where nothing was measured, the first
steps of a run tell what the others will take."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from luthier.budget.memory import Sizes
from luthier.budget.work import Pass, Work

LEAST_SPREAD = 0.15
"""Half the width of an interval as a share of the value, however alike the repetitions of a probe were: other programs,
the processor's clock, and what is not counted."""
START_SECONDS = 5.0
"""From the command to the model on its way into memory: imports and preparation of rows that were seen before."""
LOAD_BYTES_PER_SECOND = 4e8
"""Reading weights, turning their type and comparing the model with its own forward pass (two cores, 2026-11)."""


WARM_STEPS = 3
"""Steps whose time says nothing of later ones: memory is touched for the first time, products are compiled."""
FIRST_STEPS = 8
"""Steps after them that tell the time of all."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one layer: for each forward pass, for each token, for each pair of tokens that attend."""

    call: float
    token: float
    pair: float
    shape: float = 0.0
    """Of all layers together, for each forward pass over a number of tokens that was not there before: products that
    are compiled for their sizes."""


@dataclass(frozen=True, slots=True)
class Speed:
    """What a machine takes for the parts of a step; see `workflow.probe`."""

    forward: Costs
    both: Costs
    """Forward and backward."""
    head_forward: float
    """Seconds for each position whose next token is predicted."""
    head_both: float
    weight: float
    """Seconds for each trained weight: norm, clipping and AdamW."""
    saved_byte: float
    """Seconds for each byte of a checkpoint."""
    answer_layer: float
    """Seconds of a decoding step in one layer, at the recipe's batch."""
    answer_head: float
    """Seconds of a decoding step's choice of tokens."""
    program: int
    """Resident bytes before a model is loaded."""
    spread: float
    """Of the repetitions, as a share."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of each phase."""

    start: float
    train: float
    """Steps alone."""
    validate: float
    save: float
    evaluate: float
    spread: float
    """Half the width of the interval, as a share of the value."""

    @property
    def total(self) -> float:
        return self.start + self.train + self.validate + self.save + self.evaluate


class Pace(NamedTuple):
    """What the first steps of a run tell."""

    token: float
    """Seconds for each computed token."""
    spread: float
    """Half the width of an interval, as a share of it."""


def pace(steps: Sequence[tuple[int, float]]) -> Pace:
    """The middle pace of the first steps (computed tokens, seconds) that are warm. One that something else held up does
    not count: the spread is that of all but the fastest and the slowest.

    Args:
        steps: at least one, from the first on.
    """
    warm = steps[WARM_STEPS:][:FIRST_STEPS] or steps[-1:]
    paces = sorted(taken / max(1, computed) for computed, taken in warm)
    middle = statistics.median(paces)
    within = paces[1:-1] or paces
    wide = (within[-1] - within[0]) / 2 / middle if middle else 0.0
    return Pace(middle, max(LEAST_SPREAD, wide))


def seconds(sizes: Sizes, work: Work, speed: Speed, *, recompute: bool) -> Seconds:
    """What a run takes; phases that it does not have take nothing."""
    train = _layers(sizes, work.train, speed.forward, speed.both, recompute=recompute and sizes.path != "own")
    train += speed.head_both * work.train.read if sizes.vocabulary else 0.0
    train += speed.weight * sizes.trained * work.steps
    if sizes.below:
        # Lower layers that stay as they are: in every pass, or once for all of them.
        train += _times(speed.forward, work.train, sizes.below) * work.passes_over_frozen
    forward = _forward(sizes, work.validation, speed)
    test = 2 * (_forward(sizes, work.test, speed) + _answers(sizes, work, speed))
    return Seconds(
        start=START_SECONDS + sizes.weights * sizes.number / LOAD_BYTES_PER_SECOND,
        train=train,
        validate=forward * work.validations,
        save=work.checkpoints * 12 * sizes.trained * speed.saved_byte,
        evaluate=test,
        spread=max(LEAST_SPREAD, speed.spread),
    )


def _layers(sizes: Sizes, done: Pass, forward: Costs, both: Costs, *, recompute: bool) -> float:
    """Forward and backward of the layers above the frozen ones; of the last one, the wanted rows behind attention."""
    layers = sizes.layers - sizes.below
    if layers <= 0:
        return 0.0
    total = _times(both, done, layers - 1) + _last(sizes, done, both) + both.shape * done.calls
    if recompute:
        total += _times(forward, done, layers - 1) + _last(sizes, done, forward)
    return total


def _forward(sizes: Sizes, done: Pass, speed: Speed) -> float:
    total = _times(speed.forward, done, sizes.layers - 1) + _last(sizes, done, speed.forward)
    total += speed.forward.shape * done.calls
    return total + (speed.head_forward * done.read if sizes.vocabulary else 0.0)


def _times(costs: Costs, done: Pass, layers: int) -> float:
    return layers * (costs.call * done.calls + costs.token * done.tokens + costs.pair * done.pairs)


def _last(sizes: Sizes, done: Pass, costs: Costs) -> float:
    if sizes.path == "own":
        return _times(costs, done, 1)
    before = sizes.hidden * (sizes.queries + 2 * sizes.keys) / (sizes.linear / sizes.layers)
    tokens = before * done.tokens + (1 - before) * done.read
    return costs.call * done.calls + costs.token * tokens + costs.pair * done.pairs


def _answers(sizes: Sizes, work: Work, speed: Speed) -> float:
    if not work.answers:
        return 0.0
    # A place that falls free waits until a quarter of them are: seven eighths are busy on the way.
    steps = max(work.answer_tokens / (0.875 * work.batch), work.answer_tokens / work.answers)
    decoded = steps * (sizes.layers * speed.answer_layer + speed.answer_head)
    return decoded + _times(speed.forward, work.prompts, sizes.layers)
