"""Private data in a row: personal data and secrets, where they stand, how sure that is, and what to put in their place.

    find -> spans -> redact | pseudonymise

    spans        the text as the rules read it, and which of two spans is kept
    evidence     form, check digit and words nearby, as odds
    shapes       identifiers of a fixed length: money, national, health
    contact, postal, names, secrets       what has other forms
    replace      kinds or pseudonyms in the place of spans
    profiles     HIPAA's list against these rules, and what they cannot see
    presidio, gliner                      recognisers of names, where they are installed

"No findings by these rules" is all that a search can say. It is never proof that nobody can be recognised.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from luthier.gate.private import (
    contact,
    evidence,
    gliner,
    health,
    money,
    names,
    national,
    postal,
    presidio,
    secrets,
    shapes,
)
from luthier.gate.private.reserved import pseudonyms
from luthier.gate.private.spans import Span, View, settle, view
from luthier.gate.private.table import RULES
from luthier.gate.rows import Hit, Row

__all__ = ["LEAST", "RULES", "Span", "find", "look"]

LEAST: Mapping[str, float] = {kind: rule.thresholds["confidence"] for kind, rule in RULES.items()}
"""Kind -> the least confidence that is reported. A kind that is left out is not looked for."""
Recogniser = Callable[[str], Iterable[Span]]

_PASSES = 6
_DIGIT = re.compile(r"\d")
_TABLE = shapes.by_size((*money.SHAPES, *national.SHAPES, *health.SHAPES))


class Settings(Protocol):
    """What is asked of a `gate.policy.Recogniser`."""

    @property
    def kind(self) -> str: ...

    @property
    def model(self) -> str | None: ...

    @property
    def language(self) -> str: ...


class Policy(Protocol):
    """What is asked of a `gate.policy.Policy`."""

    def enabled(self, rule: str) -> bool: ...

    def number(self, rule: str, threshold: str) -> float: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def recogniser(self) -> Settings | None: ...


def find(
    text: str,
    *,
    least: Mapping[str, float] = LEAST,
    oldest: float = 89,
    known: re.Pattern[str] | None = None,
    recognisers: Iterable[Recogniser] = (),
) -> list[Span]:
    """Private data in a text, in its order, without overlaps.

    Args:
        least: for each kind that is looked for, the least confidence that is reported.
        oldest: ages above this many years are reported.
        known: names that a user gives, as `names.known_names` makes it.
        recognisers: functions that find more, such as `presidio.recogniser()`.
    """
    found: list[Span] = []
    # What is replaced can lay bare what stood too close to it, so this repeats until nothing more is found. One pass
    # more is enough for what people write; the bound keeps made-up texts linear.
    for _ in range(_PASSES):
        seen = view(text, without=found)
        spans = _found(seen, least, oldest, known)
        more = [seen.source(span) for span in spans if span.confidence >= least.get(span.kind, 2)]
        grown = settle([*found, *more]) if more else found
        if grown == found:
            break
        found = grown
    theirs = [
        span
        for recognise in recognisers
        for span in recognise(text)
        if span.confidence >= least.get(span.kind, 2) and not pseudonyms(text[span.start : span.end])
    ]
    return settle([*found, *theirs]) if theirs else found


def look(row: Row, policy: Policy) -> Iterator[Hit]:
    """A hit for each span of each field; what is private stays out of it."""
    said = _settings(policy)
    for field in row.fields:
        for span in find(field.text, **said):
            proof = ", its check agrees" if span.checked else ""
            length = span.end - span.start
            seen = f"{RULES[span.kind].title} of {length} characters{proof}, confidence {span.confidence:.2f}"
            yield Hit(span.kind, row.id, seen, field.path, span.start, span.end, span.confidence)


def _found(seen: View, least: Mapping[str, float], oldest: float, known: re.Pattern[str] | None) -> Iterator[Span]:
    text = seen.text
    if "@" in text:
        yield from contact.emails(seen)
    if "://" in text or "www." in seen.low:
        yield from contact.urls(seen)
    yield from secrets.secrets(seen)
    yield from names.names(seen, known)
    yield from money.bics(seen)
    if text.count(":") >= 2 or (text.count(".") >= 3 and _DIGIT.search(text)):
        yield from contact.ips(seen)
    if text.count(":") >= 5 or text.count("-") >= 5:
        yield from contact.macs(seen)
    if not _DIGIT.search(text):
        return
    longest, named, dialled = 0, None, contact.may_be_dialled(seen)
    for run in shapes.runs(text):
        size = sum(len(group.text) for group in run)
        longest = max(longest, size)
        if size >= 4:
            if named is None:
                named = evidence.mentioned(seen, _TABLE.names)
            yield from shapes.shaped(seen, _TABLE, run, least, named=named)
        area = text.endswith((")", ") "), 0, run[0].start)  # (02472) 01986 is cut at its bracket
        if (size >= 6 or area) and (dialled or len(run) > 1):
            yield from contact.phones(seen, run[0].start, run[-1].end)
    if longest >= 26:
        yield from money.wallets(seen)
    yield from postal.addresses(seen)
    yield from postal.postcodes(seen)
    yield from health.dates(seen, least)
    yield from health.ages(seen, oldest)


_last: tuple[Policy | None, dict[str, Any]] = (None, {})


def _settings(policy: Policy) -> dict[str, Any]:
    """The arguments of `find` that a policy sets, read once for a policy and not for each row."""
    global _last
    if _last[0] is not policy:
        said = {
            "least": {kind: policy.number(kind, "confidence") for kind in RULES if policy.enabled(kind)},
            "oldest": policy.number("age", "above"),
            "known": names.known_names(policy.names),
            "recognisers": () if policy.recogniser is None else (_recogniser(policy.recogniser),),
        }
        _last = (policy, said)
    return _last[1]


def _recogniser(wanted: Settings) -> Recogniser:
    if wanted.kind == "gliner":
        assert wanted.model is not None, "a policy refuses GLiNER without a model"
        return gliner.recogniser(wanted.model)
    return presidio.recogniser(wanted.model, language=wanted.language)
