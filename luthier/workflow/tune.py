"""`tune` and `resume`: prepare, train, compare, package. Each stage leaves its result in the run folder, so that resume
is "go on with the first stage that is not finished"."""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luthier.data import templates, tokens
from luthier.data.read import find
from luthier.data.source import EpochSource, stream
from luthier.errors import InputError, Interrupted, NotFinite
from luthier.models.adapters import trained
from luthier.models.policy import Policy
from luthier.models.sources import Origin
from luthier.objectives import OBJECTIVES
from luthier.recipe import Recipe, Supervised
from luthier.recipe.load import dump, load
from luthier.runs.folder import RunFolder, read_json, write_json, write_text
from luthier.runs.journal import Journal, read
from luthier.runs.manifest import write_manifest
from luthier.training.checkpoint import Progress, load_checkpoint, prune, save_checkpoint, usable
from luthier.training.loop import mean_loss, peak_memory, train
from luthier.training.optim import adamw
from luthier.types import JSON, Finding, StepReport
from luthier.workflow.build import build
from luthier.workflow.evaluate import evaluate_run
from luthier.workflow.package import package
from luthier.workflow.prepare import Prepared, find_model, prepare
from luthier.workflow.stop import StopRequest
from luthier.workflow.tell import Tell, silent


@dataclass(frozen=True)
class Work:
    """A prepared run: what training, evaluation and packaging start from."""

    run: RunFolder
    recipe: Recipe
    origin: Origin
    tokenizer: Any
    journal: Journal
    tell: Tell

    def say(self, event: str, **values: Any) -> None:
        """Writes an event into the journal and tells it."""
        self.tell(self.journal.write(event, **values))


def tune(recipe: Recipe, root: Path, *, tell: Tell = silent) -> RunFolder:
    """Runs a recipe in a new folder.

    Raises:
        LuthierError: what stopped it; the folder holds what was done.
    """
    run = RunFolder.create(Path(root))
    write_text(run.asked, dump(recipe))
    with Journal(run.events) as journal:
        try:
            return _go(run, recipe, journal, tell)
        except InputError:
            if not run.manifest.exists():
                _take_back(run)
            raise


def _take_back(run: RunFolder) -> None:
    """Empties the folder of a run that was refused before it was prepared, so that the next try may take it."""
    for path in (run.asked, run.events):
        path.unlink(missing_ok=True)
    shutil.rmtree(run.root / "data", ignore_errors=True)
    # What else lies there is not ours, and the folder may be a mount or the one that the command runs in.
    with contextlib.suppress(OSError):
        run.root.rmdir()


def resume(root: Path, *, tell: Tell = silent) -> RunFolder:
    """Goes on with a run that was stopped or killed at any moment.

    Raises:
        InputError: there is no run, or its base model or recipe is no longer the one it began with.
    """
    run = RunFolder.open(Path(root))
    if any(event["event"] == "finished" for event in read(run.events)):
        if not run.report.exists():
            _describe(run)
            return run
        raise InputError("this run is finished", where=str(root), do=f"luthier show {root}, or start a new run")
    with Journal(run.events) as journal:
        return _go(run, load(run.asked), journal, tell)


def _go(run: RunFolder, asked: Recipe, journal: Journal, tell: Tell) -> RunFolder:
    with StopRequest() as stop:
        work = _reopen(run, journal, tell) if run.manifest.exists() else _begin(run, asked, journal, tell)
        began = time.perf_counter()
        policy, progress = _train(work, stop)
        _heed(stop, run, "training is finished and saved")
        if work.recipe.evaluation.enabled and not run.evaluation.exists():
            evaluate_run(run, work.recipe, work.origin, work.tokenizer, policy, say=work.say, tell=tell)
        _heed(stop, run, "training and evaluation are finished and saved")
        kept = progress.best_step or progress.step
        package(run, work.recipe, work.origin, work.tokenizer, policy)
        work.say(
            "finished",
            step=progress.step,
            best_step=kept,
            seconds=round(time.perf_counter() - began, 3),
            memory_bytes=peak_memory(),
            tokens_per_second=_speed(read(run.events)),
        )
        _describe(run)
    return run


def _describe(run: RunFolder) -> None:
    """Card and report are written last: they read the folder alone."""
    from luthier.governance.card import write_card
    from luthier.report.page import write_report

    write_card(run)
    write_report(run)


def _heed(stop: StopRequest, run: RunFolder, what: str) -> None:
    if stop.wanted:
        raise Interrupted(f"stopped; {what}", do=f"luthier resume {run.root}")


