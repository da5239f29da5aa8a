"""JSON and JSONL to rows, as the standard has them: no NaN, no key twice, no half of a surrogate pair."""

from __future__ import annotations

import codecs
import io
import json
import math
import re
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

from luthier.data.rows import (
    BLOCK_BYTES,
    LARGEST_ROW_BYTES,
    UNDECODED,
    BadRow,
    Row,
    column_name,
    kind_of,
    lines,
    not_utf8,
    too_long_row,
)
from luthier.errors import DataError
from luthier.types import JSON

DEEPEST_JSON = 64
LISTS_OF_ROWS = ("data", "rows", "train", "examples", "records", "items")


def json_file(stream: IO[bytes], *, name: str) -> Iterator[Row]:
    """JSON by its content: an array, one object with a list of rows in it, or one object a line."""
    first, skipped = stream.readline(LARGEST_ROW_BYTES + 1), 0
    while first.endswith(b"\n") and not first.strip():
        first, skipped = stream.readline(LARGEST_ROW_BYTES + 1), skipped + 1
    second = stream.readline(LARGEST_ROW_BYTES + 1) if first.endswith(b"\n") else b""
    rest = io.BufferedReader(_Chain(first + second, stream), BLOCK_BYTES)
    alone, more, opening = _whole(first), bool(second.strip()), first.lstrip()[:1]
    array = not more or alone is None or (isinstance(alone, list) and all(isinstance(row, dict) for row in alone))
    if opening == b"[" and array:
        yield from _array(rest, name=name, line=skipped + 1)
    elif opening == b"{" and (_rows_key(alone) and not more if alone else _goes_on(first)):
        yield from _object_with_rows(rest, name=name)
    else:
        yield from (row._replace(line=row.line + skipped) for row in jsonl(rest, name=name))


def _goes_on(line: bytes) -> bool:
    """Whether an incomplete first line is that of an object over several lines, and not a faulty row of its own."""
    return line.rstrip().endswith((b"{", b"[", b",", b":"))


