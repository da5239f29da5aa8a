"""Pairs of rows that are nearly alike: candidates found in DuckDB, each verified exactly. Made once for an audit.

    twin (row, rep)     what each row stands for: the first that asks the same words and has the same answer, labels,
                        number, side and system turns; so a thousand copies make no half a million pairs
    near (a, b, asked, whole, words, answer, peers, system)
                        pairs of such first rows, a < b: the similarity of what they ask, of that with the answer, of
                        their sets of words; whether their answers are equal, whether side, labels and number are, and
                        whether system turns are. (Here and not in later queries, because a join on such a column
                        instead of the row number would be every row with every other.)
    crowd (row, size)   rows that stood for a bucket too full to compare all that is in it
    unverified (pairs)  pairs that share one band only and were passed over, because there were too many candidates

Candidates share a MinHash band of what they ask, or have equal answers that are no commonplace: so a prompt in other
words, or translated there and back, is found beside its answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as arrow
from numpy.typing import NDArray

from luthier.gate.text import similarities

if TYPE_CHECKING:
    from luthier.gate.store import Store

LOWEST = 0.6
"""Below this similarity the bands find fewer than seven of eight pairs, so no threshold may be lower."""
LOWEST_WORDS = 0.2
"""Of pairs with equal answers."""
MOST_IN_BUCKET = 1000
"""Rows of a larger bucket (and of smaller ones where there are very many) are compared with its first row only."""
MOST_CANDIDATES = 20
"""Per row of the data set, and a million in any case."""
MOST_VERIFIED = 3
"""Per row, and 50,000 in any case; beyond, pairs that share a single band are passed over. Two texts of similarity s
share two of the 26 bands with probability 0.95 at 0.7 and 0.9995 at 0.8; among rows from templates nineteen of twenty
candidates share one by chance."""
MOST_WITH_ANSWER = 100
"""Rows with one answer, beyond which it is a commonplace: a label, a macro, a refusal."""
_BATCH = 10_000
_NEAR = arrow.schema(
    [
        *(("a", arrow.int64()), ("b", arrow.int64())),
        *((name, arrow.float64()) for name in ("asked", "whole", "words")),
        *((name, arrow.bool_()) for name in ("answer", "peers", "system")),
    ]
)


def find_near(store: Store) -> None:
    """Makes the three tables, unless they are there."""
    if store.value("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'near'"):
        return
    store.db.execute(
        "CREATE TABLE twin AS "
        "WITH marked AS (SELECT row, bit_xor(hash) AS print FROM bands WHERE what = 'prompt' GROUP BY row) "
        "SELECT row, first_value(row) OVER ("
        "  PARTITION BY print, side, labels, value, answer_key, lead, hash(prompt[:lead]) ORDER BY row_key, row) "
        "AS rep FROM marked JOIN rows USING (row)"
    )
    rows = store.value("SELECT count(*) FROM twin WHERE row = rep")
    _bucket(store, _BANDS, most=max(1_000_000, MOST_CANDIDATES * rows), largest=MOST_IN_BUCKET)
    store.db.execute("CREATE TABLE candidate AS FROM (" + _PAIRS + ")")
    _pass_over(store, most=max(50_000, MOST_VERIFIED * rows))
    store.db.execute(
        "CREATE TABLE crowd AS SELECT first AS row, max(size) AS size FROM bucket WHERE capped GROUP BY first"
    )
    _bucket(store, _ANSWERS, most=max(1_000_000, MOST_CANDIDATES * rows), largest=MOST_WITH_ANSWER)
    store.db.execute("DELETE FROM bucket WHERE capped")
    store.db.execute("INSERT INTO candidate FROM (" + _PAIRS + ") ANTI JOIN candidate USING (a, b)")
    _verify(store)
    for name in ("candidate", "shared", "bucket"):
        store.db.execute(f"DROP TABLE {name}")


_FIRSTS = "SEMI JOIN (FROM twin WHERE row = rep) USING (row)"
_BANDS = f"SELECT hash, row FROM bands {_FIRSTS} WHERE what = 'prompt'"
_ANSWERS = f"SELECT answer_key AS hash, row FROM rows {_FIRSTS} WHERE prompt <> '' AND answer <> ''"
_PAIRS = (
    "SELECT least(x.row, y.row) AS a, greatest(x.row, y.row) AS b, count(*) AS bands "
    "FROM bucket JOIN shared x USING (hash) JOIN shared y USING (hash) "
    "WHERE CASE WHEN capped THEN x.row = first AND y.row <> first ELSE x.row < y.row END GROUP BY ALL"
)


def _pass_over(store: Store, *, most: int) -> None:
    """Takes away the least promising candidates where there are too many of them, and counts them."""
    store.db.execute("CREATE TABLE unverified AS SELECT 0::BIGINT AS pairs")
    if store.value("SELECT count(*) FROM candidate") > most:
        store.db.execute("UPDATE unverified SET pairs = (SELECT count(*) FROM candidate WHERE bands = 1)")
        store.db.execute("DELETE FROM candidate WHERE bands = 1")


def _bucket(store: Store, hashes: str, *, most: int, largest: int) -> None:
    """The tables `shared` (hash, row) of hashes that several rows have, and `bucket` (hash, size, first, capped).

    Args:
        most: pairs that all buckets may make together; the largest ones count as capped until it is so.
        largest: rows beyond which a bucket is capped in any case.
    """
    store.db.execute(
        f"CREATE OR REPLACE TABLE shared AS WITH every AS ({hashes}) "
        "FROM every SEMI JOIN (SELECT hash FROM every GROUP BY hash HAVING count(*) > 1) USING (hash)"
    )
    store.db.execute(
        "CREATE OR REPLACE TABLE bucket AS SELECT hash, count(*) AS size, arg_min(row, (row_key, row)) AS first, "
        "false AS capped FROM shared JOIN rows USING (row) GROUP BY hash"
    )
    total = 0
    for size, count in store.db.execute("SELECT size, count(*) FROM bucket GROUP BY size ORDER BY size").fetchall():
        total += count * size * (size - 1) // 2
        if size > largest or total > most:
            store.db.execute("UPDATE bucket SET capped = true WHERE size >= ?", [size])
            return


class _Side(NamedTuple):
    """Of one row of a candidate pair."""

    row: int
    asked: str
    whole: str
    """Bare forms of what it asks, and of that with the answer."""


class _Pair(NamedTuple):
    a: _Side
    b: _Side
    answer: bool
    peers: bool
    system: bool


def _verify(store: Store) -> None:
    equal = (
        "x.answer_key = y.answer_key AND x.answer <> '' AND x.prompt <> '', "
        "x.side = y.side AND x.labels IS NOT DISTINCT FROM y.labels AND x.value IS NOT DISTINCT FROM y.value, "
        "x.prompt[:x.lead] = y.prompt[:y.lead]"
    )
    sides = ", ".join(f"{x}.row, {x}.asked_form, {x}.whole_form" for x in "xy")
    sql = f"SELECT {sides}, {equal} FROM candidate JOIN rows x ON x.row = a JOIN rows y ON y.row = b"
    found = [
        _verified([_Pair(_Side(*pair[:3]), _Side(*pair[3:6]), *pair[6:]) for pair in batch])
        for batch in store.batches(sql, _BATCH)
    ]
    store.db.register("incoming", arrow.concat_tables([_NEAR.empty_table(), *found]))
    store.db.execute("CREATE TABLE near AS FROM incoming")
    store.db.unregister("incoming")


def _verified(batch: Sequence[_Pair]) -> arrow.Table:
    asked: dict[int, str] = {}
    whole: dict[int, str] = {}
    for pair in batch:
        for side in (pair.a, pair.b):
            asked[side.row], whole[side.row] = side.asked, side.whole
    place = {row: index for index, row in enumerate(asked)}
    pair_P2 = np.array([(place[pair.a.row], place[pair.b.row]) for pair in batch], dtype=np.int64)
    sets = [frozenset(form.split(" ")) for form in asked.values()]
    same_P = np.array([pair.answer for pair in batch])
    words_P = np.array([_overlap(sets[a], sets[b]) for a, b in pair_P2.tolist()])
    asked_P = similarities(list(asked.values()), pair_P2)
    whole_P = similarities(list(whole.values()), pair_P2)
    kept = np.flatnonzero((asked_P >= LOWEST) | (whole_P >= LOWEST) | (same_P & (words_P >= LOWEST_WORDS)))
    pairs = [batch[i] for i in kept.tolist()]
    columns = [
        *([pair.a.row for pair in pairs], [pair.b.row for pair in pairs]),
        *(asked_P[kept], whole_P[kept], words_P[kept]),
        *([pair.answer for pair in pairs], [pair.peers for pair in pairs], [pair.system for pair in pairs]),
    ]
    return arrow.table(dict(zip(_NEAR.names, columns, strict=True)), schema=_NEAR)


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    common = len(a & b)
    return common / (len(a) + len(b) - common)


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
