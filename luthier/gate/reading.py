"""Files to the gate's rows. What cannot be read becomes a hit with its place, and reading goes on after it.

A row's id is its place: eight digits of its file's hash and its line (for Parquet and JSON arrays: its number).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from luthier.cache import file_hash
from luthier.data.detect import Detection, detect
from luthier.data.formats import FORMATS
from luthier.data.read import STDIN, DataFile, PackedTooFar, Record, Unpacking, find
from luthier.data.rows import BadRow
from luthier.errors import DataError
from luthier.gate.fields import to_row
from luthier.gate.policy import Policy
from luthier.gate.rows import Hit, Row
from luthier.recipe.data import Columns, Format
from luthier.types import Example, Side

DETECTION_ROWS = 200
PROGRESS_ROWS = 1000


class Source(NamedTuple):
    """A file of the data set."""

    prefix: str
    """What the ids of its rows begin with."""
    file: str
    side: Side
    sha256: str
    """Empty for standard input, which is not kept."""


class Place(NamedTuple):
    id: str
    example: Example
    side: Side


def sources(files: Mapping[Side, Sequence[str]]) -> tuple[list[Source], list[Hit]]:
    """The files that are named, folders opened up, with their hashes; and what of the folders is not read.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    found: list[Source] = []
    hits: list[Hit] = []
    for side, names in files.items():
        files_of_side = find(names)
        for name in files_of_side.files:
            found.append(source(name, side, "" if name == STDIN else _hash(name), found))
        hits += [Hit("skipped_file", "", f"{name} is not read as data") for name in files_of_side.skipped]
    return found, hits


def source(file: str, side: Side, sha256: str, others: Sequence[Source]) -> Source:
    """A file whose rows have other ids than those of `others`, also where it is a copy of one of them."""
    alike = sum(other.sha256 == sha256 for other in others)
    return Source((sha256[:8] or STDIN) + (f"-{alike + 1}" if alike else ""), file, side, sha256)


def place_of(row: str, found: Sequence[Source]) -> tuple[str, int]:
    """File and line of a row's id."""
    prefix, _, line = row.rpartition(":")
    file = next((one.file for one in found if one.prefix == prefix), "")
    return file, int(line.partition(".")[0] or 0)


def _hash(name: str) -> str:
    try:
        return file_hash(Path(name))
    except OSError as error:
        got = error.strerror or type(error).__name__
        raise DataError("this file cannot be read", where=name, got=got, do="look at its permissions") from None


def size(found: Sequence[Source]) -> int | None:
    """Bytes of all files; None where standard input is among them."""
    return None if any(not one.sha256 for one in found) else sum(os.path.getsize(s.file) for s in found)


def rows(
    found: Sequence[Source],
    policy: Policy,
    *,
    columns: Columns | None = None,
    format: Format | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Row | Hit]:
    """Every row of the files, and hits of `bad_row` and the like for what is none.

    Args:
        progress: called with rows and bytes read so far.

    Raises:
        DataError: a file is empty, of no known kind, or its columns mean nothing.
    """
    for item in examples(found, policy, columns=columns, format=format, progress=progress):
        yield item if isinstance(item, Hit) else to_row(item.example, id=item.id, side=item.side)


def examples(
    found: Sequence[Source],
    policy: Policy,
    *,
    columns: Columns | None = None,
    format: Format | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Place | Hit]:
    """As `rows`, before the rows lose their form."""
    unpacking = Unpacking(policy.number("packed_too_far", "ratio"), 1e9 * policy.number("packed_too_far", "gigabytes"))
    count, bytes_before = 0, 0
    for one in found:
        with DataFile(one.file, unpacking) as file:
            for item in _of_file(one, file, columns or Columns(), format):
                yield item
                count += 1
                if progress and count % PROGRESS_ROWS == 0:
                    progress(count, bytes_before + file.taken)
            bytes_before += file.taken
    if progress:
        progress(count, bytes_before)


def _of_file(source: Source, file: DataFile, columns: Columns, format: Format | None) -> Iterator[Place | Hit]:
    records = file.records()
    held: list[Record] = []
    broken = None
    try:
        held.extend(islice(records, DETECTION_ROWS))
    except DataError as error:
        if not held and not isinstance(error, PackedTooFar):
            raise
        broken = error
    sample = [record.value for record in held if record.value is not None]
    detection = detect(sample, columns, format, where=source.file) if sample else None
    taken = _Taken(source, detection)
    yield from map(taken.item, held)
    try:
        if broken:
            raise broken
        for record in records:
            if detection is None and record.value is not None:
                detection = taken.detection = detect([record.value], columns, format, where=source.file)
            yield taken.item(record)
    except PackedTooFar as error:
        yield Hit("packed_too_far", f"{source.prefix}:0", f"{error.what}: {error.got}")
    except DataError as error:
        yield Hit("unread_file", f"{source.prefix}:0", f"{error.what}: {error.got}" if error.got else error.what)


class _Taken:
    """Gives the rows of one file their ids."""

    def __init__(self, source: Source, detection: Detection | None) -> None:
        self.source, self.detection = source, detection
        self._ids = Ids(source.prefix)

    def item(self, record: Record) -> Place | Hit:
        id = self._ids.next(record.line)
        if record.problem is not None:
            return Hit("bad_row", id, str(record.problem))
        assert self.detection is not None, "a row without a problem was detected from"
        try:
            example = FORMATS[self.detection.format](record, self.detection.columns)
        except BadRow as problem:
            return Hit("bad_row", id, str(problem))
        return Place(id, example, self.source.side)


class Ids:
    """The ids of one file's rows in their order. Several documents of plain text can begin in one line."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._line, self._again = 0, 0

    def next(self, line: int) -> str:
        self._again = self._again + 1 if line == self._line else 0
        self._line = line
        return f"{self._prefix}:{line}" + (f".{self._again + 1}" if self._again else "")
