"""The data part of a recipe to examples on disk, each with its side. Every file is read once, standard input too.

Nothing is left out in silence: a bad row or a leak stops the run with its list, or is dropped with a finding.
"""

from __future__ import annotations

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.data import split
from luthier.data.detect import Detection, detect
from luthier.data.intake import LISTED_ROWS, Facts, Intake, Problem
from luthier.data.read import STDIN, DataFile, Found, Record, find
from luthier.data.rows import column_name
from luthier.data.store import ExampleStore, StoreWriter
from luthier.errors import DataError
from luthier.recipe.data import Data
from luthier.types import JSON, SIDES, Finding, Side

LEFT_OUT = -1
"""In `Loaded.sides`: a row that leaked into a held-back side and was dropped."""
DETECTION_ROWS = 200
_PROGRESS_ROWS = 1000


class Counts(NamedTuple):
    """Rows of one file: read = good + bad. `dropped` are good rows that leaked, and were left out."""

    read: int = 0
    good: int = 0
    bad: int = 0
    dropped: int = 0


class Loaded(NamedTuple):
    store: ExampleStore
    sides: NDArray[np.int8]
    """For each example of the store, the index of its side in `types.SIDES`, or `LEFT_OUT`."""
    keys: NDArray[np.uint64]
    """For each example, the first 8 bytes of its split key (taken before `data.system` is added)."""
    split_by: str
    """The rule in force: content, label, group or time."""
    detection: Detection
    findings: list[Finding]
    counts: Mapping[str, Counts]
    """By file, in the order they were read."""
    sha256: Mapping[str, str]
    """Hex digest of each file as it stands on disk; of what was received, for standard input."""


def load_examples(data: Data, folder: Path, *, progress: Callable[[int], None] | None = None) -> Loaded:
    """Reads, converts and divides the rows that `data` names; the examples go into an `ExampleStore` at `folder`.

    Args:
        progress: called with the number of rows read so far, every thousand rows and at the end.

    Raises:
        DataError: a file cannot be read, the format cannot be told, rows are bad or leak (and are not to be dropped),
            or too few are left to train on and to hold back.
    """
    found = {side: find(getattr(data, side)) for side in SIDES}
    _no_file_twice(found)
    with StoreWriter(folder) as writer:
        intake = Intake(data, writer)
        detection = _take_all(intake, found, progress)
        _refuse_bad_rows(intake)
        facts = intake.facts()
        sides_N = _assign(intake, facts, found, detection)
        findings = [*_skipped(found), *_bad_rows(intake), *_leaks(intake, facts, sides_N)]
        findings += _notes(intake, facts, sides_N, detection)
        for side in SIDES:
            _not_empty(side, sides_N, found)
        store = writer.finish()
    dropped = Counter(intake.files[index] for index in facts.files_N[sides_N == LEFT_OUT])
    counts = {
        name: Counts(read, read - intake.bad_in[name], intake.bad_in[name], dropped[name])
        for name, read in intake.read.items()
    }
    rule = _rule(data, detection)
    return Loaded(store, sides_N, facts.keys_N, rule, detection, findings, counts, intake.sha256)


def _take_all(intake: Intake, found: Mapping[Side, Found], progress: Callable[[int], None] | None) -> Detection:
    """Feeds every record to the intake; the first ones wait until the format is told from them."""
    waiting: list[tuple[Side, Record]] = []
    sample: list[JSON] = []
    detection: Detection | None = None
    count = 0
    for side, record in _stream(intake, found):
        count += 1
        if progress and count % _PROGRESS_ROWS == 0:
            progress(count)
        if detection is not None:
            intake.take(side, record, detection)
            continue
        if side != "train" and not sample:
            # No training row is whole, so there is nothing to detect from; what is wrong with them is said instead.
            break
        waiting.append((side, record))
        if side == "train" and record.value is not None:
            sample.append(record.value)
        if len(sample) >= DETECTION_ROWS or side != "train":
            detection = _detected(intake, sample, found)
            _take_waiting(intake, waiting, detection)
    if progress:
        progress(count)
    if detection is None:
        detection = _detected(intake, sample, found) if sample else None
        _take_waiting(intake, waiting, detection)
    if detection is None:
        raise _bad_rows_error(intake, "no row of the training files can be read")
    return detection


