"""A version of a data set: one Parquet file that training and other tools read, with a content hash for each row.

messages | text     what is learnt; `messages` as a list of turns, or as JSON where turns hold tool calls or weights
label | labels      of labelled rows: a name, several, or a number
tools               as JSON, where a row has them
id                  the row's own, or file:line
_row, _hash         where it first came from (file hash : line), and the hash of what it says now
...                 the row's other columns; values of several kinds as JSON
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as arrow
from pyarrow import parquet

from luthier.data.store import ExampleStore
from luthier.runs.folder import storage
from luthier.types import JSON, Conversation, Example, Labelled

ORIGIN, HASH = "_row", "_hash"
BATCH_ROWS = 2000
_PLAIN = {str: "text", bool: "truth", int: "whole", float: "number"}
_ARROW = {"text": arrow.string(), "truth": arrow.bool_(), "whole": arrow.int64(), "number": arrow.float64()}
_TURNS = arrow.list_(arrow.struct([("role", arrow.string()), ("content", arrow.string())]))
_LABELS = arrow.list_(arrow.string())


def write(source: ExampleStore, path: Path) -> None:
    """Writes every example as a row. The rows are read twice: what types the columns have is known after the first."""
    types = _types(map(as_row, source))
    schema = arrow.schema(list(types.items()))
    with storage(path), parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        rows = map(as_row, source)
        while some := list(islice(rows, BATCH_ROWS)):
            columns = {name: [_value(row.get(name), type) for row in some] for name, type in types.items()}
            writer.write_table(arrow.table(columns, schema=schema))


def as_row(example: Example) -> JSON:
    """The example as training reads it, and where it came from."""
    source = example.provenance
    rest = {key: value for key, value in example.columns.items() if key not in (ORIGIN, HASH)}
    row: JSON = {"id": example.id, ORIGIN: example.columns.get(ORIGIN), HASH: source.hash}
    if isinstance(example, Conversation):
        row |= {"messages": [_turn(message) for message in example.messages]}
        row |= {"tools": json.dumps(example.tools, ensure_ascii=False)} if example.tools else {}
    elif isinstance(example, Labelled):
        row |= {"text": example.text, **_label(example)}
    else:
        row |= {"text": example.text}
    return row | {key: value for key, value in rest.items() if key not in row}


def _turn(message: Any) -> JSON:
    weight = {"weight": message.weight} if message.weight is not None else {}
    return {"role": message.role, "content": message.content, **weight, **message.extra}


def _label(example: Labelled) -> JSON:
    if example.value is not None:
        return {"score": example.value}
    return {"label": example.labels[0]} if len(example.labels) == 1 else {"label": list(example.labels)}


def _types(rows: Iterable[Mapping[str, Any]]) -> dict[str, arrow.DataType]:
    seen: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                seen.setdefault(name, set()).add(_kind(value))
    return {name: _type(kinds) for name, kinds in seen.items()}


def _kind(value: Any) -> str:
    if isinstance(value, list):
        if value and all(isinstance(turn, dict) and turn.keys() == {"role", "content"} for turn in value):
            return "turns"
        if all(isinstance(label, str) for label in value):
            return "labels"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "other"
    return _PLAIN.get(type(value), "other")


def _type(kinds: set[str]) -> arrow.DataType:
    if kinds == {"turns"}:
        return _TURNS
    if kinds == {"labels"}:
        return _LABELS
    if kinds == {"whole", "number"}:
        return arrow.float64()
    return _ARROW[next(iter(kinds))] if len(kinds) == 1 and kinds <= set(_ARROW) else arrow.string()


def _value(value: Any, type: arrow.DataType) -> Any:
    if type == arrow.string() and value is not None and not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value
