"""UTF-8 that was once read in an older encoding: cafÃ© for café. Found, and turned back byte for byte.

Windows-1252 and Latin-1 are turned back in every script; Windows-1250 for Latin letters, 1251 for Cyrillic ones.

A letter such as É before a quotation mark looks the same, so one pair alone counts only where no word could end so;
once a text has been seen to be broken, what looks like it there is turned back too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from luthier.gate.prose import settled


class Garbled(NamedTuple):
    start: int
    end: int
    plain: str
    """What it was before; empty where a byte is lost."""


def garbled(text: str) -> list[Garbled]:
    """In the order of the text, without overlap."""
    if text.isascii():
        return []
    found = [item for table in _TABLES if table.hint.search(text) for item in _of(table, text)]
    found += [Garbled(m.start(), m.end(), m.group().encode("latin-1").decode("cp1252")) for m in _C1.finditer(text)]
    found += [Garbled(m.start(), m.end(), "") for m in _LOST.finditer(text)]
    kept: list[Garbled] = []
    for item in sorted(found, key=lambda g: (g.start, -g.end)):
        if not kept or item.start >= kept[-1].end:
            kept.append(item)
    return kept


def ungarbled(text: str) -> str:
    """The text as it was, also after several such readings. Idempotent."""
    return settled(_once, text)


def _once(text: str) -> str:
    pieces, at = [], 0
    for start, end, plain in garbled(text):
        if plain:
            pieces += [text[at:start], plain]
            at = end
    return "".join([*pieces, text[at:]])


class _Table(NamedTuple):
    """An encoding in which UTF-8 was read."""

    name: str
    byte: dict[str, int]
    """Characters as the bytes they stand for, for bytes from 0x80."""
    hint: re.Pattern[str]
    run: re.Pattern[str]
    one: re.Pattern[str]


def _table(name: str) -> _Table:
    byte = {}
    for value in range(0x80, 0x100):
        if name == "cp1252":
            byte[chr(value)] = value
        byte[bytes([value]).decode(name, "ignore") or chr(value)] = value

    def marks(first: int, last: int) -> str:
        return "[" + "".join(re.escape(c) for c, value in byte.items() if first <= value <= last) + "]"

    rest = marks(0x80, 0xBF)
    one = "|".join(
        (
            marks(0xC2, 0xDF) + rest,
            marks(0xE0, 0xE0) + marks(0xA0, 0xBF) + rest,
            marks(0xE1, 0xEF) + rest + "{2}",
            marks(0xF0, 0xF0) + marks(0x90, 0xBF) + rest + "{2}",
            marks(0xF1, 0xF4) + rest + "{3}",
        )
    )
    return _Table(name, byte, re.compile(marks(0xC2, 0xF4) + rest), re.compile(f"(?:{one})+"), re.compile(one))


_TABLES = tuple(map(_table, ("cp1252", "cp1250", "cp1251")))
_C1 = re.compile("[\x80\x82-\x84\x86-\x8c\x8e\x91-\x9c\x9e\x9f]")
"""Quotes and dashes of Windows-1252 that were read as Latin-1. \x85 is a line end there, and stays."""
_LOST = re.compile("â€(?![\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ])")
_TYPOGRAPHIC = frozenset("’‘“”…–—«»•·´¨\xa0\x85 ")
"""What stands after a letter in honest text."""
_SURE = re.compile("â[€‚„†‡ˆ‰]|ï»¿|ï¿½|ï¼")


def _of(table: _Table, text: str) -> Iterator[Garbled]:
    runs: list[tuple[Garbled, int, set[str]]] = []
    for match in table.run.finditer(text):
        parts = [part.group() for part in table.one.finditer(match.group())]
        plain = _decoded(table, match.group())
        if plain:
            runs.append((Garbled(match.start(), match.end(), plain), len(parts), {part[0] for part in parts}))
    surely = [_is_sure(table, text, found, parts) for found, parts, _ in runs]
    leads: set[str] = set().union(*(seen for (*_, seen), sure in zip(runs, surely, strict=True) if sure))
    for (found, _, seen), sure in zip(runs, surely, strict=True):
        if sure or seen <= leads:
            yield found


def _decoded(table: _Table, run: str) -> str:
    """Empty where the bytes are no UTF-8 after all, or are control characters."""
    try:
        plain = bytes(table.byte[c] for c in run).decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return "" if table.name != "cp1252" and not plain.isprintable() else plain


def _is_sure(table: _Table, text: str, found: Garbled, parts: int) -> bool:
    run = text[found.start : found.end]
    before, after = text[found.start - 1 : found.start], text[found.end : found.end + 1]
    if table.name == "cp1251":
        return parts >= 3 and all(c in "РС" for c in run[::2])
    if table.name == "cp1250":
        odd = run[0] in "ĂĹ" and found.plain.isalpha() and not before.isupper()
        return _SURE.match(run) is not None or (odd and (before.islower() or not run[1].isalpha()))
    if parts >= 2 or len(run) == 4 or _SURE.match(run):
        return not all(c in _TYPOGRAPHIC for c in run[1:]) or parts >= 3
    if len(run) == 3:
        return False
    if run[0] in "ÃÂ":
        return run[1] not in _TYPOGRAPHIC or (run[1] == "\xa0" and not before.isupper()) or after.isalpha()
    return run[0] in "ÄÅ" and run[1] not in _TYPOGRAPHIC and (before.islower() or after.isalpha())
