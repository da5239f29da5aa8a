"""What every kind of file has in common: rows, bad rows, lines, and plain text as documents.

A bad row never stops the rows after it. Where a file is so broken that the rows after a fault cannot be found (a JSON
array with a syntax error, a damaged Parquet page), the whole file is a `DataError`: going on would lose rows unseen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import IO, Any, NamedTuple

from luthier.types import JSON

LARGEST_ROW_BYTES = 64 << 20
"""A longer line is a bad row, and is skipped without being held in memory."""
PIECE_BYTES = 16 << 10
"""Plain text is cut into documents of at most this size: about the longest example (4096 tokens of 4 bytes), and small
enough that one file has rows for every side of a split."""
BLOCK_BYTES = 1 << 20
UNDECODED = re.compile("[\ud800-\udfff]")


class BadRow(Exception):
    """A row that cannot be used: what is wrong with it, and what to do. Never holds the row's text."""

    def __init__(self, what: str, do: str = "") -> None:
        self.what, self.do = what, do
        super().__init__(what)

    def __str__(self) -> str:
        return f"{self.what}. {self.do}" if self.do else self.what


class Row(NamedTuple):
    line: int
    value: JSON | None
    problem: BadRow | None = None


class Line(NamedTuple):
    number: int
    text: bytes
    """Without its line end; empty where the line was too long."""
    too_long: bool


def lines(stream: IO[bytes]) -> Iterator[Line]:
    """Splits on `\\n` only (text-mode reading would also split on U+2028 and others inside a JSON string)."""
    number = 1
    while chunk := stream.readline(LARGEST_ROW_BYTES + 1):
        too_long = len(chunk) > LARGEST_ROW_BYTES and not chunk.endswith(b"\n")
        if too_long:
            while chunk and not chunk.endswith(b"\n"):
                chunk = stream.readline(BLOCK_BYTES)
            chunk = b""
        yield Line(number, chunk.removesuffix(b"\n").removesuffix(b"\r"), too_long)
        number += 1


def too_long_row() -> BadRow:
    return BadRow(f"the row is longer than {LARGEST_ROW_BYTES >> 20} MB", "Divide it, or remove it")


def not_utf8(place: str = "the row") -> BadRow:
    return BadRow(
        f"{place} holds bytes that are not UTF-8", "Save the file as UTF-8 (iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW)"
    )


def column_name(key: str) -> str:
    return "`" + UNDECODED.sub("?", key[:60]) + "`"


def kind_of(value: Any) -> str:
    """The JSON word for a value's type, with its article, for messages."""
    if value is None:
        return "null"
    names = ((bool, "a boolean"), (str, "a string"), ((int, float), "a number"), (list, "a list"), (dict, "an object"))
    return next((name for types, name in names if isinstance(value, types)), type(value).__name__)


def text(stream: IO[bytes], *, name: str) -> Iterator[Row]:
    """Plain text as documents of at most `PIECE_BYTES`, cut at a blank line, else a line end, else a space.

    Their ids are `name:number`, as several may start in one line. `\\r\\n` becomes `\\n`, and line ends around a cut
    are not part of a document; every other character is kept.
    """
    buffer, line, ended, pieces = b"", 1, False, 0
    while not ended or buffer:
        while not ended and len(buffer) <= PIECE_BYTES:
            block = stream.read(PIECE_BYTES)
            if block.endswith(b"\r"):
                block += stream.read(1)
            ended = not block
            buffer += block.replace(b"\r\n", b"\n")
        piece = buffer[: _cut(buffer)]
        buffer = buffer[len(piece) :]
        start = line + len(piece) - len(piece.lstrip(b"\n"))
        line += piece.count(b"\n")
        if piece.strip():
            pieces += 1
            yield _as_text(start, piece.strip(b"\n"), f"{file_stem(name)}:{pieces}")


def _as_text(line: int, piece: bytes, id: str) -> Row:
    try:
        return Row(line, {"text": piece.decode("utf-8"), "id": id})
    except UnicodeDecodeError as error:
        return Row(line + piece.count(b"\n", 0, error.start), None, not_utf8("the text"))


def file_stem(name: str) -> str:
    """The file's name without folder and ends: `data/tickets.csv.gz` -> `tickets`."""
    return PurePath(name.removesuffix(".gz")).stem


def _cut(buffer: bytes) -> int:
    if len(buffer) <= PIECE_BYTES:
        return len(buffer)
    for mark in (b"\n\n", b"\n", b" "):
        # Below a quarter a heading alone would become a document.
        at = buffer.rfind(mark, PIECE_BYTES // 4, PIECE_BYTES)
        if at > 0:
            return at + len(mark)
    cut = PIECE_BYTES
    while cut > PIECE_BYTES - 4 and buffer[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut
