"""Identifiers of a fixed length: numbers and letters in groups, matched by their shape and proved by a check digit.

A text is cut once into runs of groups that one identifier may be written in (`DE89 3704 ...`, `123-45-6789`, a group
on the next line). Every stretch of a run with as many letters and digits as an identifier has is held against the
shapes of that length, so that a row costs the same however many kinds are known. Linear: a stretch has at most
`_MOST_GROUPS` groups, and a group of more than `_LONGEST` characters is no identifier.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from string import ascii_letters
from typing import NamedTuple

from luthier.gate.private.evidence import NEAR, Words, confidence, near, union
from luthier.gate.private.spans import Span, View

_MOST_GROUPS = 9
"""An IBAN of 34 characters in fours."""
_LONGEST = 64


class Shape(NamedTuple):
    """An identifier's form and what speaks for it."""

    kind: str
    form: re.Pattern[str]
    """Of the whole: groups with one space, hyphen, dot or slash between them."""
    sizes: tuple[int, ...]
    """How many letters and digits it may have."""
    prior: float
    """The share of strings of this form that are of this kind, where nothing else is known."""
    context: Words
    check: Callable[[str], bool] | None = None
    """Takes letters and digits, capitals, without separators."""
    chance: float = 1
    """That a random string of this form passes the check."""
    before: bool = False
    """The words must stand before it."""


class Group(NamedTuple):
    """A run of letters and digits, with what stands between it and the one before."""

    gap: str
    text: str
    start: int
    end: int


class Table(NamedTuple):
    """Shapes by the number of their letters and digits."""

    proved: Mapping[int, list[Shape]]
    named: Mapping[int, list[Shape]]
    """Those that a word before them must name."""
    names: Words
    """All of these words."""


def by_size(shapes: Iterable[Shape]) -> Table:
    proved: dict[int, list[Shape]] = defaultdict(list)
    named: dict[int, list[Shape]] = defaultdict(list)
    names = []
    for shape in shapes:
        if shape.before:
            names.append(shape.context)
        for size in shape.sizes:
            (named if shape.before else proved)[size].append(shape)
    return Table(dict(proved), dict(named), union(*names))


def runs(text: str) -> Iterator[list[Group]]:
    """Groups with a digit, and short groups of capitals beside them, as far as one identifier may go."""
    run: list[Group] = []
    for found in _GROUP.finditer(text):
        start, end = found.span()
        if start and text[start - 1] in ascii_letters:
            before = text[max(start - _LONGEST, 0) : start]
            start -= len(before) - len(before.rstrip(ascii_letters))
        between = _GAP.fullmatch(text, run[-1].end, start) if run and start - run[-1].end <= 32 else None
        if between is None:
            if run:
                yield _ended(text, run)
            run = []
            if letters := _LETTERS_BEFORE.search(text, max(start - 5, 0), start):
                run.append(Group("", letters[1], *letters.span(1)))
                run.append(Group(letters[2], text[start:end], start, end))
            else:
                run.append(Group("", text[start:end], start, end))
            continue
        gap = between[1]
        for letters in _LETTERS_BETWEEN.finditer(text, *between.span(2)):
            run.append(Group(_one(gap), letters[1], *letters.span(1)))
            gap = letters[2]
        run.append(Group(_one(gap), text[start:end], start, end))
    if run:
        yield _ended(text, run)


def shaped(view: View, table: Table, run: list[Group], least: Mapping[str, float], *, named: bool) -> Iterator[Span]:
    """What in a run has the form of an identifier, with enough that speaks for it.

    `named`: whether any of the table's words is in the text.
    """
    by_name = table.named if named and near(view, run[0].start, run[-1].end, table.names, before=True) else {}
    for first, begin in enumerate(run):
        if (first and begin.gap in _TIGHT) or _joined_before(view.text, begin.start):
            continue
        text, size = "", 0
        for last in range(first, min(first + _MOST_GROUPS, len(run))):
            group = run[last]
            text += group.gap + group.text if last > first else group.text
            size += len(group.text)
            if size > _LONGEST:
                break
            for shape in (*table.proved.get(size, ()), *by_name.get(size, ())):
                if not _formed(shape, text):
                    continue
                if (last + 1 < len(run) and run[last + 1].gap in _TIGHT) or _joined_behind(view.text, group.end):
                    continue
                crowd = last > first and _crowded(run, first, last)
                span = Span(shape.kind, begin.start, group.end, _CROWDED if crowd else 1)
                if found := _judged(view, span, text, shape, least):
                    yield found


def _judged(view: View, span: Span, text: str, shape: Shape, least: Mapping[str, float]) -> Span | None:
    """The span with its confidence, which comes in as a factor of the odds; None below what is reported."""
    if shape.kind not in least:
        return None
    if shape.check is not None and not shape.check(_SEPARATOR.sub("", text).upper()):
        return None
    alone = confidence(shape.prior, 1 / shape.chance, span.confidence)
    sure = confidence(alone, NEAR) if near(view, span.start, span.end, shape.context, before=shape.before) else alone
    if sure < least[shape.kind]:
        return None
    return span._replace(confidence=sure, checked=shape.check is not None)


def _crowded(run: list[Group], first: int, last: int) -> bool:
    """Whether a group of the same length follows on either side: then this is likely a piece of a longer number.

    Letters in front of a run are a word before the number: NHS 943 476 5919.
    """
    before = first > (1 if run[0].text.isalpha() else 0) and len(run[first - 1].text) == len(run[first].text)
    return before or (last + 1 < len(run) and len(run[last + 1].text) == len(run[last].text))


def _formed(shape: Shape, text: str) -> bool:
    """Whether a stretch has the form. Over the end of a line only a number that another check proves goes on, with a
    separator there or without."""
    if "\n" not in text:
        return shape.form.fullmatch(text) is not None
    return not shape.before and any(shape.form.fullmatch(text.replace("\n", end)) for end in (" ", "", "-", "."))


def _ended(text: str, run: list[Group]) -> list[Group]:
    """The run with a single capital behind it, as in 12345678 Z."""
    if letter := _LETTER_BEHIND.match(text, run[-1].end):
        run.append(Group(_one(letter[1]), letter[2], *letter.span(2)))
    return run


def _one(gap: str) -> str:
    """The one character that a gap stands for."""
    return "\n" if "\n" in gap else gap.strip() or " "


def _joined_before(text: str, start: int) -> bool:
    """An amount of money, or a part of a name such as order_123."""
    return start > 0 and text[start - 1] in "_$€£¥"


def _joined_behind(text: str, end: int) -> bool:
    return text[end : end + 1] in ("_", "%", "€")


_GROUP = re.compile(r"\d[0-9A-Za-z]*")
_BETWEEN = r" {1,8}| {0,2}[-/] {0,2}|\.| {0,8}[-./]?\r?\n {0,8}"
_LETTERS_BETWEEN = re.compile(rf"([A-Z]{{1,4}})({_BETWEEN})")
_GAP = re.compile(rf"({_BETWEEN})((?:[A-Z]{{1,4}}(?:{_BETWEEN})){{0,4}})")
_LETTERS_BEFORE = re.compile(r"(?<![A-Za-z0-9])([A-Z]{1,4})([ -])\Z")
_LETTER_BEHIND = re.compile(r"([ -]\n?)([A-Z])(?![A-Za-z0-9])")
_SEPARATOR = re.compile(r"[^0-9A-Za-z]")
_CROWDED = 0.02
"""What a piece of a longer number makes of the odds."""
_TIGHT = ("-", ".", "/")