def _whole(line: bytes) -> Any:
    """The value of a line that is complete JSON, else None."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def jsonl(stream: IO[bytes], *, name: str) -> Iterator[Row]:
    """One JSON object a line; blank lines are passed over."""
    decoder = _Decoder()
    for number, data, too_long in lines(stream):
        if too_long:
            yield Row(number, None, too_long_row())
        elif stripped := data.strip(b" \t\r"):
            yield _json_line(number, stripped, decoder)


def _json_line(number: int, data: bytes, decoder: _Decoder) -> Row:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Row(number, None, not_utf8(f"the row, at byte {error.start + 1},"))
    try:
        value, end = decoder.decode(text)
    except json.JSONDecodeError as error:
        return Row(number, None, _not_json(error))
    except RecursionError:
        return Row(number, None, _too_deep())
    if text[end:].strip():
        return Row(
            number, None, BadRow(f"something follows the JSON object at column {end + 1}", "Put one object on a line")
        )
    return _as_row(number, value, decoder.faults, escapes=b"\\ud" in data.lower())


def _not_json(error: json.JSONDecodeError) -> BadRow:
    return BadRow(f"this is no valid JSON at column {error.colno}: {error.msg}", "Correct the line")


def _as_row(number: int, value: Any, faults: list[BadRow], *, escapes: bool) -> Row:
    """`escapes`: the source may hold \\ud800 escapes or undecodable bytes, which only a walk over the value finds."""
    if faults:
        return Row(number, None, faults[0])
    if not isinstance(value, dict):
        return Row(
            number, None, BadRow(f"a row is a JSON object, this is {kind_of(value)}", "Write {...} with named columns")
        )
    if escapes and UNDECODED.search(json.dumps(value, ensure_ascii=False)):
        return Row(
            number,
            None,
            BadRow("the row holds half of a surrogate pair or bytes that are not UTF-8", "Save it as UTF-8"),
        )
    return Row(number, value)


def json_value(text: str, place: str) -> Any:
    """JSON that stands as text inside a row, such as the arguments of a tool call. `place` names it in the error.

    Raises:
        BadRow: it is no valid JSON.
    """
    decoder = _Decoder()
    text = text.strip()
    try:
        value, end = decoder.decode(text)
    except json.JSONDecodeError as error:
        raise BadRow(f"{place} is no valid JSON at character {error.pos + 1}: {error.msg}", "Correct it") from None
    except RecursionError:
        raise _too_deep() from None
    if text[end:]:
        raise BadRow(f"{place} is no valid JSON: something follows at character {end + 1}", "Correct it")
    if "\\ud" in text.lower() and UNDECODED.search(json.dumps(value, ensure_ascii=False)):
        raise BadRow(f"{place} holds half of a surrogate pair", "Write the whole character")
    if decoder.faults:
        raise BadRow(f"{place}: {decoder.faults[0].what}", decoder.faults[0].do)
    return value


class _Decoder:
    """JSON as the standard has it. Faults that `json` lets pass are collected, so that decoding goes on after them."""

    def __init__(self) -> None:
        self.faults: list[BadRow] = []
        self._json = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_int=self._integer,
            parse_float=self._float,
        )

    def decode(self, text: str, start: int = 0) -> tuple[Any, int]:
        """One value from `start`, and where it ends; `faults` holds what is wrong with it.

        Raises:
            json.JSONDecodeError, RecursionError: there is no value to be had.
        """
        self.faults.clear()
        value, end = self._json.raw_decode(text, start)
        if not self.faults and _deeper_than(value, DEEPEST_JSON):
            self.faults.append(_too_deep())
        return value, end

    def _object(self, pairs: list[tuple[str, Any]]) -> JSON:
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            self.faults.append(BadRow(f"the key {column_name(twice)} stands twice in one object", "Keep one of them"))
        return value

    def _constant(self, name: str) -> None:
        self.faults.append(BadRow(f"{name} is no JSON value", "Write null or a number"))

    def _integer(self, digits: str) -> int:
        if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
            self.faults.append(BadRow("an integer has more than 64 bits", "Write it as text, in quotes"))
            return 0
        return int(digits)

    def _float(self, digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            self.faults.append(BadRow("a number is too large", "Write a number below 1.8e308, or text in quotes"))
        return value


def _too_deep() -> BadRow:
    return BadRow(f"JSON is nested more than {DEEPEST_JSON} levels deep", "Flatten the row")


def _deeper_than(value: Any, levels: int) -> bool:
    if isinstance(value, dict):
        return levels == 0 or any(_deeper_than(inner, levels - 1) for inner in value.values())
    if isinstance(value, list):
        return levels == 0 or any(_deeper_than(inner, levels - 1) for inner in value)
    return False


def _rows_key(value: Any) -> str | None:
    """The one key that holds a list of objects, where it is named as such lists are."""
    if not isinstance(value, dict):
        return None
    keys = [k for k in LISTS_OF_ROWS if isinstance(value.get(k), list) and all(isinstance(r, dict) for r in value[k])]
    return keys[0] if len(keys) == 1 else None


def _object_with_rows(stream: IO[bytes], *, name: str) -> Iterator[Row]:
    """One object, read whole: such files are small, and above the limit the user is asked for JSONL."""
    data = stream.read(LARGEST_ROW_BYTES + 1)
    if len(data) > LARGEST_ROW_BYTES:
        raise DataError(
            f"a JSON object of more than {LARGEST_ROW_BYTES >> 20} MB is not read as a file of rows",
            where=name,
            do="write one object a line (JSONL), for example with: jq -c '.data[]' OLD > NEW.jsonl",
        )
    decoder = _Decoder()
    try:
        text = data.decode("utf-8", "surrogateescape").strip()
        value, end = decoder.decode(text)
    except json.JSONDecodeError as error:
        raise _broken_json(name, row=1, line=error.lineno, why=f"{error.msg} at column {error.colno}") from None
    except RecursionError:
        raise _broken_json(name, row=1, line=1, why=_too_deep().what) from None
    if text[end:]:
        raise _broken_json(name, row=1, line=text.count("\n", 0, end) + 1, why="something follows the object")
    key = _rows_key(value)
    if key is None:
        yield _as_row(1, value, decoder.faults, escapes=True)
        return
    if decoder.faults:
        raise DataError(
            f"the rows under `{key}` cannot be read: {decoder.faults[0].what}", where=name, do=decoder.faults[0].do
        )
    for number, row in enumerate(value[key], start=1):
        yield _as_row(number, row, [], escapes=True)


def _broken_json(name: str, *, row: int, line: int, why: str) -> DataError:
    return DataError(
        "this is no valid JSON, and what follows cannot be read",
        where=f"{name}:{line}",
        got=f"row {row}: {why}",
        do="correct it, or write one object a line (JSONL): a bad line then leaves the others readable",
    )


def _array(stream: IO[bytes], *, name: str, line: int) -> Iterator[Row]:
    """A JSON array, element by element; no more than one element and one block are held."""
    buffer = _Buffer(stream, line=line)
    decoder = _Decoder()
    position, number = buffer.skip_blank(buffer.skip_blank(0) + 1), 0
    if buffer.text[position : position + 1] == "]":
        position = buffer.skip_blank(position + 1)
    else:
        separator = ","
        while separator == ",":
            number += 1
            element = _element(buffer, position, decoder, name=name, number=number)
            yield element.row
            separator = element.separator
            position = buffer.skip_blank(buffer.forget(element.end + 1))
    if position < len(buffer.text):
        raise _broken_json(name, row=number, line=buffer.line_at(position), why="something follows the array")


class _Element(NamedTuple):
    row: Row
    end: int
    """Where the separator after it stands."""
    separator: str


def _element(buffer: _Buffer, start: int, decoder: _Decoder, *, name: str, number: int) -> _Element:
    while True:
        why, at, final = "the array is not closed", start, False
        try:
            value, end = decoder.decode(buffer.text, start)
        except json.JSONDecodeError as error:
            why, at = error.msg, error.pos
        except RecursionError:
            why, final = _too_deep().what, True
        else:
            # An element counts only with the separator after it: `12` may be the start of `123` in the next block.
            source, end = buffer.text[start:end], buffer.skip_blank(end)
            separator = buffer.text[end : end + 1]
            if separator in (",", "]") and separator:
                odd = "\\ud" in source.lower() or (not source.isascii() and bool(UNDECODED.search(source)))
                return _Element(_as_row(number, value, decoder.faults, escapes=odd), end, separator)
            if separator:
                why, at, final = "a comma or ] is missing", end, True
        if len(buffer.text) - start > LARGEST_ROW_BYTES:
            why, final = too_long_row().what, True
        if final or not buffer.fill():
            raise _broken_json(name, row=number, line=buffer.line_at(at), why=why)


class _Buffer:
    """Decoded text of a stream from some line on; bytes that are not UTF-8 stand in it as lone surrogates."""

    def __init__(self, stream: IO[bytes], *, line: int) -> None:
        self.text = ""
        self._line = line
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def fill(self) -> bool:
        """Doubles the text, so that a large element is decoded a few times only and not once for each block."""
        data = self._stream.read(max(BLOCK_BYTES, len(self.text)))
        self.text += self._decoder.decode(data, final=not data)
        return bool(data)

    def skip_blank(self, position: int) -> int:
        """The next position that holds no white space, or the end of the stream."""
        while True:
            position = _BLANK.match(self.text, position).end()  # type: ignore[union-attr]  # matches nothing, too
            if position < len(self.text) or not self.fill():
                return position

    def forget(self, position: int) -> int:
        """Lets go of what stands before `position` once it is a block, and returns the position after that."""
        if position < BLOCK_BYTES:
            return position
        self._line = self.line_at(position)
        self.text = self.text[position:]
        return 0

    def line_at(self, position: int) -> int:
        return self._line + self.text.count("\n", 0, position)


_BLANK = re.compile(r"[ \t\r\n]*")


class _Chain(io.RawIOBase):
    """Bytes that were read ahead, then the stream they came from."""

    def __init__(self, head: bytes, stream: IO[bytes]) -> None:
        self._head, self._stream = memoryview(head), stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] if len(self._head) else memoryview(self._stream.read(len(buffer)))
        self._head = self._head[len(data) :]
        buffer[: len(data)] = data
        return len(data)
