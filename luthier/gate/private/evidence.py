"""How sure a rule is: its pattern, a check digit and the words nearby, as odds that multiply.

Of strings with the form of an identifier, a share `prior` are one where nothing else is known. A check that one of ten
random strings passes makes the odds ten times as high when it agrees. A word such as "IBAN" within 40 characters, or at
the head of the table's column, makes them `NEAR` times as high. So a check digit alone seldom decides.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from luthier.gate.private.spans import View

NEAR = 100.0
REACH = 40
"""Characters before and after in which a word counts."""
_LONG = 1000
_TABLE = 4000
"""Characters before a cell in which the head of its table is looked for."""


class Words(NamedTuple):
    """Words that say what stands near them."""

    pattern: re.Pattern[str]
    leads: tuple[str, ...]
    """How each begins: a text that holds none of these needs no search."""


def confidence(prior: float, *factors: float) -> float:
    """The probability that follows from a prior share and what multiplies its odds."""
    odds = prior / (1 - prior)
    for factor in factors:
        odds *= factor
    return odds / (1 + odds)


def words(*stems: str) -> Words:
    """Any of these, each a pattern that begins with two letters or more; `said` asks that a word begins there."""
    leads = [found[0] for stem in stems if (found := _LEAD.match(stem))]
    assert len(leads) == len(stems), stems
    # A part of `snake_case` ends before its underscore, which is a letter to \b.
    pattern = "|".join(stems).replace(r"\b", r"(?![^\W_])")
    return Words(re.compile(pattern), tuple(sorted(set(leads))))


def union(*several: Words) -> Words:
    """What any of them matches."""
    patterns = "|".join(one.pattern.pattern for one in several)
    return Words(re.compile(patterns), tuple(sorted({lead for one in several for lead in one.leads})))


def mentioned(view: View, context: Words) -> bool:
    """Whether the text can hold one of the words: quick, and never wrong when it says no."""
    return any(map(view.low.__contains__, context.leads))


def said(view: View, start: int, end: int, context: Words) -> bool:
    """Whether one of the words begins in [start, end), at the start of a word or of a part of `snake_case`."""
    low, begin = view.low, max(start, 0)
    return any(
        found.start() == 0 or not low[found.start() - 1].isalnum()
        for found in context.pattern.finditer(low, begin, max(end, begin))
    )


def near(view: View, start: int, end: int, context: Words, *, before: bool = False) -> bool:
    """Whether one of the words stands within `REACH`, or at the head of the column; `before`: not behind."""
    # In a long text a look at the surroundings is cheaper than one at the whole.
    if len(view.low) <= _LONG and not mentioned(view, context):
        return False
    if said(view, start - REACH, start, context) or (not before and said(view, end, end + REACH, context)):
        return True
    head = _head(view, start)
    return bool(head) and context.pattern.search(head) is not None


def _head(view: View, start: int) -> str:
    """The first cell of the table column that `start` stands in; empty outside of tables."""
    low = view.low
    line = low.rfind("\n", max(start - _TABLE, 0), start) + 1
    if not line:
        return ""
    end = low.find("\n", start, start + _TABLE)
    row = low[line : end if end >= 0 else start + _TABLE]
    separators = [mark for mark in "|\t;," if mark in row]
    if not separators:
        return ""
    head = low[max(line - _TABLE, 0) : line].rpartition("\n\n")[2].partition("\n")[0]
    for separator in separators:
        if row.count(separator) == head.count(separator) > 0:
            return head.split(separator)[row.count(separator, 0, start - line)]
    return ""


_LEAD = re.compile(r"[^\W\d_]{2,}?(?=[^\W\d_]?[?*{])|[^\W\d_]{2,}")
