"""This machine, as far as a run depends on it: processor, GPU, cores, memory, number formats. Free of torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

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


def memory_bytes(device: str = "cpu") -> int:
    """Memory that this process can have: the machine's, or its control group's limit where that is lower; the GPU's for
    `cuda`, and for `auto` where there is one."""
    if device != "cpu" and (found := gpu()) is not None:
        return found.memory_bytes
    total = _physical_bytes()
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


class Gpu(NamedTuple):
    """The first GPU of Nvidia's that this process may use."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]
    """What Nvidia calls compute capability: 9.0 for an H100."""

    @property
    def bf16(self) -> bool:
        """Whether it computes in bf16: from Ampere on."""
        return self.capability >= (8, 0)


@cache
def gpu() -> Gpu | None:
    """The GPU that torch would use; None where there is none, or where torch is built for processors alone."""
    torch = find_spec("torch")  # which does not import it
    places = (torch.submodule_search_locations if torch else None) or ()
    if not any((Path(place) / "lib/libtorch_cuda.so").exists() for place in places):
        return None
    try:
        return first_gpu(ctypes.CDLL("libcuda.so.1"))
    except OSError:
        return None


def first_gpu(driver: Any) -> Gpu | None:
    """Asks a loaded `libcuda` (Nvidia's driver), which heeds CUDA_VISIBLE_DEVICES as torch does."""
    device, count, major, minor = (ctypes.c_int() for _ in range(4))
    name, size = ctypes.create_string_buffer(256), ctypes.c_size_t()
    calls = (
        lambda: driver.cuInit(0),
        lambda: driver.cuDeviceGetCount(ctypes.byref(count)),
        lambda: 0 if count.value else 1,
        lambda: driver.cuDeviceGet(ctypes.byref(device), 0),
        lambda: driver.cuDeviceGetName(name, len(name), device),
        lambda: driver.cuDeviceTotalMem_v2(ctypes.byref(size), device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(major), 75, device),
        lambda: driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, device),
    )
    if any(call() for call in calls):
        return None
    return Gpu(name.value.decode(errors="replace"), size.value, (major.value, minor.value))


def _physical_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(device: str = "cpu") -> int:
    """Memory that this process could have now, its own included: what the machine can give without swapping, or what
    its control group's limit leaves. Of a GPU all of it: who else is there cannot be asked without starting on it."""
    if device != "cpu" and (found := gpu()) is not None:
        return found.memory_bytes
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return memory_bytes()
    try:
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
    except OSError:
        used = 0
    left = memory_bytes() - used if memory_bytes() < _physical_bytes() else free
    return min(free, left) + resident_bytes()


def resident_bytes() -> int:
    """Memory that this process has now; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:")), 0)


def give_back() -> None:
    """Returns freed memory to the system, where the C library knows how; it would keep it for later otherwise."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def describe() -> dict[str, Any]:
    """What the manifest says of the machine."""
    return {
        "gpu": None if (found := gpu()) is None else found.name,
        "cpu": _cpuinfo().get("model name", platform.processor() or platform.machine()),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
        "bf16": fast_bf16(),
    }
