"""Files, folders and standard input to a stream of records, whatever kind each of them is.

Kinds by name: .jsonl .ndjson .json .csv .tsv .parquet .txt .md, each also with .gz. Any other name, and standard input,
goes by its first bytes. `PARSERS` turn the bytes into rows; nothing here knows what a row means.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import os
import re
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from luthier.data import rows, rows_json, rows_table
from luthier.data.rows import BadRow, Row
from luthier.errors import DataError
from luthier.types import JSON

STDIN = "-"
KINDS = {
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
PARSERS: dict[str, Callable[..., Iterator[Row]]] = {
    "json": rows_json.json_file,
    "csv": rows_table.csv_file,
    "tsv": rows_table.tsv_file,
    "parquet": rows_table.parquet,
    "text": rows.text,
}
SIGNATURES = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old Excel or Word file", "save the sheet as CSV"),
    (b"%PDF", "a PDF", "extract its text first"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"ARROW1", "an Arrow file", "write it as Parquet"),
    (b"GGUF", "a GGUF model", "give it with --model"),
    (b"BZh", "a bzip2 file", "unpack it, or compress it with gzip"),
    (b"\xfd7zXZ", "an xz file", "unpack it, or compress it with gzip"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file", "unpack it, or compress it with gzip"),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8 (iconv -f UTF-16 -t UTF-8 OLD > NEW)"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8 (iconv -f UTF-16 -t UTF-8 OLD > NEW)"),
)
"""First bytes of what is often given by mistake, what it is, and what to do with it."""

_HEAD_BYTES = 8192
_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_UNREADABLE = (EOFError, zlib.error, gzip.BadGzipFile)


class Record(NamedTuple):
    """One row: its value, or the problem that stands in its way."""

    file: str
    """As the user named it, `-` for standard input."""
    line: int
    """1-based line for JSONL, CSV, TSV and text (a row over several lines: its first); 1-based row otherwise."""
    value: JSON | None
    problem: BadRow | None = None

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


class Found(NamedTuple):
    files: tuple[str, ...]
    skipped: tuple[str, ...]
    """Files of given folders that are no data, and are not read."""


def records(paths: Sequence[str]) -> Iterator[Record]:
    """The rows of files, folders and `-`, in order; holds one row and one block at a time.

    Raises:
        DataError: a file is missing, empty, unreadable or of no known kind; or it breaks off so that the rows after a
            fault cannot be found.
    """
    for name in find(paths).files:
        with DataFile(name) as file:
            yield from file.records()


def find(paths: Sequence[str]) -> Found:
    """Every file that `paths` name, folders opened up, all of them checked to exist before any is read."""
    files: list[str] = []
    skipped: list[str] = []
    for path in paths:
        mode = None if path == STDIN else _mode(path)
        if mode is not None and stat.S_ISDIR(mode):
            inside = _in_folder(path)
            files += inside.files
            skipped += inside.skipped
        else:
            files.append(path)
    real = [name if name == STDIN else os.path.realpath(name) for name in files]
    twice = (
        sorted(name for name, path in zip(files, real, strict=True) if real.count(path) > 1)
        if len(files) < 10_000
        else []
    )
    if twice:
        raise DataError("the same file is given twice", where=twice[0], do="name each file once")
    return Found(tuple(files), tuple(skipped))


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def _unreadable(name: str, error: OSError | ValueError) -> DataError:
    got = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return DataError("this file cannot be read", where=name, got=got, do="look at its path and its permissions")


def _in_folder(folder: str) -> Found:
    """Data files below a folder, sorted. Plain text counts only where there is nothing else: it is mostly a read-me."""
    names = []

    def stop(error: OSError) -> None:
        raise _unreadable(str(error.filename), error)

    for place, folders, inside in os.walk(folder, onerror=stop):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names += [os.path.join(place, name) for name in inside if not name.startswith(".")]
    names.sort()
    kinds = {name: _kind_by_name(name) for name in names if not _ABOUT.match(Path(name).name)}
    tables = [name for name, kind in kinds.items() if kind not in (None, "text")]
    chosen = tables or [name for name, kind in kinds.items() if kind == "text"]
    if not chosen:
        raise DataError(
            "this folder holds no data files",
            where=folder,
            got=f"{len(names)} files of other kinds" if names else "no files",
            do=f"put files with these ends into it: {' '.join(KINDS)}",
        )
    return Found(tuple(chosen), tuple(name for name in names if name not in set(chosen)))


_ABOUT = re.compile(r"(readme|licen[cs]e|notice|changelog|source)(\.[a-z]+)?$", re.IGNORECASE)


def _kind_by_name(name: str) -> str | None:
    return KINDS.get(Path(name.lower().removesuffix(".gz")).suffix)


def _missing(path: str) -> DataError:
    if "://" in path:
        return DataError("data are read from local files only", where=path, do="download it first")
    parent = Path(path).parent
    siblings = (
        sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() and os.access(parent, os.R_OK) else []
    )
    close = difflib.get_close_matches(Path(path).name, siblings, n=1, cutoff=0.6)
    if close:
        do = f"did you mean {parent / close[0]}?"
    elif not parent.exists():
        do = f"there is no folder {parent} either"
    else:
        do = "look at the path; it is taken from the folder that the command runs in"
    return DataError("there is no such file", where=path, do=do)


class Unpacking(NamedTuple):
    """How far a gzip file may unpack: a few kilobytes can fill a disk. Text seldom shrinks more than thirtyfold."""

    ratio: float = 200.0
    """Times its own bytes, once it has given `FREE_BYTES`."""
    largest_bytes: float = 500e9


FREE_BYTES = 64 << 20


class PackedTooFar(DataError):
    """A gzip file unpacks to far more than it holds."""


class DataFile:
    """One open file: its kind, its records, and its SHA-256 as it stands on disk."""

    def __init__(self, name: str, unpacking: Unpacking | None = None) -> None:
        """Opens the file and finds out what kind it is.

        Raises:
            DataError: it cannot be opened, is empty, or is no data.
        """
        self.name = name
        self._unpacking = unpacking or Unpacking()
        self._open: list[IO[bytes]] = []
        self._hash = hashlib.sha256()
        try:
            self._source = _Hashing(self._opened(), self._hash)
            self._raw = io.BufferedReader(self._source, 1 << 20)
            self._open.append(self._raw)
            self.kind, self._stream = self._sniffed()
        except BaseException:
            self.close()
            raise

    def records(self) -> Iterator[Record]:
        """Every row once.

        Raises:
            DataError: the file has no rows, or breaks off.
        """
        count = 0
        try:
            for row in PARSERS[self.kind](self._stream, name=self.name):
                count += 1
                yield Record(self.name, row.line, row.value, row.problem)
        except _UNREADABLE:
            raise self._torn(after=count) from None
        except OSError as error:
            raise _unreadable(self.name, error) from None
        if count == 0:
            do = "write rows below the header" if self.kind in ("csv", "tsv") else "put rows into it, or leave it out"
            raise DataError("this file holds no rows", where=self.name, do=do)

    @property
    def taken(self) -> int:
        """Bytes of the file that were read so far."""
        return self._source.count

    def sha256(self) -> str:
        """Hex digest of the file's bytes; reads on to the end where the records were not all taken."""
        try:
            while self._raw.read(1 << 20):
                pass
        except OSError as error:
            raise _unreadable(self.name, error) from None
        return self._hash.hexdigest()

    def close(self) -> None:
        for stream in reversed(self._open):
            stream.close()

    def __enter__(self) -> DataFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> IO[bytes]:
        if self.name == STDIN:
            if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
                do = "pipe rows into the command, or name a file"
                raise DataError("nothing comes in on standard input", where=STDIN, do=do)
            return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
        try:
            file = open(self.name, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise _unreadable(self.name, error) from None
        self._open.append(file)
        return file

    def _sniffed(self) -> tuple[str, IO[bytes]]:
        try:
            head = self._raw.peek(_HEAD_BYTES)
            stream: IO[bytes] = self._raw
            if not head:
                raise DataError("this file is empty", where=self.name, do="put rows into it, or leave it out")
            packed = self.name.lower().endswith(".gz")
            if packed and not head.startswith(_GZIP):
                raise self._no_data(
                    "the name ends in .gz, but it is no gzip file", "rename it, or compress it with gzip"
                )
            if head.startswith(_GZIP):
                within = _Within(gzip.GzipFile(fileobj=self._raw), self._source, self._unpacking, self.name)
                unpacked = io.BufferedReader(within, 1 << 20)
                self._open.append(unpacked)
                stream, head = unpacked, unpacked.peek(_HEAD_BYTES)
                if not head:
                    raise DataError(
                        "this file is empty", where=self.name, got="a gzip file of nothing", do="leave it out"
                    )
        except _UNREADABLE:
            raise self._torn(after=0) from None
        except OSError as error:
            raise _unreadable(self.name, error) from None
        kind = self._kind(head)
        if kind == "parquet":
            return kind, self._spooled(stream)
        if head.startswith(_BOM):
            stream.read(len(_BOM))
        return kind, stream

    def _kind(self, head: bytes) -> str:
        named = _kind_by_name(self.name)
        if head.startswith(_PARQUET):
            if named not in (None, "parquet"):
                raise self._no_data("it is a Parquet file under another name", "let its name end in .parquet")
            return "parquet"
        if named == "parquet":
            raise self._no_data("the name ends in .parquet, but it is no Parquet file", "look at how it was written")
        for signature, what, do in SIGNATURES:
            if head.startswith(signature):
                raise self._no_data(f"it is {what}", do)
        # A NUL among the rows of a named kind is a fault of one row, many of them mean that this is no text.
        if head.count(0) * 10 > len(head) or (named is None and 0 in head):
            raise self._no_data("it is binary", f"give one of: {' '.join(KINDS)}, each plain or with .gz")
        return named or sniff(head)

    def _spooled(self, stream: IO[bytes]) -> IO[bytes]:
        """Parquet is read from its end, so what cannot be wound back goes to a temporary file; the rest is hashed."""
        if stream is self._raw and self.name != STDIN and Path(self.name).is_file():
            self.sha256()
            plain = open(self.name, "rb")  # noqa: SIM115
            self._open.append(plain)
            return plain
        spool = tempfile.TemporaryFile()  # noqa: SIM115
        self._open.append(spool)
        try:
            while block := stream.read(1 << 20):
                spool.write(block)
        except _UNREADABLE:
            raise self._torn(after=0) from None
        spool.seek(0)
        return spool

    def _no_data(self, got: str, do: str) -> DataError:
        return DataError("this file cannot be read as data", where=self.name, got=got, do=do)

    def _torn(self, *, after: int) -> DataError:
        return DataError(
            "this gzip file is damaged or was cut off",
            where=self.name,
            got=f"{after:,} rows before the fault",
            do="copy or compress it again; gzip -t FILE tells whether it is whole",
        )


class _Hashing(io.RawIOBase):
    """Passes bytes on and digests them."""

    def __init__(self, stream: Any, digest: Any) -> None:
        self._stream, self._digest = stream, digest
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._stream.readinto(buffer) or 0)
        self._digest.update(memoryview(buffer)[:count])
        self.count += count
        return count


