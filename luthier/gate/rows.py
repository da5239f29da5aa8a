"""What a rule looks at, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from luthier.types import Side


class Field(NamedTuple):
    """A stretch of a row's text, and where it stands."""

    path: str
    """As a user would write it: `messages[2].content`, `text`, `answer`."""
    role: str
    """system, user, assistant, tool, or text where nobody speaks."""
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """An example as the gate sees it, in whatever format it came."""

    id: str
    """Where it is: the first 8 hex digits of its file's SHA-256, a colon, its line."""
    content: str
    """What it is: `types.Provenance.hash`."""
    file: str
    line: int
    side: Side
    fields: tuple[Field, ...]
    """All of its text, in the order in which it is read."""
    prompt: str
    """All that stands before the answer, joined by line breaks; the text, for labelled rows."""
    answer: str
    """What is learnt: the last assistant turn, the text of plain text, empty for labelled rows."""
    labels: tuple[str, ...] = ()
    value: float | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Columns that the format does not use: customer, date, licence and the like."""


class Hit(NamedTuple):
    """A rule found something in a row."""

    rule: str
    """A key of `table.rules()`."""
    row: str
    """`Row.id`."""
    seen: str
    """What was seen, in a few words with its numbers. Private text is masked: this reaches reports."""
    path: str = ""
    """The field; empty for the row as a whole."""
    start: int = 0
    end: int = 0
    """Characters [start, end) of the field."""
    score: float | None = None
    other: str = ""
    """`Row.id` of the row that this one repeats, contradicts or leaks from; for a benchmark, `file:line`."""
