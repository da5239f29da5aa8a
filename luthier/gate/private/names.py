"""Names of people, where something announces one: a title, a salutation, "my name is", the head of an e-mail.

A name has no form, so confidence is low, and most names in running text are not found this way. A list of known names
(`known`) finds those, whatever stands around them; a recogniser (`presidio`, `gliner`) finds more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from luthier.gate.private.spans import Span, View

_UPPER = "".join(c for c in map(chr, range(0x41, 0x530)) if c.isupper())
_LETTER = r"[^\W\d_]"
_TOKEN = rf"[{_UPPER}](?:\.|{_LETTER}{{1,24}}(?:['-]{_LETTER}{{1,24}})?|'[{_UPPER}]{_LETTER}{{1,24}})"
_PARTICLE = r"(?:(?:de|del|della|di|da|dos|du|van|von|der|den|ter|el|al|bin|ibn|la|le|zu|af|av) ){0,3}"
# A capital stands in front, so that the search skips to it.
_PEOPLE = re.compile(rf"[{_UPPER}](?<![\w.@/'-].){_TOKEN[len(_UPPER) + 2 :]}(?: {_PARTICLE}{_TOKEN}){{0,4}}")


def _listed(name: str) -> frozenset[str]:
    """The words of a file beside this one, without its comments."""
    lines = (_WORDS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


_WORDS = Path(__file__).parent / "words"
_NO_NAME = _listed("no_names")
GIVEN = _listed("given_names")
_TITLES = _listed("titles")
_GREETINGS = _listed("greetings")
_INTRODUCED = (
    "my name is", "his name is", "her name is", "their name is", "full name is", "maiden name is",
    "last name is", "first name is",
    "surname is", "name was", "the name is", "name on the account is", "name on the card is", "ich heiße",
    "mein name ist",
    "je m'appelle", "me llamo", "mi nombre es", "mi chiamo", "mijn naam is", "meu nome é",
)  # fmt: skip
_LABELLED = (
    "name", "attn", "attention", "account holder", "cardholder", "contact person", "signed", "c/o", "patient name",
    "patient", "client", "customer", "student", "employee", "last name?", "full name?",
)  # fmt: skip
_OWN_NAME = (
    "first_name",
    "last_name",
    "first name",
    "last name",
    "full name",
    "full_name",
    "surname",
    "customer name",
    "last name?",
)
_SPOKEN_OF = (
    "speak to", "speak with", "speaking to", "speaking with", "ask for", "on behalf of", "signed by",
    "written by", "prescribed by",
    "seen by", "referred by", "married to",
)  # fmt: skip
_WEAKLY = ("this is", "i am", "i'm", "it's", "meet", "named", "called")
_CLOSINGS = (
    "regards",
    "sincerely",
    "yours",
    "thanks",
    "thank you",
    "cheers",
    "best",
    "grüße",
    "cordialement",
    "saludos",
)
_HEADERS = ("from", "to", "cc", "bcc", "von", "an", "de", "à", "para", "da")
_REACH = 32


def names(view: View, known: re.Pattern[str] | None = None) -> Iterator[Span]:
    """Names behind what announces them, frequent given names with another name, and those on a list."""
    if known is not None:
        for found in known.finditer(view.low):
            yield Span("person_name", *found.span(), 0.95)
    for found in _PEOPLE.finditer(view.text):
        start, end, announced = _without_words(found.group(), found.start())
        if start == end:
            continue
        tokens = view.text[start:end].split(" ")
        sure = announced or _announced(view.low, start, end)
        if tokens[0].lower() in GIVEN:
            sure = max(sure, 0.65 if len(tokens) > 1 else 0.6 if sure else 0.4)
        elif len(tokens) == 1 and sure < 0.7:
            continue
        if sure:
            yield Span("person_name", start, end, sure)


def known_names(known: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern of names that a user gives; None without any."""
    parts = sorted({re.escape(" ".join(name.lower().split())) for name in known if name.strip()}, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)") if parts else None


def _without_words(text: str, start: int) -> tuple[int, int, float]:
    """Where the name in a row of capitals starts and ends, and how much a title or greeting in front says for it."""
    announced, tokens = 0.0, text.split(" ")
    while tokens and (word := tokens[0].lower().rstrip(".")) in _FRONT:
        announced = 0.85 if word in _TITLES else 0.75 if word in _GREETINGS else 0.0
        start += len(tokens.pop(0)) + 1
    kept = 0
    while kept < len(tokens) and tokens[kept].lower().partition("'")[0] not in _NO_NAME:
        kept += 1
    name = " ".join(tokens[:kept])
    return start, start + len(name.removesuffix("'s")), announced


def _announced(low: str, start: int, end: int) -> float:
    """How much the text right before a name says for it."""
    raw = low[max(start - _REACH, 0) : start]
    before = raw.rstrip(" \"'*_([")
    colon, before = before.endswith((":", "=")), before.rstrip(" .:=,\n\"'*_\\")
    if not before or raw.endswith("\n\n"):
        return 0
    word = before.rpartition(" ")[2].rpartition("\n")[2].lstrip("(\"'*")
    if "\n" in raw[len(before) :]:
        closing = before.endswith(_CLOSINGS) and end + 2 > len(low.rstrip()) - 200
        return 0.75 if closing else 0
    if word in _TITLES and not colon:
        return 0.85
    if word in _GREETINGS and not colon:
        return 0.75
    if colon and word in _HEADERS and low[end : end + 3].lstrip(" \"'")[:1] in ("<", "\n", ""):
        return 0.85
    if before.endswith(_INTRODUCED):
        return 0.85
    if colon and before.endswith(_LABELLED):
        # A product has a name too: "name": "Notebook".
        return 0.75 if before.endswith(_OWN_NAME) else 0.69 if not raw.endswith('"') else 0.4
    if before.endswith(_SPOKEN_OF):
        return 0.69
    if word and before.endswith(_WEAKLY) and raw.endswith(" "):
        return 0.55
    return 0


_FRONT = _TITLES | _GREETINGS | _NO_NAME
