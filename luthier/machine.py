"""This machine, as far as a run depends on it: processor, cores, memory, number formats. Free of torch."""

from __future__ import annotations

import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""x86's and Arm's names for matrix or vector products in bf16; without one of them bf16 is slower than float32 on a
CPU."""


@cache
def _cpuinfo() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def fast_bf16() -> bool:
    """Whether the processor has instructions for bf16."""
    info = _cpuinfo()
    return bool(_BF16_FLAGS & set(f"{info.get('flags', '')} {info.get('Features', '')}".split()))


def instructions() -> str:
    """The processor's name and instruction sets: what was compiled for one such string runs on another machine with the
    same."""
    info = _cpuinfo()
    return " ".join((platform.machine(), info.get("model name", ""), info.get("flags", ""), info.get("Features", "")))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory that this process can have: the machine's, or its control group's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def describe() -> dict[str, Any]:
    """What the manifest says of the machine."""
    return {
        "cpu": _cpuinfo().get("model name", platform.processor() or platform.machine()),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "bf16": fast_bf16(),
    }
