"""A data set on disk while it is looked at: Parquet in chunks, DuckDB over them, bounded memory, spill to disk.

    FOLDER/rows/N.parquet    one row each, as `look.ROWS` says; `row` counts from 0 in reading order
    FOLDER/bands/N.parquet   MinHash bands of prompts and rows
    FOLDER/hits/N.parquet    what the rules saw
    FOLDER/spill/            what does not fit into DuckDB's memory

It holds the rows' texts, is readable by its owner alone, and is removed when the audit ends.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from pyarrow import parquet

from luthier.gate.look import hits_table, look_at, write_tables
from luthier.gate.policy import Policy
from luthier.gate.rows import Hit, Row
from luthier.gate.workers import Workers
from luthier.runs.folder import storage

if TYPE_CHECKING:
    from luthier.gate.cluster import Cluster

CHUNK_ROWS = 4000
CHUNK_CHARACTERS = 4 << 20
"""A chunk ends at whichever comes first. Results do not depend on it."""
MEMORY = "600MB"
"""Of DuckDB; with two workers of 250 MB and this process, an audit stays below 2 GB."""
TABLES = ("rows", "bands", "hits")
_HITS_AT_ONCE = 50_000


class Store:
    """Opens a written store. As a context manager it removes the folder in the end."""

    def __init__(self, folder: Path, *, began: float, threads: int = 2, memory: str = MEMORY) -> None:
        """Args:
        began: when the audit did, on the clock of `time.monotonic`.
        """
        self.folder, self.began = folder, began
        self._hits = HitWriter(folder, "set")
        self.db = duckdb.connect(":memory:")
        quoted = str(folder).replace("'", "''")
        for statement in (
            f"SET memory_limit = '{memory}'",
            f"SET threads = {threads}",
            f"SET temp_directory = '{quoted}/spill'",
            "SET preserve_insertion_order = false",
            "SET autoinstall_known_extensions = false",
            "SET autoload_known_extensions = false",
            f"SET allowed_directories = ['{quoted}']",
            "SET enable_external_access = false",
            "SET lock_configuration = true",
            *(f"CREATE VIEW {name} AS SELECT * FROM read_parquet('{quoted}/{name}/*.parquet')" for name in TABLES),
        ):
            self.db.execute(statement)

    def batches(self, sql: str, size: int = 10_000, parameters: Sequence[Any] = ()) -> Iterator[list[tuple[Any, ...]]]:
        """The result of a query, `size` tuples at a time; other queries may run between them.

        It runs on a connection of its own, which sees tables and views, but not temporary ones.
        """
        with self.db.cursor() as cursor:
            cursor.execute(sql, parameters)
            while rows := cursor.fetchmany(size):
                yield rows

    def value(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """The one value that a query gives."""
        row = self.db.execute(sql, parameters).fetchone()
        assert row is not None, "a query for one value gives one"
        return row[0]

    def add(self, hits: Iterable[Hit]) -> None:
        """Writes hits of rules over the whole set."""
        for hit in hits:
            self._hits.add(hit)
        self._hits.flush()

    def remove(self) -> None:
        """Closes the store and removes its folder."""
        self.db.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class HitWriter:
    """Hits to Parquet, so that any number of them takes no memory."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name, self._numbers = folder / "hits", name, count()
        self._held: list[Hit] = []

    def add(self, hit: Hit) -> None:
        self._held.append(hit)
        if len(self._held) >= _HITS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        if self._held:
            with storage(self._folder):
                parquet.write_table(
                    hits_table(self._held), self._folder / f"{self._name}-{next(self._numbers):06}.parquet"
                )
            self._held.clear()


def write_store(
    items: Iterable[Row | Hit],
    folder: Path,
    policy: Policy,
    *,
    workers: int | str = 2,
    chunk_rows: int = CHUNK_ROWS,
    chunk_characters: int = CHUNK_CHARACTERS,
) -> Store:
    """Writes rows, and hits about rows that could not be read, into a new folder, and opens it.

    Args:
        workers: processes besides this one, or the address of a Ray cluster; one chunk alone is looked at here.

    Raises:
        StorageError: the disk is full.
        InputError: no such cluster.
    """
    began = time.monotonic()
    with storage(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        for name in (*TABLES, "spill"):
            (folder / name).mkdir()
    unread = HitWriter(folder, "unread")
    pool: Workers | Cluster | None = None
    first = number = 0
    try:
        for rows, last in _last_marked(_chunks(items, unread, chunk_rows, chunk_characters)):
            if pool is None and workers and not last:
                pool = _pool(workers, policy, folder)
            if pool is None:
                write_tables(look_at(rows, policy, first=first), folder, number=number)
            else:
                pool.put(rows, first=first, number=number)
            first, number = first + len(rows), number + 1
        if pool is not None:
            pool.finish()
        if number == 0:
            write_tables(look_at([], policy, first=0), folder, number=0)
        unread.flush()
        return Store(folder, began=began)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        if pool is not None:
            pool.close()


def _pool(workers: int | str, policy: Policy, folder: Path) -> Workers | Cluster:
    if isinstance(workers, int):
        return Workers(workers, policy, folder)
    from luthier.gate.cluster import Cluster

    return Cluster(workers, policy, folder)


def _chunks(items: Iterable[Row | Hit], unread: HitWriter, most_rows: int, most_characters: int) -> Iterator[list[Row]]:
    rows: list[Row] = []
    characters = 0
    for item in items:
        if isinstance(item, Hit):
            unread.add(item)
            continue
        rows.append(item)
        characters += sum(len(field.text) for field in item.fields)
        if len(rows) >= most_rows or characters >= most_characters:
            yield rows
            rows, characters = [], 0
    if rows:
        yield rows


def _last_marked(chunks: Iterator[list[Row]]) -> Iterator[tuple[list[Row], bool]]:
    held = next(chunks, None)
    while held is not None:
        after = next(chunks, None)
        yield held, after is None
        held = after