def _take_waiting(intake: Intake, waiting: list[tuple[Side, Record]], detection: Detection | None) -> None:
    for side, record in waiting:
        if not intake.full(side):
            intake.take(side, record, detection)
    waiting.clear()


def _stream(intake: Intake, found: Mapping[Side, Found]) -> Iterator[tuple[Side, Record]]:
    for side in SIDES:
        for name in found[side].files:
            if intake.full(side):
                break
            with DataFile(name) as file:
                for record in file.records():
                    if intake.full(side):
                        break
                    yield side, record
                intake.sha256[name] = file.sha256()


def _detected(intake: Intake, sample: Sequence[JSON], found: Mapping[Side, Found]) -> Detection:
    files = found["train"].files
    where = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    column = intake.split_column
    known = list(dict.fromkeys(key for row in sample for key in row))
    if column and column not in known:
        close = difflib.get_close_matches(column, known, n=1, cutoff=0.5)
        raise DataError(
            f"data.split.column: there is no column {column_name(column)}",
            where=where,
            got=f"columns: {', '.join(known)}",
            do=f"did you mean {close[0]}?" if close else "name one of the columns there are",
        )
    return detect(sample, intake.data.columns, intake.data.format, where=where)


def _no_file_twice(found: Mapping[Side, Found]) -> None:
    side_of: dict[str, Side] = {}
    for side, files in found.items():
        for name in files.files:
            path = name if name == STDIN else os.path.realpath(name)
            if path in side_of:
                raise DataError(
                    f"the same file is given for data.{side_of[path]} and data.{side}",
                    where=name,
                    do=f"leave data.{side} out, and a share of the training rows is held back",
                )
            side_of[path] = side


def _refuse_bad_rows(intake: Intake) -> None:
    good = sum(intake.read.values()) - len(intake.bad)
    if intake.bad and (intake.data.on_bad_row == "refuse" or not good):
        total = sum(intake.read.values())
        raise _bad_rows_error(intake, f"{len(intake.bad):,} of {total:,} rows cannot be used")


def _bad_rows_error(intake: Intake, what: str) -> DataError:
    lines = [f"{place}: {problem}" for place, problem in intake.bad[:LISTED_ROWS]]
    if len(intake.bad) > LISTED_ROWS:
        lines.append(f"and {len(intake.bad) - LISTED_ROWS:,} rows more: {_reasons(intake.bad[LISTED_ROWS:])}")
    good = sum(intake.read.values()) > len(intake.bad)
    do = "correct them, or leave them out with data.on_bad_row=drop" if good else "correct them: none can be used"
    return DataError(what, where=intake.bad[0].place, got="\n    ".join(["", *lines]), do=do)


def _reasons(bad: Sequence[Problem]) -> str:
    """How often each reason stands in the list; positions and lengths in it count as one reason."""
    reasons = Counter(re.sub(r"\d+", "N", problem.what) for _, problem in bad)
    return "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common())


def _skipped(found: Mapping[Side, Found]) -> Iterator[Finding]:
    skipped = tuple(name for files in found.values() for name in files.skipped)
    if skipped:
        message = f"{len(skipped)} files of the given folders are not read as data."
        yield Finding("skipped_file", "warn", message, "Name a file itself to have it read.", skipped[:LISTED_ROWS])


def _bad_rows(intake: Intake) -> Iterator[Finding]:
    if intake.bad:
        places = tuple(place for place, _ in intake.bad)
        message = f"{len(places):,} rows cannot be used and are left out: {_reasons(intake.bad)}."
        yield Finding(
            "bad_row", "warn", message, "Correct them, or stop on them (data.on_bad_row=refuse).", places, len(places)
        )


def _rule(data: Data, detection: Detection) -> str:
    return data.split.by or ("label" if detection.format == "labelled" else "content")


