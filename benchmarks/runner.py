"""Runs one contender in a process of its own and keeps what the operating system says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contenders.common import Job
from benchmarks.field import Contender

LIMIT_SECONDS = 1800
ROOT = Path(__file__).resolve().parent.parent


def run_module(python: Path, module: str, arguments: list[str], *, threads: int) -> dict[str, Any]:
    """Runs `python -m module arguments` and reads the JSON on its last line of output.

    Returns:
        `result` (None where it failed), `error` (the last line it wrote), `wall_seconds`, `peak_bytes` as wait4 counts
        it, `others` (cores that other processes used meanwhile) and `stolen` (cores that the hypervisor took).
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        used, stolen, began = machine.cpu_seconds(), machine.stolen_seconds(), time.perf_counter()
        process = subprocess.Popen(
            [str(python), "-m", module, *arguments], stdout=out, stderr=err, env=environment, cwd=ROOT
        )
        timer = threading.Timer(LIMIT_SECONDS, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
        wall = time.perf_counter() - began
        after, stolen_after = machine.cpu_seconds(), machine.stolen_seconds()
        process.returncode = os.waitstatus_to_exitcode(status)
        lines, errors = (_lines(stream) for stream in (out, err))
    mine = usage.ru_utime + usage.ru_stime
    failed = process.returncode != 0
    result = None if failed else json.loads(lines[-1])
    return {
        "result": result,
        "error": (errors[-1] if errors else f"exit status {process.returncode}") if failed else None,
        "wall_seconds": wall,
        "peak_bytes": (result or {}).get("gpu_bytes", 0) or usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        "others": None if used is None or after is None else max(0.0, (after - used - mine) / wall),
        "stolen": None if stolen is None or stolen_after is None else (stolen_after - stolen) / wall,
    }


def _lines(stream: Any) -> list[str]:
    stream.seek(0)
    text: str = stream.read().decode("utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()]


def run_contender(contender: Contender, job: Job, *, pythons: dict[str, Path], folder: Path) -> dict[str, Any]:
    """One run of one contender on a job."""
    path = folder / "job.json"
    path.write_text(json.dumps(asdict(replace(job, options=contender.options))))
    return run_module(
        pythons[contender.environment], f"benchmarks.contenders.{contender.script}", [str(path)], threads=job.threads
    )
