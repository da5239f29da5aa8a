"""A run in training: begun or gone on with, each step written down, validated and saved where that is due. Which steps
are taken together is the caller's: `tune` takes those of one run, `sweep` those of several."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.data import tokens
from luthier.data.source import EpochSource, stream
from luthier.errors import Interrupted, NotFinite
from luthier.models.adapters import weight_count
from luthier.models.policy import Policy
from luthier.objectives import OBJECTIVES
from luthier.training.checkpoint import Progress, load_checkpoint, prune, save_checkpoint, usable
from luthier.training.frozen import Kept
from luthier.training.loop import mean_loss
from luthier.training.optim import adamw
from luthier.types import JSON, Finding, Side, StepReport
from luthier.workflow.stop import StopRequest
from luthier.workflow.work import Work


@dataclass
class Course:
    """A run in training."""

    work: Work
    source: EpochSource
    parameters: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    progress: Progress
    kept: dict[Side, Kept] = field(default_factory=dict)
    """States of frozen lower layers, where they are computed once."""


def source_of(work: Work, policy: Policy) -> EpochSource:
    training = work.recipe.training
    return EpochSource(
        tokens.open_store(work.run.side("train")),
        batch_examples=training.batch_examples,
        microbatch_tokens=training.budget,
        epochs=training.epochs,
        seed=training.seed,
        max_steps=training.max_steps,
        share=policy.shares,
    )


def start_course(
    work: Work,
    policy: Policy,
    notes: tuple[str, ...],
    parameters: dict[str, nn.Parameter],
    *,
    saved: JSON | None = None,
) -> Course:
    """A run before its next step, which is the first or the one after its newest whole checkpoint.

    Args:
        policy: with the run's adapter in place.
        notes: what is to be said of the model.
        parameters: what is trained, by name.
        saved: which work is spared in each step, for the journal.
    """
    recipe, run = work.recipe, work.run
    training = recipe.training
    source = source_of(work, policy)
    if policy.causal and not policy.shares:
        notes = (*notes, "what rows begin with alike is computed for each of them, as each draws its own dropout")
    assert training.rate is not None
    optimizer = adamw(parameters, training, rate=training.rate, plus=getattr(recipe.adapter, "plus", None))
    progress = _restore(work, parameters, optimizer)
    if not progress.done:
        work.say(
            "resumed" if progress.step else "started",
            run=str(run.root),
            step=progress.step,
            steps=len(source),
            steps_per_epoch=source.steps_per_epoch,
            tokens_per_epoch=int(source.store.offsets[-1]),
            notes=list(notes),
            trained=sum(p.numel() for p in parameters.values()),
            weights=weight_count(policy.model),
            saved=saved or {},
        )
    if not progress.step:
        # Proves that the disk takes a checkpoint before anything is spent on training.
        save_checkpoint(run.checkpoints, parameters, optimizer, progress)
    return Course(work, source, parameters, optimizer, progress)


def advance(course: Course, policy: Policy, report: StepReport, stop: StopRequest) -> bool:
    """Records a step and saves where that is due; returns whether a stop was asked for, in which case it is saved.

    Args:
        policy: with the run's adapter in place.

    Raises:
        NotFinite: the validation loss is not a number.
    """
    record(course, policy, report)
    # Read once: a signal that comes after the save would end the run without one.
    wanted = stop.wanted
    if wanted or due(course):
        save(course)
    return wanted


def record(course: Course, policy: Policy, report: StepReport) -> None:
    """Writes down a step, validates where that is due, and says in `course.progress` how far it has got. The rest as
    for `advance`."""
    course.work.say("step", **asdict(report))
    course.progress = _after_step(course, policy, report, last=report.step == len(course.source))


def due(course: Course) -> bool:
    """Whether the newest step is to be saved."""
    progress, every = course.progress, course.work.recipe.training.checkpoint_every or 1
    return progress.step % every == 0 or progress.done or progress.best_step == progress.step


def save(course: Course) -> None:
    """Writes a checkpoint of the newest step."""
    run = course.work.run
    path = save_checkpoint(run.checkpoints, course.parameters, course.optimizer, course.progress)
    course.work.say("checkpoint", step=course.progress.step, folder=path.name)
    prune(run.checkpoints)


def keep_best(course: Course) -> None:
    """Puts the weights of the best validation back."""
    best = course.progress.best_step
    if best not in (None, course.progress.step):
        load_checkpoint(course.work.run.checkpoints / f"step-{best:06d}", course.parameters, None)


def _restore(work: Work, parameters: Any, optimizer: Any) -> Progress:
    path, damaged = usable(work.run.checkpoints)
    for bad in damaged:
        message = f"{bad.name} is damaged and was removed; the one before it is used"
        work.say("finding", **Finding("damaged_checkpoint", "warn", message, "check the disk").as_dict())
        shutil.rmtree(bad)
    return load_checkpoint(path, parameters, optimizer) if path else Progress()


def _after_step(course: Course, policy: Policy, report: StepReport, *, last: bool) -> Progress:
    """Validates where it is due, remembers the best step, and says whether training has ended."""
    work, training = course.work, course.work.recipe.training
    progress = replace(course.progress, step=report.step, done=last)
    folder = work.run.side("validation")
    due = report.step % (training.validate_every or 1) == 0 or last
    if not due or not folder.exists():
        return progress
    store = tokens.open_store(folder)
    batches = stream(store, np.arange(len(store)), training.budget, share=policy.shares)
    if (kept := course.kept.get("validation")) is not None:
        batches = map(kept.onto, batches)
    loss = mean_loss(policy, batches, OBJECTIVES[work.recipe.objective.kind])  # type: ignore[union-attr]
    if not math.isfinite(loss):
        raise NotFinite(
            "the validation loss is not a finite number",
            where=f"step {report.step}",
            got=f"loss {loss}",
            do="start a new run with a lower training.rate",
        )
    best = progress.best_loss is None or loss < progress.best_loss
    work.say("validation", step=report.step, loss=loss, best=best)
    if best:
        return replace(progress, best_step=report.step, best_loss=loss, unimproved=0)
    progress = replace(progress, unimproved=progress.unimproved + 1)
    if training.patience is not None and progress.unimproved >= training.patience and not last:
        reason = f"no better validation loss {progress.unimproved} times in a row; step {progress.best_step} is kept"
        work.say("stopped", step=report.step, reason=reason)
        return replace(progress, done=True)
    return progress


def interrupted(work: Work, step: int, steps: int) -> Interrupted:
    return Interrupted(
        f"stopped after step {step} of {steps}; everything up to it is saved",
        do=f"luthier resume {work.whole or work.run.root}",
    )
