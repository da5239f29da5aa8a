"""What can be wrong with a file or a row, and what is said: what it is, where it stands, and what to do.

Every entry is loaded through `load_examples`, so the messages are those that a user reads. `SECRET` stands for private
text of a row; it must never be part of a message.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import NamedTuple

import pytest

from luthier.data.load import load_examples
from luthier.errors import DataError
from luthier.recipe import Data


class Bad(NamedTuple):
    name: str
    content: bytes
    says: tuple[str, ...]
    where: str = ""
    """End of `where`; the file alone if empty."""
    rules: dict[str, object] = {}


def good(count: int = 3) -> bytes:
    return b"".join(b'{"question": "Q%d?", "answer": "A%d."}\n' % (n, n) for n in range(count))


def jsonl(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def turns(*pairs: tuple[str, object], **more: object) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs], **more}


def parquet(columns: dict[str, list[object]]) -> bytes:
    import pyarrow as arrow
    from pyarrow import parquet as format_

    out = io.BytesIO()
    format_.write_table(arrow.table(columns), out)
    return out.getvalue()


U, A = ("user", "SECRET"), ("assistant", "SECRET")
CALL = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
QA = b'"question": "SECRET", "answer": "SECRET"'
FIT = turns(U, A)

FILES: dict[str, Bad] = {
    "empty": Bad("a.jsonl", b"", ("is empty", "leave it out")),
    "blank lines only": Bad("a.jsonl", b"\n\n \n", ("holds no rows", "put rows into it")),
    "empty array": Bad("a.json", b"[]", ("holds no rows",)),
    "header only": Bad("a.csv", b"question,answer\n", ("holds no rows", "below the header")),
    "gzip of nothing": Bad("a.jsonl.gz", gzip.compress(b""), ("is empty", "gzip file of nothing")),
    "gzip cut off": Bad("a.jsonl.gz", gzip.compress(good(3000))[:-20], ("damaged or was cut off", "gzip -t")),
    "gzip by name only": Bad("a.jsonl.gz", good(), ("no gzip file", "rename it")),
    "parquet by name only": Bad("a.parquet", good(), ("no Parquet file",)),
    "parquet under another name": Bad("a.csv", parquet({"text": ["SECRET"]}), ("Parquet file under another name",)),
    "parquet cut off": Bad("a.parquet", parquet({"text": ["SECRET"] * 9})[:-30], ("Parquet file cannot be read",)),
    "excel": Bad("a.csv", b"PK\x03\x04\0\0", ("zip archive or an Excel workbook", "save the sheet as CSV")),
    "pdf": Bad("a.txt", b"%PDF-1.7\nSECRET", ("a PDF", "extract its text")),
    "utf-16": Bad("a.csv", "question,answer\nSECRET,b".encode("utf-16"), ("UTF-16", "iconv")),
    "binary": Bad("a.bin", b"\x7fELF\0\0\0\0SECRET", ("binary", ".jsonl .ndjson .json .csv")),
    "array with a fault": Bad("a.json", b'[\n{"a": "SECRET"},\n{"a": oops}\n]', ("no valid JSON", "row 2"), ":3"),
    "array not closed": Bad("a.json", b'[{"a": "SECRET"}, {"a": 1}', ("no valid JSON", "row 2"), ":1"),
    "array without comma": Bad("a.json", b'[{"a": 1}\n{"a": 2}]', ("a comma or ] is missing", "JSONL"), ":2"),
    "text after the array": Bad("a.json", b'[{"a": 1}]\nSECRET', ("something follows the array",), ":2"),
    "object cut off": Bad("a.json", b'{\n "data": [{"a": "SECRET"}', ("no valid JSON",), ":2"),
    "header twice": Bad("a.csv", b"text,text\nSECRET,b\n", ("names `text` twice", "a name of its own"), ":1"),
    "header nameless": Bad("a.csv", b",text,label\n0,SECRET,b\n", ("column 1", "no name", "index=False"), ":1"),
    "header not utf-8": Bad("a.csv", b"te\xe9xt,label\nSECRET,b\n", ("header is not UTF-8",), ":1"),
    "unknown columns": Bad(
        "a.csv",
        b"dialogue,section_text\nSECRET and long,SECRET\n",
        (
            "cannot be told",
            "dialogue, section_text",
            "-o data.columns.prompt=dialogue -o data.columns.completion=section_text",
        ),
    ),
    "two candidates": Bad(
        "a.csv", b"text,label,category\nSECRET,a,b\n", ("label and category could each", "data.columns.label=COLUMN")
    ),
    "mapped column missing": Bad(
        "a.jsonl", good(), ("no column `anwser`", "did you mean answer?"), rules={"columns": {"completion": "anwser"}}
    ),
    "mapping without effect": Bad(
        "a.jsonl",
        good(),
        ("no effect with data.format=text",),
        rules={"format": "text", "columns": {"label": "answer"}},
    ),
    "format does not fit": Bad("a.jsonl", good(), ("alpaca does not fit",), rules={"format": "alpaca"}),
    "preference pairs": Bad(
        "a.jsonl", jsonl({"prompt": "SECRET", "chosen": "a", "rejected": "b"}), ("better and a worse",)
    ),
    "rated answers": Bad("a.jsonl", jsonl(turns(U, A, label=False)), ("rated good or bad", "keep the good rows")),
    "too few rows": Bad("a.jsonl", good(2), ("too few rows", "3 different prompts", "data.split")),
    "split column missing": Bad(
        "a.jsonl", good(), ("no column `custmer`",), rules={"split": {"by": "group", "column": "custmer"}}
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_refused(tmp_path: Path, case: str) -> None:
    bad = FILES[case]
    path = tmp_path / bad.name
    path.write_bytes(bad.content)
    with pytest.raises(DataError) as caught:
        load_examples(Data.model_validate({"train": [str(path)], **bad.rules}), tmp_path / "store")
    text = str(caught.value)
    for fragment in bad.says:
        assert fragment in text
    assert caught.value.where.endswith(f"{bad.name}{bad.where}") or caught.value.where.startswith("data.")
    assert "SECRET" not in text
    assert not list(tmp_path.glob(".store*")), "nothing half-written stays"


ROWS: dict[str, Bad] = {
    # JSON
    "no JSON": Bad("a.jsonl", b"{" + QA + b"\n" + good(), ("no valid JSON at column", "Correct the line"), ":1"),
    "two objects on a line": Bad("a.jsonl", good() + b"{} {}\n", ("something follows the JSON object",), ":4"),
    "array row": Bad("a.jsonl", good() + b'["SECRET"]\n', ("a row is a JSON object, this is a list",), ":4"),
    "string row": Bad("a.jsonl", good() + b'"SECRET"\n', ("this is a string",), ":4"),
    "null row in an array": Bad("a.json", b"[" + good(1).strip() + b", null]", ("this is null",), ":2"),
    "key twice": Bad("a.jsonl", good() + b"{" + QA + b', "answer": "SECRET"}\n', ("key `answer` stands twice",), ":4"),
    "NaN": Bad("a.jsonl", good() + b"{" + QA + b', "n": NaN}\n', ("NaN is no JSON value", "Write null"), ":4"),
    "Infinity": Bad("a.jsonl", good() + b"{" + QA + b', "n": -Infinity}\n', ("-Infinity is no JSON value",), ":4"),
    "huge float": Bad("a.jsonl", good() + b"{" + QA + b', "n": 1e999}\n', ("a number is too large",), ":4"),
    "huge integer": Bad(
        "a.jsonl", good() + b"{" + QA + b', "n": 1' + b"0" * 5000 + b"}\n", ("more than 64 bits",), ":4"
    ),
    "deep": Bad("a.jsonl", good() + b'{"a": ' * 100 + b"1" + b"}" * 100 + b"\n", ("nested more than 64",), ":4"),
    "very deep": Bad("a.jsonl", good() + b'{"a": ' * 99999 + b"1" + b"}" * 99999 + b"\n", ("nested more than",), ":4"),
    "lone surrogate": Bad("a.jsonl", good() + b'{"question": "\\ud800", "answer": "a"}\n', ("surrogate",), ":4"),
    "not UTF-8": Bad("a.jsonl", good() + b'{"question": "caf\xe9", "answer": "a"}\n', ("not UTF-8", "iconv"), ":4"),
    "not UTF-8 in an array": Bad("a.json", b'[{"question": "caf\xe9", "answer": "a"}]', ("not UTF-8",), ":1"),
    # CSV and text
    "too many fields": Bad(
        "a.csv", b"text,label\na,b\nSECRET,b,c\n", ("3 fields, the header has 2", "quotation"), ":3"
    ),
    "too few fields": Bad("a.csv", b"text,label\nSECRET\nc,d\n", ("1 fields, the header has 2", "empty ones"), ":2"),
    "NUL in CSV": Bad("a.csv", b"text,label\na,b\nSEC\0RET,b\n", ("column `text` holds a NUL",), ":3"),
    "bytes in CSV": Bad(
        "a.csv", b"text,label\na,b\ncaf\xe9,b\n", ("column `text` holds bytes that are not UTF-8",), ":3"
    ),
    "open quote": Bad("a.csv", b'text,label\na,b\n"SECRET,b\nc,d\n', ("never closed", "all 2 lines"), ":3"),
    "stray quote": Bad(
        "a.csv", b'text,label\na,b\n"SECRET" x,b\n', ("quotation marks do not fit", "double inner"), ":3"
    ),
    "old line ends": Bad("a.csv", b"text,label\na,b\nSEC\rRET,b\n", ("lone carriage return", "LF or CRLF"), ":3"),
    "bytes in text": Bad("a.txt", b"one\n\ncaf\xe9\n", ("not UTF-8",), ":3"),
    # Columns
    "another format": Bad(
        "a.jsonl", good() + jsonl({"text": "SECRET"}), ("lacks column `question`", "It has `text`"), ":4"
    ),
    "empty answer": Bad("a.jsonl", good() + jsonl({"question": "SECRET", "answer": " "}), ("`answer` is empty",), ":4"),
    "null answer": Bad("a.jsonl", good() + jsonl({"question": "SECRET", "answer": None}), ("`answer` is empty",), ":4"),
    "number as answer": Bad(
        "a.jsonl", good() + jsonl({"question": "SECRET", "answer": 7}), ("holds a number, not text",), ":4"
    ),
    "empty CSV label": Bad("a.csv", b"text,label\na,b\nSECRET,\n", ("`label` is empty",), ":3"),
    "NUL in a text": Bad("a.jsonl", good() + jsonl({"question": "SECRET\0", "answer": "a"}), ("NUL character",), ":4"),
    "label is an object": Bad(
        "a.jsonl", jsonl({"text": "a", "label": "x"}, {"text": "b", "label": {}}), ("an object",), ":2"
    ),
    "fraction as label": Bad(
        "a.jsonl", jsonl({"text": "a", "label": "x"}, {"text": "b", "label": 0.5}), ("fraction",), ":2"
    ),
    "no number": Bad(
        "a.csv", b"text,score\na,1.5\nSECRET,2\nSECRET,SECRET\n", ("no number",), ":4", {"format": "regression"}
    ),
    "history": Bad(
        "a.jsonl",
        jsonl({"instruction": "SECRET", "output": "SECRET", "history": [["SECRET"]]}),
        ("item 0 of column `history` is no pair",),
        ":1",
    ),
    # Conversations
    "messages is text": Bad("a.jsonl", jsonl(FIT, {"messages": "SECRET"}), ("`messages` is no valid JSON",), ":2"),
    "messages is an object": Bad("a.jsonl", jsonl(FIT, {"messages": {}}), ("`messages` holds an object",), ":2"),
    "no turns": Bad("a.jsonl", jsonl(FIT, {"messages": []}), ("messages holds no turns",), ":2"),
    "turn is text": Bad("a.jsonl", jsonl(FIT, {"messages": ["SECRET"]}), ("messages[0] is a string",), ":2"),
    "no role": Bad(
        "a.jsonl", jsonl(FIT, {"messages": [{"content": "SECRET"}]}), ("messages[0].role is missing",), ":2"
    ),
    "role of another tool": Bad("a.jsonl", jsonl(FIT, turns(("human", "a"), A)), ("is `human`", "Use user"), ":2"),
    "role in capitals": Bad("a.jsonl", jsonl(FIT, turns(("User", "a"), A)), ("Use user",), ":2"),
    "text as role": Bad("a.jsonl", jsonl(FIT, turns(("SECRET", "user"), A)), ("unknown word of 6 characters",), ":2"),
    "content is an object": Bad(
        "a.jsonl", jsonl(FIT, turns(("user", {"a": "SECRET"}), A)), ("content is an object",), ":2"
    ),
    "image": Bad("a.jsonl", jsonl(FIT, turns(("user", [{"type": "image_url"}]), A)), ("part of type image_url",), ":2"),
    "part of no type": Bad("a.jsonl", jsonl(FIT, turns(("user", [{"x": "SECRET"}]), A)), ("is no text part",), ":2"),
    "empty user turn": Bad("a.jsonl", jsonl(FIT, turns(("user", ""), A)), ("messages[0].content is empty",), ":2"),
    "empty assistant turn": Bad("a.jsonl", jsonl(FIT, turns(U, ("assistant", "\n"))), ("content is empty",), ":2"),
    "null assistant turn": Bad("a.jsonl", jsonl(FIT, turns(U, ("assistant", None))), ("missing or null",), ":2"),
    "no assistant": Bad("a.jsonl", jsonl(FIT, turns(U)), ("holds no assistant turn",), ":2"),
    "no user": Bad("a.jsonl", jsonl(FIT, turns(A)), ("holds no user turn",), ":2"),
    "ends with a user": Bad("a.jsonl", jsonl(FIT, turns(U, A, U)), ("ends with a user turn", "cut the turns"), ":2"),
    "two user turns": Bad("a.jsonl", jsonl(FIT, turns(U, U, A)), ("second user turn in a row", "Join"), ":2"),
    "two assistant turns": Bad("a.jsonl", jsonl(FIT, turns(U, A, A)), ("second assistant turn in a row",), ":2"),
    "late system": Bad("a.jsonl", jsonl(FIT, turns(U, A, ("system", "SECRET"), U, A)), ("not the first turn",), ":2"),
    "tool without call": Bad("a.jsonl", jsonl(FIT, turns(U, ("tool", "SECRET"), A)), ("without a call before",), ":2"),
    "call not answered": Bad(
        "a.jsonl",
        jsonl(FIT, {"messages": [*turns(U)["messages"], CALL, *turns(U, A)["messages"]]}),  # type: ignore[misc]
        ("no tool turn answers",),
        ":2",
    ),
    "answer to another call": Bad(
        "a.jsonl",
        jsonl(
            FIT,
            {
                "messages": [
                    *turns(U)["messages"],
                    CALL,
                    {"role": "tool", "content": "x", "tool_call_id": "9"},
                    *turns(A)["messages"],
                ]
            },  # type: ignore[misc]
        ),
        ("tool_call_id answers no call",),
        ":2",
    ),
    "arguments no JSON": Bad(
        "a.jsonl",
        jsonl(
            FIT,
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "function_call": {"name": "f", "arguments": "{SECRET"}},
                ]
            },
        ),
        ("arguments is no valid JSON at character 2",),
        ":2",
    ),
    "arguments a list": Bad(
        "a.jsonl",
        jsonl(
            FIT,
            {
                "messages": [
                    {"role": "user", "content": "a"},
                    {"role": "assistant", "tool_calls": [{"name": "f", "arguments": []}]},
                ]
            },
        ),
        ("arguments is a list",),
        ":2",
    ),
    "nameless tool": Bad(
        "a.jsonl", jsonl(turns(U, A, tools=[]), turns(U, A, tools=[{"x": 1}])), ("tools[0] names no",), ":2"
    ),
    "weight as text": Bad(
        "a.jsonl",
        jsonl(
            FIT, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": "1"}]}
        ),
        ("weight is a string",),
        ":2",
    ),
    "weight on a user": Bad(
        "a.jsonl",
        jsonl(
            FIT, {"messages": [{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": "b"}]}
        ),
        ("above 0 on a user turn",),
        ":2",
    ),
    "nothing weighs": Bad(
        "a.jsonl",
        jsonl(
            FIT, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0}]}
        ),
        ("every assistant turn of messages has weight 0",),
        ":2",
    ),
    "sharegpt role": Bad(
        "a.jsonl",
        jsonl(
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"conversations": [{"from": "customer", "value": "SECRET"}, {"from": "gpt", "value": "b"}]},
        ),
        ("conversations[0].from is `customer`", "Use user"),
        ":2",
    ),
    "parquet null": Bad(
        "a.parquet", parquet({"text": ["SECRET", None], "label": ["a", "b"]}), ("`text` is empty",), ":2"
    ),
    "parquet bytes": Bad(
        "a.parquet", parquet({"text": [b"a", b"\xff"], "label": ["a", "b"]}), ("bytes that are not",), ":2"
    ),
    "parquet infinity": Bad("a.parquet", parquet({"text": ["a", "b"], "score": [1.5, 1e999]}), ("infinite",), ":2"),
    "no time": Bad(
        "a.jsonl",
        jsonl({"text": "a", "at": "2025-01-31"}, {"text": "SECRET", "at": "SECRET"}),
        ("`at` holds no time", "ISO date"),
        ":2",
        {"split": {"by": "time", "column": "at"}},
    ),
    "no group": Bad(
        "a.jsonl",
        jsonl({"text": "a", "who": "x"}, {"text": "SECRET", "who": None}),
        ("`who` is empty, and data.split needs it",),
        ":2",
        {"split": {"by": "group", "column": "who"}},
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_is_refused_with_its_line_and_a_remedy(tmp_path: Path, case: str) -> None:
    bad = ROWS[case]
    path = tmp_path / bad.name
    path.write_bytes(bad.content)
    with pytest.raises(DataError) as caught:
        load_examples(Data.model_validate({"train": [str(path)], **bad.rules}), tmp_path / "store")
    text = str(caught.value)
    assert f"{path}{bad.where}: " in text
    for fragment in bad.says:
        assert fragment in text
    assert "cannot be used" in text or "can be read" in text
    assert "SECRET" not in text


def test_every_bad_row_is_listed_in_one_pass(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(good() + b"oops\n" * 1005)
    with pytest.raises(DataError) as caught:
        load_examples(Data(train=[str(path)]), tmp_path / "store")
    text = str(caught.value)
    assert "1,005 of 1,008 rows cannot be used" in text
    assert all(f"{path}:{line}: " in text for line in range(4, 1004))
    assert "and 5 rows more: 5 x this is no valid JSON" in text
    assert "data.on_bad_row=drop" in text


def test_dropped_rows_are_a_finding_with_every_line_and_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(good(9) + b"oops\n" + jsonl({"question": "Q", "answer": ""}, {"question": "Q", "answer": " "}))
    loaded = load_examples(Data(train=[str(path)], on_bad_row="drop"), tmp_path / "store")
    (finding,) = [finding for finding in loaded.findings if finding.rule == "bad_row"]
    assert finding.examples == (f"{path}:10", f"{path}:11", f"{path}:12")
    assert (finding.count, finding.severity) == (3, "warn")
    assert "2 x column `answer` is empty" in finding.message
    assert loaded.counts[str(path)] == (12, 9, 3, 0)
    assert len(loaded.store) == 9


def test_a_file_of_bad_rows_only_is_refused_even_if_they_may_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"oops\nworse\n")
    with pytest.raises(DataError, match="no row of the training files can be read"):
        load_examples(Data(train=[str(path)], on_bad_row="drop"), tmp_path / "store")


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(good())
    with pytest.raises(DataError) as caught:
        load_examples(Data(train=[str(tmp_path / "trian.jsonl")]), tmp_path / "store")
    assert "no such file" in str(caught.value)
    assert f"did you mean {tmp_path / 'train.jsonl'}?" in str(caught.value)


def test_an_empty_folder_and_an_address_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no data files"):
        load_examples(Data(train=[str(tmp_path / "empty")]), tmp_path / "store")
    with pytest.raises(DataError, match="local files only"):
        load_examples(Data(train=["https://example.com/a.jsonl"]), tmp_path / "store")


def test_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(good())
    for path in ("", "x" * 5000, "a\0b", str(tmp_path / "a.jsonl" / "b")):
        with pytest.raises(DataError) as caught:
            load_examples(Data(train=[path]), tmp_path / "store")
        assert caught.value.do


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(good())
    with pytest.raises(DataError, match="the same file is given twice"):
        load_examples(Data(train=[str(path), str(tmp_path)]), tmp_path / "store")
    with pytest.raises(DataError, match=r"data\.train and data\.test"):
        load_examples(Data(train=[str(path)], test=[str(path)]), tmp_path / "store")
