"""Chunks of rows on a Ray cluster: the function of a chunk that `workers` runs in processes, as a stage of `ray.data`.

Reading stays here, and so do the rules over the whole set; rows travel to the cluster and their three tables come back,
so the machines need no disk in common. Each needs Luthier with its extra `ray`.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as arrow

from luthier.errors import InputError, LuthierError
from luthier.gate.look import Tables, look_at, write_tables
from luthier.gate.policy import Policy
from luthier.gate.rows import Row
from luthier.gate.workers import where

_A_CORE = 4
"""Chunks of a window for each core of the cluster: the next window is read while one is looked at."""
_ANSWERS = 10.0
"""Seconds in which a cluster takes a connection."""


class Cluster:
    """Takes chunks, sends them in windows, and writes what comes back; holds two windows and no more."""

    def __init__(self, address: str, policy: Policy, folder: Path) -> None:
        """Args:
            address: of a running cluster, as `ray.init` takes it: auto, HOST:PORT, ray://HOST:PORT.

        Raises:
            InputError: the extra is not installed, or no cluster answers.
        """
        # Before Ray is imported: nothing is told to anyone about this use of it.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
            import ray.data
        except ImportError:
            raise InputError("a cluster needs the extra `ray`", do="pip install 'luthier[ray]'") from None
        self._joined = not ray.is_initialized()
        if self._joined:
            try:
                _reach(address)
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
            except (OSError, ValueError, RuntimeError) as error:
                raise InputError(
                    "no Ray cluster answers",
                    where=f"--ray {address}",
                    got=str(error).splitlines()[0][:200] if str(error) else type(error).__name__,
                    do="start one (ray start --head), or leave --ray out",
                ) from None
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        settings = ray.data.DataContext.get_current()
        settings.enable_progress_bars = False
        self._data, self._stop = ray.data, ray.shutdown
        self._tree, self._folder = policy.model_dump(mode="json"), folder
        self._most = _A_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._window: list[dict[str, Any]] = []
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def put(self, rows: Sequence[Row], *, first: int, number: int) -> None:
        """Holds chunk `number`, whose first row is row `first` of the data set; sends a full window, and waits while
        the one before is still looked at."""
        # As bytes: what Ray cannot turn into columns it would quote in its log.
        self._window.append({"rows": pickle.dumps(rows), "first": first, "number": number})
        if len(self._window) >= self._most:
            self._send()

    def finish(self) -> None:
        """Waits for all that was put.

        Raises:
            LuthierError: a rule failed.
        """
        self._send()
        self._wait()

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._joined:
            self._stop()

    def _send(self) -> None:
        self._wait()
        window, self._window = self._window, []
        if window:
            self._pending = self._thread.submit(self._look, window)

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _look(self, window: list[dict[str, Any]]) -> None:
        chunks = self._data.from_items(window, override_num_blocks=len(window))
        for found in chunks.map(looked_at, fn_kwargs={"tree": self._tree}).iter_rows():
            if found["failed"]:
                raise LuthierError("a rule of the data gate failed: this is a fault of Luthier", got=found["failed"])
            tables = Tables(*(arrow.ipc.open_stream(found[name]).read_all() for name in Tables._fields))
            write_tables(tables, self._folder, number=int(found["number"]))


def _reach(address: str) -> None:
    """Ray asks for minutes where nobody listens.

    Raises:
        OSError: nobody listens there.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS).close()


def looked_at(item: dict[str, Any], *, tree: dict[str, Any]) -> dict[str, Any]:
    """The stage: a chunk to its three tables as Arrow streams. What failed is said without a row's words."""
    try:
        tables = look_at(pickle.loads(item["rows"]), Policy.model_validate(tree), first=int(item["first"]))
    except Exception as error:
        return {"number": item["number"], "failed": where(error), **dict.fromkeys(Tables._fields, b"")}
    packed = {name: _packed(table) for name, table in tables._asdict().items()}
    return {"number": item["number"], "failed": "", **packed}


def _packed(table: arrow.Table) -> bytes:
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]
