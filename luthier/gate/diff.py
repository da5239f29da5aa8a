"""Two versions of a data set: rows added, removed, changed and moved, and what the rules see in one and not the other.

Rows are matched by content; what is left by where they first came from (`version.ORIGIN`), then by prompt. A row whose
content stands in another file of the other version has moved.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import duckdb

from luthier.gate import summary
from luthier.gate.audit import Progress, look_through, reading_of
from luthier.gate.policy import Policy
from luthier.gate.reading import rows, sources
from luthier.gate.version import ORIGIN
from luthier.types import JSON

LISTED = 20


class Side(NamedTuple):
    rows: int
    findings: dict[str, int]
    """Rule -> rows."""


class Diff(NamedTuple):
    a: Side
    b: Side
    counts: dict[str, int]
    """same, moved, changed, added, removed."""
    places: dict[str, list[str]]
    """Of each but `same` the first places; `A -> B` for moved and changed rows."""

    def as_dict(self) -> JSON:
        return {"a": self.a._asdict(), "b": self.b._asdict(), "counts": self.counts, "places": self.places}


def diff(
    a: Sequence[str],
    b: Sequence[str],
    policy: Policy,
    work: Path,
    *,
    workers: int | str = 2,
    progress: Progress | None = None,
) -> Diff:
    """Compares files or folders `a` with `b`. `work` is an empty folder for what is written on the way."""
    sides = {}
    for name, files in (("a", a), ("b", b)):
        found, _ = sources({"train": files})
        items = rows(found, policy, progress=reading_of(found, progress))
        with look_through(items, policy, work / "store", found, workers=workers, progress=progress) as store:
            sides[name] = Side(
                store.value("SELECT count(*) FROM rows"),
                {entry["rule"]: entry["count"] for entry in summary.findings(store, policy)},
            )
            inside = store.folder / "keys.parquet"
            store.db.execute(
                f"COPY (SELECT row, content, coalesce(columns->>'$.{ORIGIN}', id) AS origin, prompt_key, file, line, "
                "parse_filename(file) AS name, row_number() OVER (PARTITION BY content ORDER BY row) AS copy "
                f"FROM rows) TO '{_quoted(inside)}' (FORMAT parquet)"
            )
            shutil.move(inside, work / f"{name}.parquet")
    return Diff(sides["a"], sides["b"], *_compared(work))


def _compared(work: Path) -> tuple[dict[str, int], dict[str, list[str]]]:
    with duckdb.connect(":memory:") as db:
        db.execute(f"SET temp_directory = '{_quoted(work / 'spill')}'")
        for name in ("a", "b"):
            db.execute(f"CREATE VIEW {name} AS FROM read_parquet('{_quoted(work / f'{name}.parquet')}')")
        several = "(SELECT count(DISTINCT name) > 1 FROM a) OR (SELECT count(DISTINCT name) > 1 FROM b)"
        db.execute(
            f"""
            CREATE TABLE same AS
            SELECT a.row AS a, b.row AS b, ({several}) AND a.name <> b.name AS moved
            FROM a JOIN b USING (content, copy);
            CREATE TABLE left_a AS SELECT * FROM a WHERE row NOT IN (SELECT a FROM same);
            CREATE TABLE left_b AS SELECT * FROM b WHERE row NOT IN (SELECT b FROM same);
            """
        )
        db.execute("CREATE TABLE changed (a BIGINT, b BIGINT)")
        for key in ("origin", "prompt_key"):
            # Where a key stands several times, its rows are matched in their order.
            order = f"row_number() OVER (PARTITION BY {key} ORDER BY row) AS nth"
            db.execute(
                f"""
                INSERT INTO changed
                SELECT x.row, y.row
                FROM (SELECT *, {order} FROM left_a WHERE row NOT IN (SELECT a FROM changed)) x
                JOIN (SELECT *, {order} FROM left_b WHERE row NOT IN (SELECT b FROM changed)) y USING ({key}, nth)
                """
            )
        pairs = (
            "SELECT a.file || ':' || a.line || ' -> ' || b.file || ':' || b.line "
            "FROM {} p JOIN a ON a.row = p.a JOIN b ON b.row = p.b ORDER BY p.a"
        )
        alone = "SELECT file || ':' || line FROM left_{0} WHERE row NOT IN (SELECT {0} FROM changed) ORDER BY row"
        queries = {
            "moved": pairs.format("(FROM same WHERE moved)"),
            "changed": pairs.format("changed"),
            "added": alone.format("b"),
            "removed": alone.format("a"),
        }
        counts = {"same": _count(db, "FROM same WHERE NOT moved")}
        counts |= {name: _count(db, query) for name, query in queries.items()}
        places = {
            name: [place for (place,) in db.execute(f"{q} LIMIT {LISTED}").fetchall()] for name, q in queries.items()
        }
        return counts, places


def _count(db: duckdb.DuckDBPyConnection, query: str) -> int:
    row = db.execute(f"SELECT count(*) FROM ({query})").fetchone()
    return int(row[0]) if row else 0


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
