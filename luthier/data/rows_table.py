"""CSV, TSV and Parquet to rows: tables whose columns have names."""

from __future__ import annotations

import csv
import datetime
import decimal
import math
import re
from collections.abc import Iterator
from typing import IO, Any

from luthier.data.rows import (
    LARGEST_ROW_BYTES,
    UNDECODED,
    BadRow,
    Line,
    Row,
    column_name,
    lines,
    not_utf8,
    too_long_row,
)
from luthier.errors import DataError
from luthier.types import JSON

PARQUET_BATCH_ROWS = 128


def delimited(stream: IO[bytes], *, name: str, delimiter: str | None = None) -> Iterator[Row]:
    """CSV or TSV with a header. Without a `delimiter`, the header says whether it is a comma, semicolon or tab.

    An empty field is None: CSV cannot tell it from a missing value.
    """
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_ROW_BYTES))
    feed = _Feed(stream)
    first = feed.peek()
    reader = csv.reader(feed, delimiter=delimiter or _delimiter_of(first), strict=True)
    header = _header(reader, name=name)
    width = len(header)
    while True:
        start = feed.number + 1
        feed.too_long = False
        try:
            fields = next(reader, None)
        except csv.Error as error:
            yield Row(start, None, _bad_csv(str(error), start, feed.number))
            continue
        if fields is None:
            return
        if feed.too_long:
            yield Row(start, None, too_long_row())
        elif fields:
            problem = _bad_fields(fields, width, header)
            yield (
                Row(start, None, problem)
                if problem
                else Row(start, {key: field or None for key, field in zip(header, fields, strict=True)})
            )


class _Feed:
    """Decoded lines for the csv reader, counted as they are taken."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.number, self.too_long = 0, False
        self._lines = lines(stream)
        self._next: Line | None = None

    def peek(self) -> str:
        self._next = next(self._lines, None)
        return _text(self._next) if self._next else ""

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._next or next(self._lines)
        self._next = None
        self.number = line.number
        self.too_long = self.too_long or line.too_long
        return _text(line) + "\n"


def _text(line: Line) -> str:
    return line.text.decode("utf-8", "surrogateescape")


def _delimiter_of(header: str) -> str:
    bare = re.sub(r'"[^"]*"', "", header)
    return max((",", ";", "\t"), key=lambda mark: (bare.count(mark), mark == ","))


def _header(reader: Any, *, name: str) -> list[str]:
    header: list[str] = []
    try:
        while not header:
            header = next(reader)
    except StopIteration:
        raise DataError(
            "this file has no header and no rows", where=name, do="write the column names in line 1"
        ) from None
    except csv.Error as error:
        raise DataError("the header cannot be read", where=f"{name}:1", got=str(error), do="correct line 1") from None
    header = [column.strip() for column in header]
    if any(UNDECODED.search(column) or "\0" in column for column in header):
        raise DataError("the header is not UTF-8 text", where=f"{name}:1", do="save the file as UTF-8")
    if "" in header:
        raise DataError(
            f"column {header.index('') + 1} of the header has no name",
            where=f"{name}:1",
            got=f"{len(header)} columns",
            do="name every column (pandas: to_csv(..., index=False))",
        )
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise DataError(
            f"the header names {column_name(twice[0])} twice",
            where=f"{name}:1",
            do="give every column a name of its own",
        )
    return header


def _bad_csv(message: str, start: int, end: int) -> BadRow:
    if "unexpected end of data" in message:
        return BadRow(
            f"a quotation mark opens here and is never closed; it takes in all {end - start + 1} lines to the end",
            "Close it, or double it where it belongs to the text",
        )
    if "field larger" in message:
        return BadRow(
            f"a field is longer than {LARGEST_ROW_BYTES >> 20} MB", "Look for a quotation mark that is not closed"
        )
    if "new-line character" in message:
        return BadRow("a lone carriage return stands in a field", "Save the file with LF or CRLF line ends")
    span = f" (lines {start} to {end})" if end > start else ""
    return BadRow(
        f"the quotation marks do not fit{span}",
        'Put fields with quotes, commas or line ends in "..." and double inner quotes',
    )


def _bad_fields(fields: list[str], width: int, header: list[str]) -> BadRow | None:
    if len(fields) != width:
        return BadRow(
            f"the row has {len(fields)} fields, the header has {width}",
            "Put fields that hold the delimiter in quotation marks"
            if len(fields) > width
            else "Write every field, empty ones too",
        )
    for column, field in zip(header, fields, strict=True):
        if "\0" in field:
            return BadRow(f"column {column_name(column)} holds a NUL byte", "Remove it")
        if not field.isascii() and UNDECODED.search(field):
            return not_utf8(f"column {column_name(column)}")
    return None


def csv_file(stream: IO[bytes], *, name: str) -> Iterator[Row]:
    return delimited(stream, name=name)


def tsv_file(stream: IO[bytes], *, name: str) -> Iterator[Row]:
    return delimited(stream, name=name, delimiter="\t")


def parquet(stream: IO[bytes], *, name: str) -> Iterator[Row]:
    """Rows of a seekable Parquet file, a small batch at a time; lists and structs become lists and dicts."""
    import pyarrow as arrow
    from pyarrow import parquet as format_

    try:
        file = format_.ParquetFile(stream)
        columns = list(file.schema_arrow.names)
        batches = file.iter_batches(batch_size=PARQUET_BATCH_ROWS)
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise _broken_parquet(name, error) from None
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(
            f"two columns are named {column_name(twice[0])}", where=name, do="give every column a name of its own"
        )
    row = 1
    while True:
        try:
            batch = next(batches, None)
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise _broken_parquet(name, error, row=row) from None
        if batch is None:
            return
        for index in range(batch.num_rows):
            yield _parquet_row(batch, index, row)
            row += 1


def _broken_parquet(name: str, error: Exception, *, row: int = 0) -> DataError:
    return DataError(
        "this Parquet file cannot be read",
        where=f"{name}:{row}" if row else name,
        got=type(error).__name__,
        do="write it again; a file that was cut off has no footer",
    )


def _parquet_row(batch: Any, index: int, row: int) -> Row:
    value: JSON = {}
    for column, array in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value[column] = _plain(array[index].as_py())
        except BadRow as problem:
            return Row(row, None, BadRow(f"column {column_name(column)} {problem.what}", problem.do))
        except (ValueError, KeyError, OverflowError, ImportError) as error:
            what = f"column {column_name(column)} cannot be read ({type(error).__name__})"
            return Row(row, None, BadRow(what, "Write it as text or a number"))
    return Row(row, value)


def _plain(value: Any) -> Any:
    """A Parquet value as JSON has it. Keys of structs that are null are left out: Arrow adds them to every row."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, decimal.Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, float):
        if math.isinf(value):
            raise BadRow("holds an infinite number", "Write null or a number")
        return None if math.isnan(value) else value  # pandas writes a missing value as NaN
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise BadRow("holds bytes that are not UTF-8 text", "Remove the column, or write it as text") from None
    raise BadRow(f"holds a {type(value).__name__}", "Write it as text or a number")
