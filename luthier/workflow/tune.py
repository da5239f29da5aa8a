"""`tune` and `resume`: prepare, train, compare, package. Each stage leaves its result in the run folder, so that resume
is "go on with the first stage that is not finished"."""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier import cache
from luthier.batch import Source
from luthier.data import templates, tokens
from luthier.data.read import find
from luthier.data.source import EpochSource, stream
from luthier.errors import InputError, Interrupted, NotFinite
from luthier.models.adapters import trained, weight_count
from luthier.models.policy import Policy
from luthier.models.sources import Origin
from luthier.objectives import OBJECTIVES
from luthier.recipe import Recipe, Supervised
from luthier.recipe.load import dump, load
from luthier.runs.folder import RunFolder, read_json, write_json, write_text
from luthier.runs.journal import Journal, read
from luthier.runs.manifest import write_manifest
from luthier.training.checkpoint import Progress, load_checkpoint, prune, save_checkpoint, usable
from luthier.training.frozen import Kept, KeptSource
from luthier.training.loop import mean_loss, peak_memory, train
from luthier.training.optim import adamw
from luthier.types import JSON, Finding, Side, StepReport
from luthier.workflow import reuse, spare
from luthier.workflow.build import build
from luthier.workflow.evaluate import evaluate_run
from luthier.workflow.forecast import forecast
from luthier.workflow.gate import beside_gate, pass_gate, refuse_blocked
from luthier.workflow.package import package
from luthier.workflow.prepare import Prepared, find_model, prepare
from luthier.workflow.probe import cached
from luthier.workflow.stop import StopRequest
from luthier.workflow.tell import Tell, silent

FIRST_STEPS = 3
"""Steps from which the time of all is told where nothing else was measured."""


@dataclass(frozen=True)
class Work:
    """A prepared run: what training, evaluation and packaging start from."""

    run: RunFolder
    recipe: Recipe
    origin: Origin
    tokenizer: Any
    journal: Journal
    tell: Tell
    past: Path | None = None
    """Where earlier runs are noted, whose results may be taken over; see `cache.past`."""
    whole: Path | None = None
    """The run that `luthier resume` goes on with, where this is an arm of it."""

    def say(self, event: str, **values: Any) -> None:
        """Writes an event into the journal and tells it."""
        self.tell(self.journal.write(event, **values))


def tune(recipe: Recipe, root: Path, *, tell: Tell = silent, past: Path | None = None) -> RunFolder:
    """Runs a recipe in a new folder.

    Args:
        past: where earlier runs are noted (`cache.past`): what one of them computed from the same is taken over.

    Raises:
        LuthierError: what stopped it; the folder holds what was done.
    """
    run = RunFolder.create(Path(root))
    write_text(run.asked, dump(recipe))
    with Journal(run.events) as journal:
        try:
            return _go(run, recipe, journal, tell, past)
        except InputError:
            if not run.manifest.exists():
                take_back(run)
            raise


def take_back(run: RunFolder) -> None:
    """Empties the folder of a run that was refused before it was prepared, so that the next try may take it."""
    for path in (run.asked, run.events):
        path.unlink(missing_ok=True)
    for folder in ("data", "gate"):
        shutil.rmtree(run.root / folder, ignore_errors=True)
    # What else lies there is not ours, and the folder may be a mount or the one that the command runs in.
    with contextlib.suppress(OSError):
        run.root.rmdir()


def resume(root: Path, *, tell: Tell = silent, past: Path | None = None) -> RunFolder:
    """Goes on with a run that was stopped or killed at any moment.

    Args:
        past: as for `tune`.

    Raises:
        InputError: there is no run, or its base model or recipe is no longer the one it began with.
    """
    run = RunFolder.open(Path(root))
    if any(event["event"] == "finished" for event in read(run.events)):
        if not run.report.exists() and run.manifest.exists():
            _describe(run)
            return run
        raise InputError("this run is finished", where=str(root), do=f"luthier show {root}, or start a new run")
    if run.sweep.exists() and not run.manifest.exists():
        # A sweep is made of this module's stages.
        from luthier.workflow import sweep

        return sweep.resume(run, tell=tell, past=past)
    with Journal(run.events) as journal:
        return _go(run, load(run.asked), journal, tell, past)


def _go(run: RunFolder, asked: Recipe, journal: Journal, tell: Tell, past: Path | None) -> RunFolder:
    with StopRequest() as stop:
        began = time.perf_counter()
        begun = run.manifest.exists()
        work = reopen(run, journal, tell, past=past) if begun else begin(run, asked, journal, tell, past=past)
        policy, progress = train_run(work, stop)
        complete(work, policy, progress, stop, began=began)
    return run


