"""Pairs of rows that are nearly alike: candidates from MinHash bands, found in DuckDB, each verified exactly.

    twin_prompt, twin_row (row, rep)                what every row stands for: the first row with the same shingles
    near_prompt, near_row (a, b, similarity)        pairs of such first rows, a < b, from a Jaccard similarity of 0.6 on
    crowd_prompt, crowd_row (row, size)             rows that stood for a bucket too full to compare all that is in it

`prompt` compares what rows ask (the text of labelled and plain rows), `row` that and the answer. Twins share side,
labels, value, system turns and, for `prompt`, the answer; so what holds between two first rows holds between all they
stand for, and a thousand copies make no half a million pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray

from luthier.gate.text import bare, normal, similarities

if TYPE_CHECKING:
    from luthier.gate.store import Store

What = Literal["prompt", "row"]
LOWEST = 0.6
"""Below this similarity the bands find fewer than seven of eight pairs, so no threshold may be lower."""
MOST_IN_BUCKET = 1000
"""Rows of a larger bucket (and of smaller ones where there are very many) are compared with its first row only."""
MOST_CANDIDATES = 20
"""Per row of the data set, and a million in any case."""
_PARTS = 4
"""Bands are grouped in parts by their hash, so that each part fits into memory."""
_BATCH = 20_000

_BANDS = {
    "prompt": "SELECT row, hash FROM bands WHERE what = 'prompt'",
    # A row with a prompt alone, or an answer alone, has its bands under `prompt`.
    "row": "SELECT row, hash FROM bands WHERE what = 'row' UNION ALL "
    "SELECT row, hash FROM bands SEMI JOIN rows_of_one_part USING (row) WHERE what = 'prompt'",
}
TEXT = "CASE WHEN {0}.prompt = '' THEN {0}.answer ELSE {0}.prompt[{0}.lead + 1:] END"
_TEXTS = {"prompt": TEXT, "row": "{0}.prompt[{0}.lead + 1:] || ' ' || {0}.answer"}


def find_near(store: Store, what: What) -> None:
    """Makes the three tables, once."""
    if store.value("SELECT count(*) FROM duckdb_tables() WHERE table_name = ?", [f"near_{what}"]):
        return
    store.db.execute(
        "CREATE OR REPLACE TEMP VIEW rows_of_one_part AS "
        r"SELECT row FROM rows WHERE NOT regexp_matches(prompt, '\S') OR NOT regexp_matches(answer, '\S')"
    )
    _twins(store, what)
    _candidates(store, what)
    _verify(store, what)
    store.db.execute(f"DROP TABLE candidate_{what}")


def _twins(store: Store, what: What) -> None:
    same = "print, side, labels, value, lead, hash(prompt[:lead])" + (", answer_key" if what == "prompt" else "")
    store.db.execute(
        f"CREATE TABLE twin_{what} AS "
        f"WITH marked AS (SELECT row, bit_xor(hash) AS print FROM ({_BANDS[what]}) GROUP BY row) "
        f"SELECT row, min(row) OVER (PARTITION BY {same}) AS rep FROM marked JOIN rows USING (row)"
    )


def _candidates(store: Store, what: What) -> None:
    """The table of pairs that share a band."""
    store.db.execute(f"CREATE TABLE shared_{what} (hash UBIGINT, row BIGINT)")
    for part in range(_PARTS):
        store.db.execute(
            f"INSERT INTO shared_{what} WITH firsts AS (SELECT hash, row FROM ({_BANDS[what]}) "
            f"SEMI JOIN (FROM twin_{what} WHERE row = rep) USING (row) WHERE hash % {_PARTS} = {part}) "
            "FROM firsts SEMI JOIN (SELECT hash FROM firsts GROUP BY hash HAVING count(*) > 1) USING (hash)"
        )
    store.db.execute(
        f"CREATE TABLE bucket_{what} AS SELECT hash, count(*) AS size, arg_min(row, row_key) AS first "
        f"FROM shared_{what} JOIN rows USING (row) GROUP BY hash"
    )
    sizes = store.db.execute(f"SELECT size, count(*) FROM bucket_{what} GROUP BY size ORDER BY size").fetchall()
    largest = _largest_bucket(sizes, most=max(1_000_000, MOST_CANDIDATES * store.value("SELECT count(*) FROM rows")))
    store.db.execute(
        f"CREATE TABLE candidate_{what} AS SELECT DISTINCT least(x.row, y.row) AS a, greatest(x.row, y.row) AS b "
        f"FROM bucket_{what} JOIN shared_{what} x USING (hash) JOIN shared_{what} y USING (hash) "
        f"WHERE x.row < y.row AND size <= {largest} OR x.row = first AND y.row <> first AND size > {largest}"
    )
    store.db.execute(
        f"CREATE TABLE crowd_{what} AS SELECT first AS row, max(size) AS size FROM bucket_{what} "
        f"WHERE size > {largest} GROUP BY first"
    )
    store.db.execute(f"DROP TABLE shared_{what}")
    store.db.execute(f"DROP TABLE bucket_{what}")


def _largest_bucket(sizes: Sequence[tuple[int, int]], *, most: int) -> int:
    """The largest size of bucket whose rows can all be compared, given how many buckets have each size."""
    total = 0
    for size, count in sizes:
        total += count * size * (size - 1) // 2
        if size > MOST_IN_BUCKET or total > most:
            return size - 1
    return MOST_IN_BUCKET


def _verify(store: Store, what: What) -> None:
    found = [
        kept
        for batch in store.batches(
            f"SELECT a, b, {_TEXTS[what].format('x')}, {_TEXTS[what].format('y')} FROM candidate_{what} "
            "JOIN rows x ON x.row = a JOIN rows y ON y.row = b",
            _BATCH,
        )
        if len(kept := _verified(batch))
    ]
    table = arrow.concat_tables(found) if found else _pairs_table([], [], [])
    insert(store, f"near_{what}", table)


def _verified(batch: Sequence[tuple[int, int, str, str]]) -> arrow.Table:
    place: dict[int, int] = {}
    texts: list[str] = []
    for a, b, of_a, of_b in batch:
        for row, text in ((a, of_a), (b, of_b)):
            if row not in place:
                place[row] = len(texts)
                texts.append(bare(normal(text)))
    pair_P2 = np.array([(place[a], place[b]) for a, b, *_ in batch], dtype=np.int64)
    similarity_P = similarities(texts, pair_P2)
    kept = np.flatnonzero(similarity_P >= LOWEST).tolist()
    return _pairs_table([batch[i][0] for i in kept], [batch[i][1] for i in kept], similarity_P[kept].tolist())


def _pairs_table(a: list[int], b: list[int], similarity: list[float]) -> arrow.Table:
    schema = arrow.schema([("a", arrow.int64()), ("b", arrow.int64()), ("similarity", arrow.float64())])
    return arrow.table({"a": a, "b": b, "similarity": similarity}, schema=schema)


def insert(store: Store, name: str, table: arrow.Table) -> None:
    """Makes a table of the store's database from one of Arrow."""
    store.db.register("incoming", table)
    store.db.execute(f"CREATE OR REPLACE TABLE {name} AS FROM incoming")
    store.db.unregister("incoming")


def components(count: int, pairs: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """For each of `count` things the smallest that it is connected with, by union-find."""
    parent = list(range(count))

    def root(x: int) -> int:
        while parent[x] != x:
            parent[x] = parent[parent[x]]
            x = parent[x]
        return x

    for a, b in pairs:
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    return np.array([root(x) for x in range(count)], dtype=np.int64)
