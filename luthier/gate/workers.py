"""Processes that look at chunks of rows. Each is a fresh interpreter at the end of two pipes.

Nothing is forked, so threads and GPUs of this process do no harm, and nobody's main module runs twice. A worker ends
when its pipe closes: with this process, however that ends.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Any

from luthier.errors import LuthierError, OutOfMemory
from luthier.gate.look import look_at, write_tables
from luthier.gate.policy import Policy
from luthier.gate.rows import Row

_LENGTH = struct.Struct("<Q")
_START = "import sys; sys.path[:0] = sys.argv[1:]; from luthier.gate.workers import serve; serve()"
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")


class Workers:
    """Takes chunks and lets `count` processes write their tables; holds two chunks for each of them and no more."""

    def __init__(self, count: int, policy: Policy, folder: Path) -> None:
        self._idle: queue.Queue[subprocess.Popen[bytes]] = queue.Queue()
        self._all = [self._started(policy, folder) for _ in range(count)]
        self._threads = ThreadPoolExecutor(count)
        self._pending: set[Future[None]] = set()

    def put(self, rows: Sequence[Row], *, first: int, number: int) -> None:
        """Sends chunk `number`, whose first row is row `first` of the data set; waits while all are busy."""
        if len(self._pending) >= 2 * len(self._all):
            done, self._pending = wait(self._pending, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
        self._pending.add(self._threads.submit(self._ask, (rows, first, number)))

    def finish(self) -> None:
        """Waits for all that was sent."""
        for future in self._pending:
            future.result()
        self._pending.clear()

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._all:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()

    def _started(self, policy: Policy, folder: Path) -> subprocess.Popen[bytes]:
        package = str(Path(__file__).parents[2])
        process = subprocess.Popen(
            [sys.executable, "-c", _START, package],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
        )
        assert process.stdin is not None
        _send(process.stdin, (policy.model_dump(mode="json"), str(folder)))
        self._idle.put(process)
        return process

    def _ask(self, chunk: Any) -> None:
        process = self._idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _send(process.stdin, chunk)
            failed = _receive(process.stdout)
        except (EOFError, BrokenPipeError):
            raise OutOfMemory(
                "a process that looked at the rows ended before its time",
                got=f"exit code {process.poll()}",
                do="free some memory, or look with one process: --workers 0",
            ) from None
        self._idle.put(process)
        if failed:
            raise LuthierError("a rule of the data gate failed: this is a fault of Luthier", got=failed)


def serve() -> None:
    """What a worker does: a policy and a folder first, then chunks until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    incoming, outgoing = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    # What a library prints must not end up among the answers.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    settings, folder = _receive(incoming)
    policy = Policy.model_validate(settings)
    while True:
        try:
            rows, first, number = _receive(incoming)
        except EOFError:
            return
        try:
            write_tables(look_at(rows, policy, first=first), Path(folder), number=number)
            failed = ""
        except Exception as error:
            failed = where(error)
        _send(outgoing, failed)


def where(error: Exception) -> str:
    """The kind of an error and the lines it passed; its message could quote a row."""
    import traceback

    frames = traceback.extract_tb(error.__traceback__)[-3:]
    return f"{type(error).__name__} at " + ", ".join(f"{Path(f.filename).name}:{f.lineno}" for f in frames)


def _send(pipe: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(head)
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return pickle.loads(data)