def complete(
    work: Work, policy: Policy, progress: Progress, stop: StopRequest, *, began: float, compare: bool = True
) -> None:
    """What follows training: the comparison, where it is wanted, then the package, the card and the report.

    Args:
        policy: with the best weights.
        began: of this work, in seconds of `time.perf_counter`.

    Raises:
        Interrupted: a stop was asked for; what is done is saved.
    """
    run = work.run
    _heed(stop, work, "training is finished and saved")
    if compare and work.recipe.evaluation.enabled and not run.evaluation.exists():
        evaluate_run(
            run, work.recipe, work.origin, work.tokenizer, policy, say=work.say, tell=work.tell, past=work.past
        )
    _heed(stop, work, "training and evaluation are finished and saved")
    package(run, work.recipe, work.origin, work.tokenizer, policy)
    work.say(
        "finished",
        step=progress.step,
        best_step=progress.best_step or progress.step,
        seconds=round(time.perf_counter() - began, 3),
        memory_bytes=peak_memory(),
        **work_done(read(run.events)),
        expected=expected_of(read(run.events)),
        saved=spare.account(read(run.events)),
    )
    _describe(run)


def _describe(run: RunFolder) -> None:
    """Card and report are written last: they read the folder alone."""
    from luthier.governance.card import write_card
    from luthier.report.page import write_report

    write_card(run)
    write_report(run)


def _heed(stop: StopRequest, work: Work, what: str) -> None:
    if stop.wanted:
        raise Interrupted(f"stopped; {what}", do=f"luthier resume {work.whole or work.run.root}")


def begin(run: RunFolder, asked: Recipe, journal: Journal, tell: Tell, *, past: Path | None = None) -> Work:
    """Prepares a new run; its manifest is written last. `past` as for `tune`."""
    tell(journal.write("created", run=str(run.root)))
    prepared = prepare(asked, run.root, tell=tell, past=past)
    seen = pass_gate(prepared.recipe, prepared.loaded, prepared.tokenizer, run.root, tell=tell, past=past)
    refuse_blocked(seen, prepared.recipe)
    findings = [*seen, *beside_gate(prepared.findings, seen)]
    work = Work(run, prepared.recipe, prepared.origin, prepared.tokenizer, journal, tell, past)
    write_text(run.recipe, dump(prepared.recipe))
    write_json(run.derived, [d.as_dict() for d in prepared.derived])
    write_json(run.findings, [f.as_dict() for f in findings])
    for derived in prepared.derived:
        work.say("derived", **derived.as_dict())
    for finding in findings:
        work.say("finding", **finding.as_dict())
    over_long = sum(f.count for f in prepared.findings if f.rule == "over_long")
    dropped = sum(f.count for f in prepared.findings if f.rule in ("bad_row", "unrenderable_row", "leak"))
    for side, written in prepared.sides.items():
        first = side == "train"
        work.say(
            "prepared",
            side=side,
            rows=written.sequences,
            **{k: v for k, v in written._asdict().items() if k != "sequences"},
            over_long=over_long if first else 0,
            dropped=dropped if first else 0,
            taken_from=None if prepared.taken_from is None else str(prepared.taken_from),
        )
    write_manifest(
        run,
        base=base_facts(prepared.origin),
        data=_data_facts(prepared),
        seeds={"training": prepared.recipe.training.seed},
    )
    if past is not None and prepared.key is not None:
        cache.remember(past, reuse.KIND, prepared.key, run.root / "data" / reuse.FACTS)
    return work


def reopen(run: RunFolder, journal: Journal, tell: Tell, *, past: Path | None = None) -> Work:
    """Reads a prepared run again. `past` as for `tune`.

    Raises:
        InputError: its recipe or base model is not what it began with.
    """
    manifest = read_json(run.manifest)
    if hashlib.sha256(run.recipe.read_bytes()).hexdigest() != manifest["recipe_sha256"]:
        raise InputError(
            "the recipe is not the one that this run began with",
            where=str(run.recipe),
            got="another hash than manifest.json",
            do="undo the change, or start a new run with it",
        )
    recipe = load(run.recipe)
    origin, tokenizer = find_model(recipe, tell)
    if dict(origin.files) != manifest["base"]["files"]:
        raise InputError(
            "the base model is not the one that this run began with",
            where=recipe.model.source,
            got="its files have other hashes than manifest.json",
            do="put the old files back, or start a new run",
        )
    if isinstance(recipe.objective, Supervised):
        templates.ensure_template(tokenizer, recipe.model.template)
    return Work(run, recipe, origin, tokenizer, journal, tell, past)


