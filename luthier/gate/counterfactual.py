"""Prompts that differ in one trait of a person: he or she, a name, an age, a nationality. An evaluation set for later.

Each line holds a row's prompt and its twin; a fair model answers both alike. Only changes that leave an English
sentence grammatical are made: a prompt in which a word could be read two ways ("gave her money") is left out. The file
holds the texts as they are, so it is as private as the data, and its owner alone can read it.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from luthier.errors import InputError
from luthier.runs.folder import storage, sync

if TYPE_CHECKING:
    from luthier.gate.store import Store


class Twin(NamedTuple):
    kind: str
    """pronoun, name, age, nationality."""
    change: str
    """`he -> she`, the first of the changes."""
    text: str


def twins(text: str) -> Iterator[Twin]:
    """One twin for each kind of trait that can be changed; text without any gives none."""
    for kind, swap in _SWAPS.items():
        found = swap(text)
        if found is not None and found[1] != text:
            yield Twin(kind, *found)


def write_pairs(store: Store, path: Path, *, each: int = 200) -> Counter[str]:
    """Writes JSON lines, held-back rows first, at most `each` of a kind, and says how many there are of each.

    Where no row gives a pair, nothing is written.

    Raises:
        InputError: something is there already.
        StorageError: the disk is full.
    """
    refuse_existing(path)
    beside = path.with_name(f".{path.name}.partial")
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.unlink(missing_ok=True)
        try:
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                written = _write(store, file, each)
                file.flush()
                os.fsync(file.fileno())
            if written:
                refuse_existing(path)
                os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        sync(path.parent)
    return written


def refuse_existing(path: Path) -> None:
    """Nothing is ever overwritten unasked.

    Raises:
        InputError: something is there already.
    """
    if os.path.lexists(path):
        raise InputError("there is a file of this name already", where=str(path), do="name another, or remove it")


def _write(store: Store, file: IO[str], each: int) -> Counter[str]:
    written: Counter[str] = Counter()
    sql = (
        "SELECT id, side, prompt[lead + 1:], answer, labels FROM rows WHERE coalesce(prompt_language, 'en') = 'en' AND "
        "prompt <> '' AND length(prompt) < 20000 ORDER BY side = 'train', side = 'validation', hash(row_key), row"
    )
    for batch in store.batches(sql):
        for row, side, prompt, answer, labels in batch:
            for kind, change, text in twins(prompt):
                if written[kind] < each:
                    written[kind] += 1
                    pair = {"id": row, "side": side, "kind": kind, "change": change, "prompt": prompt, "twin": text}
                    expected = {"labels": labels} if labels else {"answer": answer}
                    file.write(json.dumps(pair | expected, ensure_ascii=False) + "\n")
        if all(written[kind] >= each for kind in _SWAPS):
            break
    return Counter({kind: written[kind] for kind in _SWAPS if written[kind]})


Swap = Callable[[str], tuple[str, str] | None]


def _cased(word: str, like: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[0].upper() + word[1:] if like[0].isupper() else word


def _words(text: str) -> list[str]:
    return text.split()


# He and she

_PAIRS = (
    "he she|himself herself|man woman|men women|boy girl|boys girls|father mother|husband wife|son daughter"
    "|brother sister|uncle aunt|nephew niece|grandfather grandmother|gentleman lady|boyfriend girlfriend|male female"
    "|mr. ms.|sir madam"
)
_GENDERED = {a: b for pair in _PAIRS.split("|") for a, b in (pair.split(), pair.split()[::-1])}
_GENDERED_WORD = re.compile(r"(?<![\w'’-])(?:mr\.|ms\.|[a-z]+)(?![\w-])", re.IGNORECASE)
_NO_TWIN = frozenset(
    _words(
        "mrs miss mr ms pregnant pregnancy menopause menstrual uterus ovary ovaries ovarian vaginal hysterectomy "
        "cervical prostate testicular penis vasectomy erectile prostatectomy mammogram gravida lady's"
    )
)
"""Words that hold one sex fast: changed around them, a sentence says what cannot be."""
_TAKE_TWO = re.compile(
    r"\b(?:g[ai]ve[ns]?|giving|tell|tells|told|ask|asked|show|showed|shown|sen[dt]|offer|offered|teach|taught|made"
    r"|make|let|saw|see|heard|help|helped|watch|watched|call|called|pay|paid|owe|owes|owed|bring|brought|buy|bought|get|got)\Z",
    re.IGNORECASE,
)
_AFTER_HIM = frozenset(
    _words("and or but to in at on for with from by about when because if that as than who yesterday today")
)


def _other_gender(text: str) -> tuple[str, str] | None:
    pieces, at, changes = [], 0, []
    for match in _GENDERED_WORD.finditer(text):
        word, lower = match.group(), match.group().lower()
        if lower in _NO_TWIN:
            return None
        twin = _GENDERED.get(lower) or _pronoun(text, match)
        if twin == "":
            return None
        if twin:
            pieces += [text[at : match.start()], _cased(twin, word)]
            at = match.end()
            changes.append(f"{lower} -> {twin}")
    return (changes[0], "".join([*pieces, text[at:]])) if changes else None


def _pronoun(text: str, match: re.Match[str]) -> str | None:
    """The twin of him, his, her or hers; empty where it could be read two ways."""
    word = match.group().lower()
    after = re.match(r"\s+([A-Za-z]+)|\s+[^\s.,;:!?)\"]", text[match.end() : match.end() + 40])
    follows = (after[1] or "").lower() if after else ""
    if after and not follows:
        return "" if word in ("his", "her") else None  # "her $5" can be a gift or a possession
    if word in ("him", "hers"):
        return {"him": "her", "hers": "his"}[word]
    if word == "his":
        return "" if follows in _AFTER_HIM else "her" if follows else "hers"
    if word == "her":
        if not follows or follows in _AFTER_HIM:
            return "him"
        before = text[max(0, match.start() - 20) : match.start()].rstrip()
        return "" if _TAKE_TWO.search(before) else "his"
    return None


# Names, by what they lead people to expect (Bertrand and Mullainathan, 2004). The sex stays, so pronouns do.

_NAMES = {
    **dict(
        zip(
            _words("Emily Anne Jill Allison Laurie Sarah Meredith"),
            _words("Lakisha Aisha Keisha Tamika Latoya Ebony Fatima"),
            strict=True,
        )
    ),
    **dict(
        zip(
            _words("Todd Neil Geoffrey Brett Brendan Greg Matthew"),
            _words("Jamal Rasheed Tyrone Kareem Darnell Tremayne Mohammed"),
            strict=True,
        )
    ),
}
_EVERY_NAME = _NAMES | {b: a for a, b in _NAMES.items()}
_NAME = re.compile(rf"\b(?:{'|'.join(_EVERY_NAME)})\b")


def _other_name(text: str) -> tuple[str, str] | None:
    first = _NAME.search(text)
    if first is None:
        return None
    changed = _NAME.sub(lambda match: _EVERY_NAME[match.group()], text)
    return f"{first.group()} -> {_EVERY_NAME[first.group()]}", changed


# Ages

_AGE = re.compile(r"\b(?:(an?) )?(\d{2})([- ]years?[- ]old)\b", re.IGNORECASE)


def _other_age(text: str) -> tuple[str, str] | None:
    match = _AGE.search(text)
    if match is None or len({m[2] for m in _AGE.finditer(text)}) > 1:
        return None
    # Grown-ups stay grown up, and nobody comes of age or retires by two years: 40 years the other way.
    old = int(match[2])
    new = old + 40 if 20 <= old < 50 else old - 40 if 60 <= old < 95 else None
    if new is None:
        return None

    def written(found: re.Match[str]) -> str:
        article = f"{_cased(_article(new), found[1])} " if found[1] else ""
        return f"{article}{new}{found[3]}"

    return f"{old} -> {new}", _AGE.sub(written, text)


def _article(number: int) -> str:
    return "an" if 80 <= number < 90 or number in (11, 18) else "a"


# Nationalities, before a person: "a German customer", not "the German language"

_NATIONS = dict(
    zip(
        _words("American British German French Italian Indian Nigerian Mexican Chinese"),
        _words("Nigerian Pakistani Turkish Algerian Syrian British American German American"),
        strict=True,
    )
)
_NATION = re.compile(
    rf"\b(?:(an?) )?({'|'.join(_NATIONS)})(?= (?:customer|client|patient|man|woman|person|citizen|national|student"
    rf"|worker"
    r"|employee|doctor|nurse|guest|tourist|user|applicant|tenant|passport|account holder|resident|friend"
    r"|colleague)s?\b)",
    re.IGNORECASE,
)


def _other_nation(text: str) -> tuple[str, str] | None:
    match = _NATION.search(text)
    if match is None:
        return None

    def written(found: re.Match[str]) -> str:
        twin = _NATIONS[found[2].capitalize()]
        article = f"{_cased('an' if twin[0] in 'AEIO' else 'a', found[1])} " if found[1] else ""
        return article + twin

    old = match[2].capitalize()
    return f"{old} -> {_NATIONS[old]}", _NATION.sub(written, text)


_SWAPS: dict[str, Swap] = {
    "pronoun": _other_gender,
    "name": _other_name,
    "age": _other_age,
    "nationality": _other_nation,
}
