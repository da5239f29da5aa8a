"""`tune` and `resume`: prepare, train, compare, package. Each stage leaves its result in the run folder, so that resume
is "go on with the first stage that is not finished"."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

from luthier.batch import Source
from luthier.errors import InputError, Interrupted
from luthier.models.adapters import trained
from luthier.models.policy import Policy
from luthier.objectives import OBJECTIVES
from luthier.recipe import Recipe
from luthier.recipe.load import dump, load
from luthier.runs.folder import RunFolder, write_text
from luthier.runs.journal import Journal, read
from luthier.training.checkpoint import Progress
from luthier.training.frozen import KeptSource
from luthier.training.loop import peak_memory, train
from luthier.types import JSON
from luthier.workflow import spare
from luthier.workflow.build import build
from luthier.workflow.course import advance, interrupted, keep_best, source_of, start_course
from luthier.workflow.evaluate import evaluate_run
from luthier.workflow.forecast import expected, forecast
from luthier.workflow.package import package
from luthier.workflow.probe import cached
from luthier.workflow.stop import StopRequest
from luthier.workflow.tell import Tell, silent
from luthier.workflow.work import Work, begin, reopen, take_back


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
        expected=expected(read(run.events)),
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


def train_run(work: Work, stop: StopRequest) -> tuple[Policy, Progress]:
    """Trains to the end, or goes on from the newest whole checkpoint; returns the policy with the best weights."""
    policy, notes = build(work.recipe, work.origin)
    spared = spare.plan(work.run, policy, source_of(work, policy))
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


def work_done(events: list[JSON]) -> JSON:
    """Tokens of the examples, how many of them were computed, and the speed in tokens of the examples."""
    steps = [e for e in events if e["event"] == "step"]
    tokens, computed, seconds = (sum(e[key] for e in steps) for key in ("tokens", "computed", "seconds"))
    speed = round(tokens / seconds, 1) if seconds else 0.0
    return {"tokens": tokens, "computed": computed, "tokens_per_second": speed}