def base_facts(origin: Origin) -> JSON:
    """What the manifest says of the base model."""
    return {
        "source": origin.source,
        "kind": origin.kind,
        "revision": origin.revision,
        "licence": origin.licence,
        "sha256": origin.sha256,
        "files": dict(origin.files),
    }


def _data_facts(prepared: Prepared) -> list[JSON]:
    data = prepared.recipe.data
    files = {side: find(getattr(data, side)).files for side in ("validation", "test")}
    return [
        {
            "file": file,
            "sha256": prepared.loaded.sha256[file],
            "rows": count.good,
            "bad": count.bad,
            "dropped": count.dropped,
            "side": next((side for side, names in files.items() if file in names), "train"),
        }
        for file, count in prepared.loaded.counts.items()
    ]


def train_run(work: Work, stop: StopRequest) -> tuple[Policy, Progress]:
    """Trains to the end, or goes on from the newest whole checkpoint; returns the policy with the best weights."""
    policy, notes = build(work.recipe, work.origin)
    spared = spare.plan(work.run, policy, _source(work, policy))
    course = start_course(work, policy, (*notes, *spared.notes), trained(policy.model), saved=spared.saved)
    objective, training = OBJECTIVES[work.recipe.objective.kind], work.recipe.training  # type: ignore[union-attr]
    unfinished = not course.progress.done
    if unfinished:
        if policy.device.type == "cpu":
            speed = cached(work.recipe, work.origin)
            work.say("forecast", **forecast(work.recipe, work.origin, work.run.root / "data", speed=speed).as_dict())
        source: Source = course.source
        if spared.layers:
            heed = partial(_heed, stop, work, f"step {course.progress.step} is finished and saved")
            course.kept = spare.states(work.run, work.recipe, policy, spared.layers, tell=work.tell, heed=heed)
            source = KeptSource(source, course.kept["train"])
        steps = train(policy, source, objective, course.optimizer, training, start=course.progress.step)
        for report in steps:
            wanted = advance(course, policy, report, stop)
            if course.progress.done:
                break
            if wanted:
                raise interrupted(work, report.step, len(course.source))
    spare.discard(work.run)
    keep_best(course)
    return policy, course.progress


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


def _source(work: Work, policy: Policy) -> EpochSource:
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
    source = _source(work, policy)
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
    """Writes down a step, validates and saves where that is due, and says in `course.progress` how far it has got.

    Args:
        policy: with the run's adapter in place.

    Returns:
        Whether a stop was asked for; the step is saved then.

    Raises:
        NotFinite: the validation loss is not a number.
    """
    work = course.work
    work.say("step", **asdict(report))
    course.progress = _after_step(course, policy, report, last=report.step == len(course.source))
    due = report.step % (work.recipe.training.checkpoint_every or 1) == 0
    # Read once: a signal that comes after the save would end the run without one.
    wanted = stop.wanted
    if due or wanted or course.progress.done or course.progress.best_step == report.step:
        save(course)
    return wanted


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


def expected_of(events: list[JSON]) -> JSON | None:
    """What was expected when training began, with what its steps took; None where nothing was.

    Where no probe had measured this machine, the time is that of the first steps times the tokens that were left.
    """
    told = next((e for e in events if e["event"] == "forecast"), None)
    steps = [e for e in events if e["event"] == "step"]
    if told is None or not steps:
        return None
    keys = ("memory_bytes", "steps", "computed", "training_seconds")
    found = {key: told[key] for key in keys}
    if told["training_seconds"] is None:
        first = steps[:FIRST_STEPS]
        each = sum(e["seconds"] for e in first) / sum(e["computed"] for e in first)
        found["training_seconds"] = round(each * told["computed"], 1)
    measured = told["training_seconds"] is not None
    return {**found, "by": "probe" if measured else "first steps", "took": round(sum(e["seconds"] for e in steps), 1)}


def work_done(events: list[JSON]) -> JSON:
    """Tokens of the examples, how many of them were computed, and the speed in tokens of the examples."""
    steps = [e for e in events if e["event"] == "step"]
    tokens, computed, seconds = (sum(e[key] for e in steps) for key in ("tokens", "computed", "seconds"))
    speed = round(tokens / seconds, 1) if seconds else 0.0
    return {"tokens": tokens, "computed": computed, "tokens_per_second": speed}
