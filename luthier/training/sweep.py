"""The loop for several adapters at once: in each round every adapter takes one step of its own, and small microbatches
of different adapters share a pass through the frozen model.

Sums, counts, clipping, rate and optimizer are each adapter's own, as in `training.loop`. What is not a number stays
with the adapter that it came from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from luthier.batch import Batch, Below, Source
from luthier.errors import NotFinite
from luthier.models.grouped import Shelf
from luthier.objectives import Objective
from luthier.recipe import Training
from luthier.training.loop import part_seed, peak_memory, update
from luthier.types import StepReport

FULL = 512
"""Rows that keep a processor's matrix products busy: beyond it, one pass for several adapters is not faster than one
for each. Measured with SmolLM2-135M on two cores."""


@dataclass
class Lane:
    """One adapter's way through training."""

    arm: int
    """Its place on the shelf."""
    source: Source
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]
    training: Training
    draws: bool
    """It draws random numbers, in the order of a pass of its own."""
    step: int = 0
    """Finished steps."""
    live: bool = True
    """Whether it takes part in the next round; whoever consumes the reports may end it."""


@dataclass
class Tally:
    """What the rounds have computed, against what each adapter alone would have."""

    microbatches: int = 0
    passes: int = 0
    """Passes through the model that they took."""
    layer_rows: int = 0
    """Rows of microbatches times layers of the model."""
    layer_rows_run: int = 0


class _Part(NamedTuple):
    """A microbatch of one adapter's step."""

    lane: Lane
    batch: Batch


def train_together(
    shelf: Shelf, lanes: Sequence[Lane], objective: Objective, *, tally: Tally
) -> Iterator[list[tuple[Lane, StepReport | NotFinite]]]:
    """Yields what each live lane's step gave, round by round, until none is left. A lane whose loss or gradient is not
    a number has ended; its weights are those of its last finished step.

    `seconds` of a report is the lane's share of its round by the rows that were computed for it.
    """
    while live := [lane for lane in lanes if lane.live]:
        yield _round(shelf, live, objective, tally)


def _round(
    shelf: Shelf, lanes: Sequence[Lane], objective: Objective, tally: Tally
) -> list[tuple[Lane, StepReport | NotFinite]]:
    began = time.perf_counter()
    steps = [lane.source.step(lane.step) for lane in lanes]
    units = [math.fsum(objective.units(batch) for batch in step) for step in steps]
    count = {id(lane): n for lane, n in zip(lanes, units, strict=True)}
    losses = dict.fromkeys(count, 0.0)
    for lane in lanes:
        lane.optimizer.zero_grad(set_to_none=True)
    for number in range(max(len(step) for step in steps)):
        # A step without a supervised token has no loss, and nothing to share.
        parts = [
            _Part(lane, step[number])
            for lane, step in zip(lanes, steps, strict=True)
            if number < len(step) and count[id(lane)]
        ]
        for group in groups(_below(shelf, parts, tally), FULL):
            tally.passes += 1
            for part, loss in zip(group, _backward(shelf, group, objective, count, number), strict=True):
                losses[id(part.lane)] += loss
    seconds = time.perf_counter() - began
    computed = [sum(batch.tokens for batch in step) for step in steps]
    results: list[tuple[Lane, StepReport | NotFinite]] = []
    for lane, step, rows in zip(lanes, steps, computed, strict=True):
        share = seconds * rows / sum(computed)
        results.append((lane, _update(lane, step, losses[id(lane)], count[id(lane)], seconds=share)))
    return results


def groups(parts: Sequence[_Part], limit: int) -> list[list[_Part]]:
    """Which microbatches share a pass: as many as have together at most `limit` rows and no more than any of them may
    have alone, and none that draws random numbers."""
    found: list[list[_Part]] = []
    for part in parts:
        if part.lane.draws:
            found.append([part])
            continue
        for group in found:
            room = min(limit, *(p.lane.training.budget for p in (*group, part)))
            if not group[0].lane.draws and sum(p.batch.tokens for p in group) + part.batch.tokens <= room:
                group.append(part)
                break
        else:
            found.append([part])
    return found


def _below(shelf: Shelf, parts: Sequence[_Part], tally: Tally) -> list[_Part]:
    """The same microbatches, with what the layers below the lowest adapted one make of them: once for those that are
    alike."""
    depth = len(shelf.layers)
    lowest = min((shelf.arms[p.lane.arm].lowest for p in parts if not p.lane.draws), default=0)
    known: dict[tuple[bytes, tuple[int, ...], tuple[int, ...]], Below] = {}
    found = []
    for part in parts:
        batch = part.batch
        tally.microbatches += 1
        tally.layer_rows += batch.tokens * depth
        tally.layer_rows_run += batch.tokens * depth
        if lowest and not part.lane.draws:
            key = (batch.tokens_T.numpy().tobytes(), batch.bounds, batch.parents)
            if key in known:
                tally.layer_rows_run -= batch.tokens * lowest
            else:
                known[key] = shelf.below(batch, lowest)
            part = part._replace(batch=replace(batch, below=known[key]))
        found.append(part)
    return found


def _backward(
    shelf: Shelf, group: Sequence[_Part], objective: Objective, count: dict[int, float], number: int
) -> list[float]:
    """Adds the shares of these microbatches to their lanes' gradients; returns their shares of the losses."""
    first = group[0]
    if len(group) == 1:
        with shelf.only(first.lane.arm) as policy:
            policy.model.train()
            torch.manual_seed(part_seed(first.lane.training.seed, first.lane.step, number))
            signals = [policy.listen(first.batch)]
            losses = [objective.loss(signals[0], first.batch) / count[id(first.lane)]]
            losses[0].backward()  # type: ignore[no-untyped-call]
        return [float(losses[0].detach())]
    with shelf.together([part.lane.arm for part in group]) as policy:
        policy.model.train()
        signals = shelf.listen([part.batch for part in group])
        losses = [
            objective.loss(said, part.batch) / count[id(part.lane)] for said, part in zip(signals, group, strict=True)
        ]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    return [float(loss.detach()) for loss in losses]


def _update(
    lane: Lane, microbatches: Sequence[Batch], loss: float, units: float, *, seconds: float
) -> StepReport | NotFinite:
    steps = len(lane.source)
    try:
        norm, rate = update(
            lane.optimizer, lane.parameters, lane.training, step=lane.step, steps=steps, loss=loss, units=units
        )
    except NotFinite as error:
        lane.live = False
        return error
    lane.step += 1
    lane.live = lane.step < steps
    return StepReport(
        step=lane.step,
        loss=loss,
        grad_norm=norm,
        rate=rate,
        units=units,
        tokens=sum(batch.plain_tokens for batch in microbatches),
        computed=sum(batch.tokens for batch in microbatches),
        seconds=seconds,
        memory_bytes=peak_memory(),
    )