def _assign(intake: Intake, facts: Facts, found: Mapping[Side, Found], detection: Detection) -> NDArray[np.int8]:
    """The side of every row: that of its file, and for training files the one that the split gives it."""
    sides_N = facts.sides_N.copy()
    training = sides_N == SIDES.index("train")
    if not training.any():
        raise _bad_rows_error(intake, "no row of the training files can be used")
    rule = _rule(intake.data, detection)
    if rule == "label" and detection.format != "labelled":
        raise DataError("data.split.by=label needs labels", where="data.split", got=detection.format, do="use content")
    wanted = split.shares(
        intake.data.split, validation_given=bool(found["validation"].files), test_given=bool(found["test"].files)
    )
    intake.check_times()
    sides_N[training] = split.assign(
        facts.keys_N[training],
        wanted,
        labels_N=facts.labels_N[training] if rule == "label" and facts.labels_N is not None else None,
        groups_N=facts.groups_N if rule == "group" else None,
        times_N=facts.times_N if rule == "time" else None,
    )
    return sides_N


def _leaks(intake: Intake, facts: Facts, sides_N: NDArray[np.int8]) -> Iterator[Finding]:
    """Rows whose prompt is also on a side that is held back more strictly; they leave their side, never the test.

    Files given for a side can bring them in, and so can splits by group or time.
    """
    keys_N = facts.keys_N
    validates, tests = sides_N == split.VALIDATION, sides_N == split.TEST
    in_test = split.leaks(keys_N, keys_N[tests])
    from_validation = validates & in_test
    from_train = (sides_N == split.TRAIN) & (in_test | split.leaks(keys_N, keys_N[validates]))
    rows = np.flatnonzero(from_train | from_validation)
    if not len(rows):
        return
    count, places = len(rows), intake.places(rows.tolist())
    train, validation = int(from_train.sum()), int(from_validation.sum())
    whose = f"{train:,} of train, {validation:,} of validation"
    what = f"{count:,} rows ({whose}) have a prompt or text that is held back as well"
    if intake.data.on_leak == "refuse":
        more = [f"and {count - len(places):,} more"] if count > len(places) else []
        raise DataError(
            what,
            where=places[0],
            got="\n    ".join(["", *places, *more]),
            do="remove them from one side, or leave them out of train and validation with data.on_leak=drop",
        )
    sides_N[rows] = LEFT_OUT
    remedy = "Remove them from one side to have no leak to drop; the test keeps its rows."
    yield Finding("leak", "warn", f"{what}; they are left out.", remedy, places, count)


def _notes(intake: Intake, facts: Facts, sides_N: NDArray[np.int8], detection: Detection) -> Iterator[Finding]:
    kept = np.flatnonzero(sides_N != LEFT_OUT)
    again = _repeats(facts.hashes_N[kept])
    if len(again):
        message = f"{len(again):,} rows repeat an earlier row word for word; each copy counts as a row."
        remedy = "Remove the copies unless the repetition is meant."
        yield Finding("duplicate", "warn", message, remedy, intake.places(kept[again].tolist()), len(again))
    same = _repeats(facts.ids_N)
    if len(same):
        message = f"{len(same):,} rows have the id of an earlier row; reports tell them apart by file and line."
        yield Finding(
            "repeated_id", "info", message, "Give every row an id of its own.", intake.places(same.tolist()), len(same)
        )
    if intake.assistant_first:
        message = (
            f"{intake.assistant_first:,} conversations open with an assistant turn; some chat templates refuse that."
        )
        yield Finding(
            "assistant_first",
            "info",
            message,
            "Check one of them with the render command.",
            count=intake.assistant_first,
        )
    if intake.data.system is not None and not intake.no_system:
        what = (
            "every conversation has its own"
            if detection.columns.get("messages")
            else f"rows are read as {detection.format}"
        )
        yield Finding("no_effect", "warn", f"data.system is set and has no effect: {what}.", "Remove data.system.")


def _repeats(values_N: NDArray[np.uint64] | NDArray[np.int64]) -> NDArray[np.intp]:
    """Indices of the values that stand earlier in the array as well."""
    first = np.unique(values_N, return_index=True)[1]
    again = np.ones(len(values_N), dtype=bool)
    again[first] = False
    return np.flatnonzero(again)


def _not_empty(side: Side, sides_N: NDArray[np.int8], found: Mapping[Side, Found]) -> None:
    if (side == "train" or found[side].files) and not (sides_N == SIDES.index(side)).any():
        raise DataError(f"no rows are left for {side}", where=f"data.{side}", do="add rows, or see what was left out")
