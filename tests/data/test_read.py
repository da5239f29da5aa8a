"""Reading: every kind of file gives the same rows, with the lines they stand on, and no bytes make it crash."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data import rows, rows_json
from luthier.data.read import DataFile, find, records, sniff
from luthier.errors import DataError

ROWS = [{"question": "Où?\nWo?", "answer": 'say "ß", please'}, {"question": "Two,\u2028three", "answer": "7"}]


def as_csv(data: list[dict[str, str]], delimiter: str = ",") -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(data[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(data)
    return out.getvalue().encode("utf-8")


def as_parquet(data: list[dict[str, object]]) -> bytes:
    import pyarrow as arrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(data), out)
    return out.getvalue()


def as_jsonl(data: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in data).encode("utf-8")


FILES = {
    "a.jsonl": as_jsonl(ROWS),
    "a.ndjson": as_jsonl(ROWS).replace(b"\n", b"\r\n"),
    "a.json": json.dumps(ROWS, indent=2).encode(),
    "lines.json": as_jsonl(ROWS),
    "array.jsonl": json.dumps(ROWS, indent=1).encode(),
    "one-line.json": json.dumps(ROWS).encode(),
    "under-data.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "under-data-indented.json": json.dumps({"version": 1, "data": ROWS}, indent=4).encode(),
    "a.csv": as_csv(ROWS),
    "bom.csv": b"\xef\xbb\xbf" + as_csv(ROWS),
    "semicolon.csv": as_csv(ROWS, ";"),
    "a.tsv": as_csv(ROWS, "\t"),
    "a.parquet": as_parquet(ROWS),
    "a.jsonl.gz": gzip.compress(as_jsonl(ROWS)),
    "a.csv.gz": gzip.compress(as_csv(ROWS)),
    "a.parquet.gz": gzip.compress(as_parquet(ROWS)),
    "jsonl-without-end": as_jsonl(ROWS),
    "csv.unknown": as_csv(ROWS),
    "parquet.unknown": as_parquet(ROWS),
    "gzip.unknown": gzip.compress(as_jsonl(ROWS)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    read = list(records([str(tmp_path / name)]))
    assert [record.problem for record in read] == [None, None]
    assert [record.value for record in read] == ROWS
    assert {record.file for record in read} == {str(tmp_path / name)}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.tsv"])
def test_standard_input_gives_the_same_rows_and_the_name_of_a_dash(name: str) -> None:
    code = "from luthier.data.read import records; print([(r.file, r.value) for r in records(['-'])])"
    done = subprocess.run(
        [sys.executable, "-c", code], input=FILES[name], capture_output=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.decode().strip() == str([("-", row) for row in ROWS])


def test_lines_are_those_of_the_file() -> None:
    stream = io.BytesIO(b'{"a": 1}\n\n  \r\n{"a": 2}\r\n')
    assert [(row.line, row.value) for row in rows_json.jsonl(stream, name="x")] == [(1, {"a": 1}), (4, {"a": 2})]


def test_a_csv_row_over_several_lines_has_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'text,label\n"one\ntwo\n\nthree",x\n\nfour,y\n"five\r\nsix",z\n')
    assert [record.line for record in records([str(path)])] == [2, 7, 8]


def test_the_hash_is_that_of_the_file_even_if_reading_stops_early(tmp_path: Path) -> None:
    for name, data in FILES.items():
        path = tmp_path / name
        path.write_bytes(data)
        with DataFile(str(path)) as file:
            next(iter(file.records()))
            assert file.sha256() == hashlib.sha256(data).hexdigest(), name


def test_a_json_array_is_read_across_blocks(tmp_path: Path) -> None:
    data = [{"text": "x" * (n % 700) + "é", "n": n} for n in range(9000)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    assert path.stat().st_size > 2 * rows.BLOCK_BYTES
    assert [record.value for record in records([str(path)])] == data


def test_a_line_above_the_limit_is_one_bad_row_and_the_next_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "')
        for _ in range(65):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "short"}\n')
    first, second = records([str(path)])
    assert first.problem is not None
    assert "longer than 64 MB" in first.problem.what
    assert (second.line, second.value) == (2, {"text": "short"})


def test_plain_text_loses_nothing_but_line_ends_at_the_cuts(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {n}. " + "word " * (n * 37 % 900) for n in range(120)]
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    read = [record.value["text"] for record in records([str(path)]) if record.value]
    assert len(read) > 5
    assert all(len(text.encode()) <= rows.PIECE_BYTES for text in read)
    assert "\n\n".join(read) == "\n\n".join(paragraphs)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=400), st.integers(1, 90))
def test_any_text_is_cut_between_characters_only(text: str, repeat: int) -> None:
    whole = (text * repeat).strip("\n")
    read = list(rows.text(io.BytesIO(whole.encode("utf-8")), name="x"))
    assert all(row.problem is None for row in read)
    joined = "".join(row.value["text"] for row in read if row.value)
    assert joined.replace("\n", "").strip() == whole.replace("\n", "").strip()


def test_parquet_times_decimals_and_nested_values_become_json(tmp_path: Path) -> None:
    import datetime
    import decimal

    row = {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1.0}],
        "when": datetime.datetime(2025, 1, 31, 12, 0),
        "price": decimal.Decimal("12.50"),
        "text": b"bytes",
        "missing": float("nan"),
    }
    (tmp_path / "a.parquet").write_bytes(as_parquet([row]))
    (read,) = records([str(tmp_path / "a.parquet")])
    assert read.value == {
        "messages": row["messages"],
        "when": "2025-01-31T12:00:00",
        "price": 12.5,
        "text": "bytes",
        "missing": None,
    }
    json.dumps(read.value)


def test_a_folder_is_read_sorted_and_says_what_it_left_out(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        (tmp_path / name).write_bytes(as_jsonl(ROWS))
    for name in ("README.md", "notes.txt", "logo.png", ".hidden.jsonl"):
        (tmp_path / name).write_text("x")
    found = find([str(tmp_path)])
    assert [os.path.relpath(name, tmp_path) for name in found.files] == ["a.jsonl", "b.jsonl", "sub/c.jsonl"]
    assert [os.path.relpath(name, tmp_path) for name in found.skipped] == ["README.md", "logo.png", "notes.txt"]


def test_a_folder_of_texts_only_is_read_as_text(tmp_path: Path) -> None:
    for name in ("README.md", "one.txt", "two.md"):
        (tmp_path / name).write_text("Some text.")
    assert [Path(name).name for name in find([str(tmp_path)]).files] == ["one.txt", "two.md"]


def test_text_with_a_comma_in_its_first_line_is_no_table() -> None:
    assert sniff(b"Dear all, this is a letter. It goes on,\n") == "text"
    assert sniff(b"question,answer\nWhat?,That.\n") == "csv"
    assert sniff(b"question\tanswer\n") == "tsv"
    assert sniff(b'\n  {"a": 1}\n') == "json"


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x.tsv", "x.txt", "x.parquet", "x.jsonl.gz", "x"])
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.text('{}[]",:\\ue01truefalsnN-.\n\r\t; ', max_size=200).map(lambda text: text.encode()),
        st.binary(max_size=200).map(lambda data: b"PAR1" + data + b"PAR1"),
        st.binary(max_size=200).map(lambda data: gzip.compress(data)[: len(data) + 15]),
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_crash_reading(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with suppress(DataError):
        for record in records([str(path)]):
            assert (record.value is None) == (record.problem is not None)
            assert record.line >= 1
            json.dumps(record.value, ensure_ascii=False, allow_nan=False).encode("utf-8")


NUMBERS = st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), VALUES), min_size=1, max_size=6),
    st.sampled_from([None, 0, 2]),
)
def test_any_json_array_comes_back_as_it_was(data: list[dict[str, object]], indent: int | None) -> None:
    raw = json.dumps(data, indent=indent, ensure_ascii=False).encode("utf-8")
    assert [row.value for row in rows_json.json_file(io.BytesIO(raw), name="x")] == data
    lines = b"\n".join(json.dumps(row).encode() for row in data)
    assert [row.value for row in rows_json.jsonl(io.BytesIO(lines), name="x")] == data
