"""The loop: a generator of `StepReport`s. Console, journal, validation and early stopping are its consumers.

It knows no algorithm (an objective is a pure function), no files and no progress bars. What a step does depends on the
recipe, the step's number and the weights alone, so that a run may be stopped after any step and go on as if it had not
been.
"""

from __future__ import annotations

import hashlib
import math
import resource
import sys
import time
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from luthier.batch import Batch, Source
from luthier.errors import NotFinite
from luthier.models.adapters import trained
from luthier.models.device import repeatable
from luthier.models.policy import Policy
from luthier.objectives import Objective
from luthier.recipe import Training
from luthier.training.optim import clip, global_norm, rate_at
from luthier.types import StepReport


def train(
    policy: Policy,
    source: Source,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    training: Training,
    *,
    start: int = 0,
) -> Iterator[StepReport]:
    """Takes the optimizer steps `start` to the source's last, yielding a report after each.

    Raises:
        NotFinite: a loss or gradient is not a number; the weights are those of the last finished step.
    """
    parameters = list(trained(policy.model).values())
    for step in range(start, len(source)):
        began = time.perf_counter()
        microbatches = source.step(step)
        # One count for the whole step: how it is cut into microbatches never changes the gradient.
        units = math.fsum(objective.units(batch) for batch in microbatches)
        optimizer.zero_grad(set_to_none=True)
        policy.model.train()
        loss = 0.0
        with repeatable(policy.device):
            for part, batch in enumerate(microbatches):
                torch.manual_seed(part_seed(training.seed, step, part))
                loss += _backward(policy, objective, batch.to(policy.device), units)
        norm, rate = update(optimizer, parameters, training, step=step, steps=len(source), loss=loss, units=units)
        yield StepReport(
            step=step + 1,
            loss=loss,
            grad_norm=norm,
            rate=rate,
            units=units,
            tokens=sum(batch.plain_tokens for batch in microbatches),
            computed=sum(batch.tokens for batch in microbatches),
            seconds=time.perf_counter() - began,
            memory_bytes=peak_memory(),
        )


def update(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    training: Training,
    *,
    step: int,
    steps: int,
    loss: float,
    units: float,
) -> tuple[float, float]:
    """Clips the gradients of 0-based `step` out of `steps` and takes it; returns (their norm before, the rate).

    Raises:
        NotFinite: the loss or a gradient is not a number; nothing was changed.
    """
    assert training.rate is not None, "the plan derives the rate"
    norm = global_norm(parameters)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise _not_finite(step, loss, norm)
    clip(parameters, norm, training.clip)
    rate = rate_at(step, steps, peak=training.rate, warmup=training.warmup, schedule=training.schedule)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
    if units:
        optimizer.step()
    return norm, rate


def _backward(policy: Policy, objective: Objective, batch: Batch, units: float) -> float:
    """Adds this microbatch's share of the step's gradient; returns its share of the loss."""
    if not units:
        return 0.0
    loss = objective.loss(policy.listen(batch), batch) / units
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach())


def mean_loss(policy: Policy, batches: Iterator[Batch] | list[Batch], objective: Objective) -> float:
    """Summed loss / units over all batches, without dropout: the same code path as training."""
    total, units = 0.0, 0.0
    with policy.inference():
        for batch in batches:
            total += float(objective.loss(policy.listen(batch), batch))
            units += objective.units(batch)
    return total / units if units else math.nan


def part_seed(seed: int, step: int, part: int) -> int:
    """Dropout's seed for one microbatch, so that resume needs no state of a random generator."""
    digest = hashlib.blake2b(f"{seed}/{step}/{part}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _not_finite(step: int, loss: float, norm: float) -> NotFinite:
    return NotFinite(
        "the loss or its gradient is not a finite number; the weights were left as they were",
        where=f"step {step + 1}",
        got=f"loss {loss}, gradient norm {norm}",
        do="start a new run with a lower training.rate; where it comes back at the same step, look at the rows",
    )


def peak_memory() -> int:
    """Peak memory of this process in bytes: on the GPU where it computes on one, as torch's allocator counts it; else
    resident, as the operating system does."""
    if held := torch.cuda.max_memory_allocated():
        return int(held)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
