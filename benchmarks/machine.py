"""The machine under the benchmark: what it is, and whether something else is using it.

Counts processor time from /proc/stat; where there is none (macOS), `busy` and `others` are None and the page says so.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from luthier.machine import gpu as first_gpu

STAT, CPUINFO, MEMINFO = Path("/proc/stat"), Path("/proc/cpuinfo"), Path("/proc/meminfo")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def cpu_seconds() -> float | None:
    """Processor time that all processes and interrupts have used since the machine started, over all cores. Time that a
    hypervisor took for other guests is not in it."""
    if not STAT.exists():
        return None
    fields = [int(x) for x in STAT.read_text().splitlines()[0].split()[1:8]]
    user, nice, system, _idle, _waiting, interrupts, soft = fields
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


def stolen_seconds() -> float | None:
    """Time that a hypervisor took from this machine, over all cores."""
    if not STAT.exists():
        return None
    return int(STAT.read_text().splitlines()[0].split()[8]) / os.sysconf("SC_CLK_TCK")


def busy(seconds: float = 1.0) -> float | None:
    """Cores in use while this process sleeps."""
    before = cpu_seconds()
    if before is None:
        return None
    time.sleep(seconds)
    after = cpu_seconds()
    assert after is not None
    return (after - before) / seconds


def describe() -> dict[str, Any]:
    """For the page: processor, cores, instructions, memory, system."""
    text = CPUINFO.read_text() if CPUINFO.exists() else ""
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    values = {key.strip(): value.strip() for key, value in values.items()}
    flags = set(values.get("flags", values.get("Features", "")).split())
    memory = next(
        (int(line.split()[1]) * 1024 for line in _lines(MEMINFO) if line.startswith("MemTotal")),
        None,
    )
    return {
        "gpu": None if (gpu := first_gpu()) is None else gpu.name,
        "processor": values.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
