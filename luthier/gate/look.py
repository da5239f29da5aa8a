"""A chunk of rows to three tables: the rows as the store has them, their MinHash bands, and what the row rules saw.

A pure function of the rows and the policy. It runs in this process, in worker processes and on a cluster alike, and
what it finds in a row depends on no other row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as arrow
from pyarrow import parquet

from luthier.gate.language import teller
from luthier.gate.policy import Policy
from luthier.gate.rows import Hit, Row
from luthier.gate.text import forms
from luthier.runs.folder import storage

Look = Callable[[Row, Policy], Iterator[Hit]]

ROWS = arrow.schema(
    [
        ("row", arrow.int64()),
        ("id", arrow.string()),
        ("content", arrow.string()),
        ("file", arrow.string()),
        ("line", arrow.int64()),
        ("side", arrow.string()),
        ("prompt", arrow.string()),
        ("answer", arrow.string()),
        ("labels", arrow.list_(arrow.string())),
        ("value", arrow.float64()),
        ("group", arrow.string()),
        ("columns", arrow.string()),
        ("language", arrow.string()),
        ("prompt_language", arrow.string()),
        ("lead", arrow.int32()),
        ("prompt_key", arrow.uint64()),
        ("answer_key", arrow.uint64()),
        ("row_key", arrow.uint64()),
        ("bare_key", arrow.uint64()),
        ("template_key", arrow.uint64()),
        ("asked_form", arrow.string()),
        ("whole_form", arrow.string()),
    ]
)
BANDS = arrow.schema(
    [("row", arrow.int64()), ("what", arrow.string()), ("band", arrow.int16()), ("hash", arrow.uint64())]
)
HITS = arrow.schema(
    [
        ("rule", arrow.string()),
        ("row", arrow.string()),
        ("seen", arrow.string()),
        ("path", arrow.string()),
        ("start", arrow.int64()),
        ("end", arrow.int64()),
        ("score", arrow.float64()),
        ("other", arrow.string()),
    ]
)


class Tables(NamedTuple):
    rows: arrow.Table
    bands: arrow.Table
    hits: arrow.Table


def look_at(rows: Sequence[Row], policy: Policy, *, first: int) -> Tables:
    """Args:
    first: number of the first row in the data set.
    """
    from luthier.gate.minhash import bands

    made = [forms(row) for row in rows]
    tell = lru_cache(4096)(teller(policy.languages))
    table: dict[str, list[Any]] = {name: [] for name in ROWS.names}
    for number, (row, form) in enumerate(zip(rows, made, strict=True), start=first):
        values = (
            *(number, row.id, row.content, row.file, row.line, row.side, row.prompt, row.answer),
            *(row.labels or None, row.value, group_of(row, policy.groups), _columns(row)),
            *(tell(row.answer or row.prompt), tell(row.prompt[form.lead :]), form.lead),
            *(form.prompt_key, form.answer_key, form.row_key, form.bare_key, form.template_key),
            *(form.asked, form.whole or form.asked),
        )
        for column, value in zip(table.values(), values, strict=True):
            column.append(value)
    banded = [
        _bands(what, bands([getattr(form, part) for form in made]), first)
        for what, part in (("prompt", "asked"), ("row", "whole"))
    ]
    return Tables(
        arrow.table(table, schema=ROWS),
        arrow.concat_tables(banded),
        hits_table(
            hit for row in rows for look in row_rules() for hit in look(row, policy) if policy.enabled(hit.rule)
        ),
    )


def write_tables(tables: Tables, folder: Path, *, number: int) -> None:
    """Writes the tables of chunk `number` where a store has them.

    Raises:
        StorageError: the disk is full.
    """
    with storage(folder):
        for name, table in tables._asdict().items():
            parquet.write_table(table, folder / name / f"{number:06}.parquet", compression="zstd", compression_level=1)


def row_rules() -> tuple[Look, ...]:
    """The topics that look at one row."""
    from luthier.gate import form, hidden, marked, private

    return (form.look, hidden.look, marked.look, private.look)


def hits_table(hits: Iterable[Hit]) -> arrow.Table:
    columns = list(zip(*hits, strict=True)) or [()] * len(HITS)
    values = dict(zip(Hit._fields, columns, strict=True))
    return arrow.table({name: list(values[name]) for name in HITS.names}, schema=HITS)


def group_of(row: Row, columns: Iterable[str]) -> str | None:
    """The first of the declared columns that the row fills: they stand from the widest group to the narrowest."""
    for column in columns:
        value = row.columns.get(column)
        if value is not None and str(value).strip():
            return f"{column}={str(value).strip()}"
    return None


def _columns(row: Row) -> str:
    return json.dumps(dict(row.columns), ensure_ascii=False, default=str) if row.columns else "{}"


def _bands(what: str, found: Any, first: int) -> arrow.Table:
    return arrow.table(
        {
            "row": found.text_B + first,
            "what": arrow.repeat(what, len(found.text_B)),
            "band": found.band_B,
            "hash": found.hash_B,
        },
        schema=BANDS,
    )
