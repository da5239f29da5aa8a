"""Where private data stands in a text: the text as the rules read it, what they find in it, and which of two that
overlap is kept.

The rules read a view in which full-width digits, typographic dashes and the escapes of JSON are what they mean, and
characters of no width are gone. A view remembers where each of its characters stood.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from bisect import bisect
from collections.abc import Iterable
from typing import NamedTuple

from luthier.gate.private.reserved import pseudonyms

GONE = "\f"
"""Stands for what is replaced. It is white space, and no identifier goes on across it."""
CERTAIN = 0.9
"""Confidence from which a span counts as validated when two overlap: an e-mail address has no check digit."""


class Span(NamedTuple):
    """Characters [start, end) of a text that are private data of a kind."""

    kind: str
    """A key of `private.RULES`."""
    start: int
    end: int
    confidence: float
    checked: bool = False
    """A check digit, or a calendar, agrees."""


class View(NamedTuple):
    """A text as the rules read it."""

    text: str
    low: str
    """The same in small letters, character by character."""
    places: list[int] | None = None
    """Where each character stood in the source, and the source's length; None where nothing moved."""

    def source(self, span: Span) -> Span:
        """The span as it stands in the source."""
        if self.places is None:
            return span
        return span._replace(start=self.places[span.start], end=self.places[span.end])


def view(text: str, *, without: Iterable[Span] = ()) -> View:
    """The text as the rules read it, with `GONE` for pseudonyms and for the spans `without`."""
    plain = text if text.isascii() else text.translate(_SAME)
    cuts = [(span.start, span.end, GONE) for span in without]
    cuts += [(start, end, GONE) for start, end in pseudonyms(plain)]
    if "\\" in plain or not text.isascii():
        cuts += [(*found.span(), _meant(found.group())) for found in _ODD.finditer(plain)]
    if not cuts:
        return View(plain, _lower(plain))
    pieces: list[str] = []
    places: list[int] = []
    at = 0
    for start, end, meant in sorted(cuts):
        if start < at:
            continue
        pieces += plain[at:start], meant
        places.extend(range(at, start))
        places.extend([start] * len(meant))
        at = end
    pieces.append(plain[at:])
    places.extend(range(at, len(plain) + 1))
    seen = "".join(pieces)
    return View(seen, _lower(seen), places)


def settle(spans: Iterable[Span]) -> list[Span]:
    """Of spans that overlap the longest validated one is kept, then the longest; in the order of the text."""
    starts: list[int] = []
    kept: list[Span] = []
    for span in sorted(spans, key=_rank, reverse=True):
        at = bisect(starts, span.start)
        if (at == 0 or kept[at - 1].end <= span.start) and (at == len(kept) or span.end <= starts[at]):
            starts.insert(at, span.start)
            kept.insert(at, span)
    return kept


def _rank(span: Span) -> tuple[bool, int, bool, float, int]:
    certain = span.checked or span.confidence >= CERTAIN
    return certain, span.end - span.start, span.kind in _GRAVE, span.confidence, -span.start


_GRAVE = ("secret", "private_key")
"""Kept where two spans are alike: an address with a password is more than an address."""


def _lower(text: str) -> str:
    low = text.lower()
    if len(low) == len(text):
        return low
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)  # İ becomes two


def _meant(odd: str) -> str:
    if odd[0] != "\\":
        return ""  # of no width
    if odd[1] != "u":
        return "\n" if odd[1] in "nr" else " "
    character = chr(int(odd[2:], 16))
    if _ODD.match(character):
        return ""
    return " " if "\ud800" <= character <= "\udfff" else character.translate(_SAME)


def _same() -> dict[int, str]:
    """One character for one: digits of every script and full-width forms in ASCII, one dash, one space."""
    table = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    for code in range(0x80, sys.maxunicode + 1):
        category = unicodedata.category(chr(code))
        if category == "Nd":
            table[code] = str(unicodedata.decimal(chr(code)))
        elif category == "Pd":
            table[code] = "-"
        elif category == "Zs":
            table[code] = " "
    return table | {0x2212: "-", 0x2019: "'", 0x02BC: "'"}


_SAME = _same()
_ODD = re.compile(r"\\u[0-9a-fA-F]{4}|\\[nrt]|[\u00ad\u200b-\u200d\u2060\ufeff]")
