"""events.jsonl: one JSON object a line, appended, never rewritten. Everything else reads a run through it.

Events have `event` (its kind), `time` (seconds since 1970) and the values of that kind:

    started, resumed   step, versions              step        the fields of `StepReport`
    derived            key, value, why             validation  step, loss, best
    prepared           side, rows, tokens, ...     checkpoint  step, folder
    finding            the fields of `Finding`     stopped     step, reason
    evaluated          seconds                     finished    step, seconds, tokens, expected, ...
    forecast           what `workflow.forecast` expects of the run
    sweep              arms, left, together, why   spared      microbatches, passes, layer_rows, layer_rows_run
    swept              chosen, arms                failed      reason, of an arm

`saved` of started says which work each step is spared, and of finished what the run did not compute
(`workflow.spare.account`); `taken_from` of prepared and `base_from` of evaluated name the run that a result came from.

After a start or a resume at step k, step events above k that stand before it belong to work that was lost and done
again; `read` leaves them out. A second `created` stands where preparation was stopped and began anew: nothing before it
counts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luthier.runs.folder import storage

JSON = dict[str, Any]


class Journal:
    """Appends events to a file; each is on its way to the disk when `write` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with storage(path):
            _repair(path)
            self._file = path.open("ab", buffering=0)

    def write(self, event: str, **values: Any) -> JSON:
        """Appends one event and returns it."""
        record = {"event": event, "time": round(time.time(), 3), **values}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
        left = memoryview(line.encode("utf-8"))
        with storage(self.path):
            # A disk that is nearly full takes a part of the line; asking again for the rest is what says so.
            while left:
                left = left[self._file.write(left) :]
        return record

    def close(self) -> None:
        with storage(self.path):
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: Path) -> list[JSON]:
    """All events that count, in order: a torn last line and steps that were done again are left out."""
    events: list[JSON] = []
    for record in _lines(path):
        if record["event"] == "created":
            events = []
        if record["event"] in ("started", "resumed"):
            lost = ("step", "validation", "checkpoint", "stopped")
            events = [e for e in events if e["event"] not in lost or e.get("step", 0) <= record["step"]]
        events.append(record)
    return events


def _lines(path: Path) -> Iterator[JSON]:
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _repair(path: Path) -> None:
    """Ends a line that a kill tore in two, so that the next event starts on its own."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