def _begin(run: RunFolder, asked: Recipe, journal: Journal, tell: Tell) -> Work:
    tell(journal.write("created", run=str(run.root)))
    prepared = prepare(asked, run.root, tell=tell)
    work = Work(run, prepared.recipe, prepared.origin, prepared.tokenizer, journal, tell)
    write_text(run.recipe, dump(prepared.recipe))
    write_json(run.derived, [d.as_dict() for d in prepared.derived])
    write_json(run.findings, [f.as_dict() for f in prepared.findings])
    for derived in prepared.derived:
        work.say("derived", **derived.as_dict())
    for finding in prepared.findings:
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
        )
    write_manifest(
        run,
        base=base_facts(prepared.origin),
        data=_data_facts(prepared),
        seeds={"training": prepared.recipe.training.seed},
    )
    return work


def _reopen(run: RunFolder, journal: Journal, tell: Tell) -> Work:
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
    return Work(run, recipe, origin, tokenizer, journal, tell)


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


def _train(work: Work, stop: StopRequest) -> tuple[Policy, Progress]:
    """Trains to the end, or goes on from the newest whole checkpoint; returns the policy with the best weights."""
    recipe, run = work.recipe, work.run
    training, objective = recipe.training, OBJECTIVES[recipe.objective.kind]  # type: ignore[union-attr]
    store = tokens.open_store(run.side("train"))
    source = EpochSource(
        store,
        batch_examples=training.batch_examples,
        microbatch_tokens=training.microbatch_tokens,
        epochs=training.epochs,
        seed=training.seed,
        max_steps=training.max_steps,
    )
    policy, notes = build(recipe, work.origin)
    parameters = trained(policy.model)
    assert training.rate is not None
    optimizer = adamw(parameters, training, rate=training.rate)
    progress = _restore(work, parameters, optimizer)
    numbers = {"trained": sum(p.numel() for p in parameters.values())}
    numbers["weights"] = sum(p.numel() for p in policy.model.parameters())
    work.say(
        "resumed" if progress.step else "started",
        run=str(run.root),
        step=progress.step,
        steps=len(source),
        steps_per_epoch=source.steps_per_epoch,
        tokens_per_epoch=int(store.offsets[-1]),
        notes=list(notes),
        **numbers,
    )
    if not progress.step:
        # Proves that the disk takes a checkpoint before anything is spent on training.
        save_checkpoint(run.checkpoints, parameters, optimizer, progress)
    if not progress.done:
        steps = train(policy, source, objective, optimizer, training, start=progress.step)
        for report in steps:
            work.say("step", **asdict(report))
            progress = _after_step(work, policy, report, progress, last=report.step == len(source))
            due = report.step % (training.checkpoint_every or 1) == 0
            # Read once: a signal that comes after the save would end the run without one.
            wanted = stop.wanted
            if due or progress.done or wanted or progress.best_step == report.step:
                path = save_checkpoint(run.checkpoints, parameters, optimizer, progress)
                work.say("checkpoint", step=progress.step, folder=path.name)
                prune(run.checkpoints)
            if progress.done:
                break
            if wanted:
                raise _interrupted(run, report.step, len(source))
    if progress.best_step not in (None, progress.step):
        load_checkpoint(run.checkpoints / f"step-{progress.best_step:06d}", parameters, None)
    return policy, progress


def _restore(work: Work, parameters: Any, optimizer: Any) -> Progress:
    path, damaged = usable(work.run.checkpoints)
    for bad in damaged:
        message = f"{bad.name} is damaged and was removed; the one before it is used"
        work.say("finding", **Finding("damaged_checkpoint", "warn", message, "check the disk").as_dict())
        shutil.rmtree(bad)
    return load_checkpoint(path, parameters, optimizer) if path else Progress()


def _after_step(work: Work, policy: Policy, report: StepReport, progress: Progress, *, last: bool) -> Progress:
    """Validates where it is due, remembers the best step, and says whether training has ended."""
    training = work.recipe.training
    progress = replace(progress, step=report.step, done=last)
    folder = work.run.side("validation")
    due = report.step % (training.validate_every or 1) == 0 or last
    if not due or not folder.exists():
        return progress
    store = tokens.open_store(folder)
    batches = stream(store, np.arange(len(store)), training.microbatch_tokens)
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


def _interrupted(run: RunFolder, step: int, steps: int) -> Interrupted:
    return Interrupted(
        f"stopped after step {step} of {steps}; everything up to it is saved", do=f"luthier resume {run.root}"
    )


def _speed(events: list[JSON]) -> float:
    steps = [e for e in events if e["event"] == "step"]
    seconds = sum(e["seconds"] for e in steps)
    return round(sum(e["tokens"] for e in steps) / seconds, 1) if seconds else 0.0
