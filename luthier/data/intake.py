"""What is known of the rows while they are read: 40 bytes a good row, and every bad one with its reason."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.data import split
from luthier.data.detect import Detection
from luthier.data.formats import FORMATS, digest, split_key
from luthier.data.read import Record
from luthier.data.rows import BadRow, column_name
from luthier.data.store import StoreWriter
from luthier.errors import DataError
from luthier.recipe.data import Data
from luthier.types import SIDES, Conversation, Example, Labelled, Message, Side

LISTED_ROWS = 1000
"""So many rows are named in an error or a finding; the others are counted."""


class Facts(NamedTuple):
    """One entry a good row, in the order of the store."""

    keys_N: NDArray[np.uint64]
    """First 8 bytes of the split key."""
    hashes_N: NDArray[np.uint64]
    """First 8 bytes of the content hash."""
    ids_N: NDArray[np.int64]
    """Hash of the id within this process; good for telling equal ids and nothing else."""
    sides_N: NDArray[np.int8]
    """Side of the row's file."""
    files_N: NDArray[np.int32]
    """Index into `Intake.files`."""
    labels_N: NDArray[np.int64] | None
    """Each row's smallest label as its rank among all names, which the order of rows does not change."""
    groups_N: NDArray[np.uint64] | None
    """Training rows only."""
    times_N: NDArray[np.float64] | None
    """Training rows only."""


class Problem(NamedTuple):
    place: str
    problem: BadRow


class Intake:
    def __init__(self, data: Data, writer: StoreWriter) -> None:
        self.data = data
        self.bad: list[Problem] = []
        self.read: dict[str, int] = {}
        self.bad_in: Counter[str] = Counter()
        self.sha256: dict[str, str] = {}
        self.assistant_first = self.no_system = 0
        self._writer = writer
        self._keys, self._hashes, self._ids = array("Q"), array("Q"), array("q")
        self._sides, self._files, self._lines = array("b"), array("i"), array("q")
        self._labels, self._label_names = array("q"), dict[str, int]()
        self._groups, self._times = array("Q"), array("d")
        self._time_kinds: dict[str, str] = {}
        self.files: list[str] = []
        shares = split.shares(data.split, validation_given=bool(data.validation), test_given=bool(data.test))
        self.split_column = data.split.column if any(shares) else None

    def full(self, side: Side) -> bool:
        return side == "train" and self.data.limit is not None and len(self._keys) >= self.data.limit

    def take(self, side: Side, record: Record, detection: Detection | None) -> None:
        """Converts and stores one record, or notes what is wrong with it."""
        if record.file not in self.read:
            self.files.append(record.file)
        self.read[record.file] = self.read.get(record.file, 0) + 1
        try:
            if record.problem:
                raise record.problem
            assert detection is not None, "a record without a problem makes a sample to detect from"
            example = FORMATS[detection.format](record, detection.columns)
            if side == "train" and self.split_column:
                self._take_split_column(record, self.split_column)
        except BadRow as problem:
            self.bad.append(Problem(record.place, problem))
            self.bad_in[record.file] += 1
            return
        self._keys.append(split.key_number(split_key(example)))
        self._hashes.append(split.key_number(example.provenance.hash))
        self._ids.append(hash(example.id))
        self._sides.append(SIDES.index(side))
        self._files.append(len(self.files) - 1)
        self._lines.append(record.line)
        if isinstance(example, Labelled):
            name = example.labels[0] if example.labels else ""
            self._labels.append(self._label_names.setdefault(name, len(self._label_names)))
        self._writer.append(self._finished(example))

    def _take_split_column(self, record: Record, column: str) -> None:
        value = (record.value or {}).get(column)
        if value is None or value == "":
            raise BadRow(
                f"column {column_name(column)} is empty, and data.split needs it", "Fill it, or remove the row"
            )
        if self.data.split.by == "group":
            # A list or an object is a group as well: by its content.
            self._groups.append(split.group_number(digest(value) if isinstance(value, (list, dict)) else value))
            return
        moment = split.moment(value)
        if moment is None:
            raise BadRow(f"column {column_name(column)} holds no time", "Write an ISO date (2025-01-31) or a number")
        self._time_kinds.setdefault(moment.kind, record.place)
        self._times.append(moment.seconds)

    def _finished(self, example: Example) -> Example:
        if not isinstance(example, Conversation):
            return example
        first = example.messages[0]
        if first.role == "system":
            self.assistant_first += example.messages[1].role == "assistant"
            return example
        self.assistant_first += first.role == "assistant"
        self.no_system += 1
        if self.data.system is None:
            return example
        return replace(example, messages=(Message("system", self.data.system), *example.messages))

    def check_times(self) -> None:
        if len(self._time_kinds) > 1:
            raise DataError(
                f"column {column_name(self.split_column or '')} holds dates in some rows and numbers in others",
                where=", ".join(self._time_kinds.values()),
                do="write all times in one way",
            )

    def facts(self) -> Facts:
        rank = {name: index for index, name in enumerate(sorted(self._label_names))}
        ranks = np.array([rank[name] for name in self._label_names], dtype=np.int64)
        return Facts(
            keys_N=np.array(self._keys, dtype=np.uint64),
            hashes_N=np.array(self._hashes, dtype=np.uint64),
            ids_N=np.array(self._ids, dtype=np.int64),
            sides_N=np.array(self._sides, dtype=np.int8),
            files_N=np.array(self._files, dtype=np.int32),
            labels_N=ranks[np.array(self._labels, dtype=np.int64)] if self._labels else None,
            groups_N=np.array(self._groups, dtype=np.uint64) if self._groups else None,
            times_N=np.array(self._times, dtype=np.float64) if self._times else None,
        )

    def places(self, rows: Sequence[int]) -> tuple[str, ...]:
        """`file:line` of the first `LISTED_ROWS` of the given rows."""
        return tuple(f"{self.files[self._files[row]]}:{self._lines[row]}" for row in rows[:LISTED_ROWS])
