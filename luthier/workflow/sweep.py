"""`tune --sweep`: arms that differ in rate, rank, seed or data, trained over one frozen base; the best one becomes the
run.

    RUN/arms/NAME/   each arm, a whole run but for the comparison with the base
    RUN/             once the arms have ended, the run of the arm with the lowest validation loss: its recipe, journal,
                     data and checkpoints are taken over, and it goes on as any run does

Every arm's numbers are those that it would have alone, up to the rounding of passes that it shares. Arms are saved in
the same rounds, and resume goes on from the newest round that all of them have: the same passes are shared again, so
the numbers are those of a sweep that was not stopped, to the bit. Arms that were validated on different rows cannot be
told apart by their losses: then there is no winner, and each is compared with the base by itself.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.errors import InputError, NotFinite, RecipeError
from luthier.models.grouped import Shelf
from luthier.models.starts import MOVES_THE_BASE
from luthier.objectives import OBJECTIVES
from luthier.recipe import Lora, Recipe
from luthier.recipe.load import dump, load
from luthier.recipe.sweep import Axis, grid
from luthier.report.page import write_report
from luthier.runs.folder import RunFolder, read_json, storage, sync, write_bytes, write_json, write_text
from luthier.runs.journal import Journal, read
from luthier.training.checkpoint import level
from luthier.training.loop import peak_memory
from luthier.training.sweep import Lane, Tally, train_together
from luthier.types import JSON
from luthier.workflow import tune
from luthier.workflow.build import adapter_notes, build_base, head_modules
from luthier.workflow.course import Course, due, interrupted, keep_best, record, save, start_course
from luthier.workflow.stop import StopRequest
from luthier.workflow.tell import Tell, silent
from luthier.workflow.work import Work, begin, reopen, take_back

TAKEN_OVER = ("derived", "finding", "prepared", "started", "resumed", "step", "validation", "checkpoint", "stopped")
"""Events of the chosen arm that belong to the run."""
SAID_ONCE = ("derived", "finding", "prepared", "progress")
"""Events of preparation, which are much the same for every arm."""


def sweep(
    recipe: Recipe, axes: Sequence[Axis], root: Path, *, tell: Tell = silent, past: Path | None = None
) -> RunFolder:
    """Trains every arm of the grid in a new folder, and finishes the best one as the run of that folder.

    Args:
        past: as for `tune`.

    Raises:
        LuthierError: what stopped it; the folder holds what was done. An arm whose loss is no number ends alone.
    """
    arms = grid(recipe, axes)
    run = RunFolder.create(Path(root))
    write_text(run.asked, dump(recipe))
    for arm in arms:
        write_text(RunFolder(run.arms / arm.name).asked, dump(arm.recipe))
    write_json(run.sweep, {"arms": [{"name": arm.name, "values": arm.values} for arm in arms]})
    with Journal(run.events) as journal:
        tell(journal.write("created", run=str(run.root)))
        try:
            return _go(run, journal, tell, past)
        except InputError:
            if not all(RunFolder(run.arms / arm.name).manifest.exists() for arm in arms):
                shutil.rmtree(run.arms, ignore_errors=True)
                run.sweep.unlink()
                take_back(run)
            raise


def resume(run: RunFolder, *, tell: Tell = silent, past: Path | None = None) -> RunFolder:
    """Goes on with a sweep that was stopped or killed before an arm was chosen.

    Args:
        past: as for `tune`.

    Raises:
        InputError: a recipe or the base model is no longer what it began with.
    """
    with Journal(run.events) as journal:
        return _go(run, journal, tell, past)


def _go(run: RunFolder, journal: Journal, tell: Tell, past: Path | None) -> RunFolder:
    began = time.perf_counter()
    with StopRequest() as stop:
        alike = _train_arms(run, journal, tell, stop, past)
        table = _table(run)
        if all(row["failed"] for row in table):
            raise NotFinite(
                "no arm of the sweep came to its end",
                where=str(run.root),
                got=f"{len(table)} arms whose loss or gradient is not a finite number",
                do="start a new sweep with lower values of training.rate",
            )
        if not alike:
            _end_without_choice(run, table, journal, tell, began)
            return run
        chosen = min((row for row in table if not row["failed"]), key=lambda row: row["loss"])
        _adopt(run, chosen["name"], table, journal, tell)
        work = reopen(run, journal, tell, past=past)
        policy, progress = tune.train_run(work, stop)
        tune.complete(work, policy, progress, stop, began=began)
    return run


def _train_arms(run: RunFolder, journal: Journal, tell: Tell, stop: StopRequest, past: Path | None) -> bool:
    """Trains and packages what is left of the arms; returns whether all of them were validated on the same rows."""
    names = [arm["name"] for arm in read_json(run.sweep)["arms"]]
    with ExitStack() as journals:
        # Arms find the rows of the first one in the same way as runs find those of earlier runs.
        shared = past or Path(journals.enter_context(TemporaryDirectory(prefix="luthier-sweep-")))
        left = [name for name in names if not _ended(RunFolder(run.arms / name))]
        arms = [_open(run, name, journals, tell, first=name == left[0], past=past, shared=shared) for name in left]
        alike = _alike([RunFolder(run.arms / name) for name in names])
        if arms:
            why = apart([load(RunFolder(run.arms / name).recipe) for name in names])
            tell(journal.write("sweep", arms=len(names), left=len(left), together=not why, why=why))
            tally = _in_turn(arms, stop, compare=not alike) if why else _together(arms, stop, compare=not alike)
            tell(journal.write("spared", **tally))
    return alike


def _ended(arm: RunFolder) -> bool:
    return arm.events.exists() and any(event["event"] in ("finished", "failed") for event in read(arm.events))


def _open(
    run: RunFolder, name: str, journals: ExitStack, tell: Tell, *, first: bool, past: Path | None, shared: Path
) -> Work:
    """An arm before its next step. `shared` is where arms note the rows that they have prepared."""
    arm = RunFolder(run.arms / name)
    journal = journals.enter_context(Journal(arm.events))

    def listen(event: JSON) -> None:
        if event["event"] != "created" and (first or event["event"] not in SAID_ONCE):
            tell({**event, "arm": name})

    if arm.manifest.exists():
        work = reopen(arm, journal, listen)
    else:
        work = begin(arm, load(arm.asked), journal, listen, past=shared)
    return replace(work, whole=run.root, past=past)


def _alike(arms: Sequence[RunFolder]) -> bool:
    """Whether all arms have the same validation rows.

    Raises:
        RecipeError: they are the same because there are none.
    """
    found = set()
    for arm in arms:
        folder, digest = arm.side("validation"), hashlib.sha256()
        for path in sorted(folder.iterdir()) if folder.exists() else ():
            if path.name != "rows.npy":
                digest.update(path.read_bytes())
        found.add(digest.hexdigest())
    if found == {hashlib.sha256().hexdigest()}:
        raise RecipeError(
            "a sweep picks its best arm by the validation loss, and no rows are held back for validation",
            do="data.split.validation, or a validation file",
        )
    return len(found) == 1


def apart(recipes: Sequence[Recipe]) -> str:
    """Why these arms cannot stand side by side on one base in memory; empty where they can."""
    if len(recipes) < 2:
        return "there is one arm"
    for recipe in recipes:
        adapter = recipe.adapter
        if not isinstance(adapter, Lora):
            return "only LoRA adapters stand side by side on one base"
        if adapter.dora or adapter.modules_to_save or adapter.init in MOVES_THE_BASE:
            return "DoRA, modules_to_save and starts that change the base need a base of their own"
        if OBJECTIVES[recipe.objective.kind].sequence:  # type: ignore[union-attr]
            return "a classifier's head is trained whole, one for each arm"
        if recipe.model.quantise != "none":
            return "a quantised base is made anew for each arm"
    if any((r.model, r.training.threads) != (recipes[0].model, recipes[0].training.threads) for r in recipes):
        return "the arms compute in different precision"
    return ""


def _in_turn(arms: Sequence[Work], stop: StopRequest, *, compare: bool) -> JSON:
    """Trains each arm to its end before the next one begins, every one with a base of its own."""
    for work in arms:
        began = time.perf_counter()
        try:
            policy, progress = tune.train_run(work, stop)
        except NotFinite as error:
            _fail(work, error)
        else:
            tune.complete(work, policy, progress, stop, began=began, compare=compare)
    return asdict(Tally())


def _together(arms: Sequence[Work], stop: StopRequest, *, compare: bool) -> JSON:
    """Trains all arms over one base in memory, a step of each in every round."""
    began, tally = time.perf_counter(), Tally()
    policy, notes = build_base(arms[0].recipe, arms[0].origin)
    if head_modules(policy):
        return _in_turn(arms, stop, compare=compare)
    shelf = Shelf(policy)
    level([work.run.checkpoints for work in arms])
    courses: list[Course] = []
    lanes: list[Lane] = []
    for place, work in enumerate(arms):
        adapter, training = work.recipe.adapter, work.recipe.training
        assert isinstance(adapter, Lora)
        parameters = shelf.add(adapter, seed=training.seed).parameters
        with shelf.only(place):
            course = start_course(work, policy, (*notes, *adapter_notes(work.recipe)), parameters)
            draws = not policy.shares
        courses.append(course)
        step, live = course.progress.step, not course.progress.done
        trained = list(parameters.values())
        lanes.append(Lane(place, course.source, course.optimizer, trained, training, draws, step, live))
    failed = _rounds(shelf, courses, lanes, stop, tally)
    for place, course in enumerate(courses):
        if place not in failed:
            with shelf.only(place):
                keep_best(course)
                tune.complete(course.work, policy, course.progress, stop, began=began, compare=compare)
    return asdict(tally)


def _rounds(
    shelf: Shelf, courses: Sequence[Course], lanes: Sequence[Lane], stop: StopRequest, tally: Tally
) -> set[int]:
    """Consumes the rounds of training; returns the places of arms that ended in a number that is none.

    Where one arm is due to be saved, all are; those that failed are said to have done so after that. So whenever this
    is killed, the newest step that all arms have is one from which every round is as it was.
    """
    failed: dict[int, NotFinite] = {}
    objective = OBJECTIVES[courses[0].work.recipe.objective.kind]  # type: ignore[union-attr]
    for results in train_together(shelf, lanes, objective, tally=tally):
        ended: dict[int, NotFinite] = {}
        for lane, report in results:
            course = courses[lane.arm]
            try:
                if isinstance(report, NotFinite):
                    raise report
                with shelf.only(lane.arm) as policy:
                    record(course, policy, report)
            except NotFinite as error:
                ended[lane.arm] = error
            lane.live = lane.arm not in ended and not course.progress.done
        going = [courses[lane.arm] for lane, _ in results if lane.arm not in ended]
        # Read once: a signal that comes after the save would end the run without one.
        wanted = stop.wanted
        if wanted or ended or any(map(due, going)):
            for course in going:
                save(course)
        for place, reason in ended.items():
            _fail(courses[place].work, reason)
        failed |= ended
        if wanted and (live := [courses[lane.arm] for lane in lanes if lane.live]):
            raise interrupted(live[0].work, live[0].progress.step, len(live[0].source))
    return set(failed)


def _fail(work: Work, error: NotFinite) -> None:
    """Ends one arm; the others go on."""
    work.say("failed", reason=f"{error.where}: {error.what} ({error.got})")


def _table(run: RunFolder) -> list[JSON]:
    """One row for each arm, from its journal."""
    rows = []
    for arm in read_json(run.sweep)["arms"]:
        events = read(RunFolder(run.arms / arm["name"]).events)
        steps = [e for e in events if e["event"] == "step"]
        best = min((e for e in events if e["event"] == "validation"), key=lambda e: e["loss"], default=None)
        rows.append(
            {
                "name": arm["name"],
                "values": arm["values"],
                "loss": best and best["loss"],
                "step": best and best["step"],
                "steps": len(steps),
                "tokens": sum(e["tokens"] for e in steps),
                "seconds": round(sum(e["seconds"] for e in steps), 3),
                "failed": next((e["reason"] for e in events if e["event"] == "failed"), None),
            }
        )
    return rows


def _adopt(run: RunFolder, name: str, table: list[JSON], journal: Journal, tell: Tell) -> None:
    """Makes the run that of an arm. Its manifest is written last: without it, all of this is done again."""
    arm = RunFolder(run.arms / name)
    spared = [{k: v for k, v in e.items() if k not in ("event", "time")} for e in _all(run, "spared")]
    # What a kill left of an earlier try stands before this and does not count.
    journal.write("created", run=str(run.root))
    for one in spared:
        journal.write("spared", **one)
    tell(journal.write("swept", chosen=name, arms=table))
    for event in read(arm.events):
        if event["event"] in TAKEN_OVER:
            values = {key: value for key, value in event.items() if key != "event"}
            journal.write(event["event"], **({**values, "run": str(run.root)} if "run" in values else values))
    for folder in ("data", "checkpoints"):
        _linked(arm.root / folder, run.root / folder)
    for path in (arm.recipe, arm.derived, arm.findings):
        write_bytes(run.root / path.name, path.read_bytes())
    write_json(run.manifest, {**read_json(arm.manifest), "parents": [f"arms/{name}"]})


def _all(run: RunFolder, kind: str) -> list[JSON]:
    return [event for event in read(run.events) if event["event"] == kind]


def _linked(source: Path, target: Path) -> None:
    """The same files under another folder, without a second copy on the disk."""
    beside = target.with_name(f".{target.name}.partial")
    with storage(target):
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, beside, copy_function=os.link)
        os.rename(beside, target)
        sync(target.parent)


def _end_without_choice(run: RunFolder, table: list[JSON], journal: Journal, tell: Tell, began: float) -> None:
    """Each arm has been compared with the base by itself; the run says where."""
    tell(journal.write("swept", chosen=None, arms=table))
    tokens, seconds = (sum(row[key] for row in table) for key in ("tokens", "seconds"))
    tell(
        journal.write(
            "finished",
            step=sum(row["steps"] for row in table),
            best_step=None,
            seconds=round(time.perf_counter() - began, 3),
            memory_bytes=peak_memory(),
            tokens=tokens,
            computed=tokens,
            tokens_per_second=round(tokens / seconds, 1) if seconds else 0.0,
        )
    )
    write_report(run)