class _Within(io.RawIOBase):
    """Passes unpacked bytes on until there are too many of them."""

    def __init__(self, stream: Any, source: _Hashing, most: Unpacking, name: str) -> None:
        self._stream, self._source, self._most, self._name = stream, source, most, name
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._stream.readinto(buffer) or 0)
        self._count += count
        ratio = self._count / max(self._source.count, 1)
        if self._count > self._most.largest_bytes or (self._count > FREE_BYTES and ratio > self._most.ratio):
            raise PackedTooFar(
                "this gzip file unpacks to far more than it holds",
                where=self._name,
                got=f"{self._count:,} bytes from {self._source.count:,}, and more to come",
                do="look at what made it; if it is meant, unpack it and give the plain file",
            )
        return count


def sniff(head: bytes) -> str:
    """The kind of a text by its first bytes: JSON by its bracket, a table by a header-like first line, else text."""
    start = head.removeprefix(_BOM).lstrip()
    if start[:1] in (b"{", b"["):
        return "json"
    first = start.split(b"\n", 1)[0].decode("utf-8", "replace").rstrip("\r")
    for delimiter, kind in (("\t", "tsv"), (",", "csv"), (";", "csv")):
        names = [name.strip().strip('"') for name in first.split(delimiter)]
        if len(names) > 1 and len(set(names)) == len(names) and all(_HEADER_NAME.fullmatch(name) for name in names):
            return kind
    return "text"


_HEADER_NAME = re.compile(r"[^\W\d][\w .:/()-]{0,63}")
