"""Compiles `native/*.cpp` with the machine's own compiler, once: the library is kept in the user's cache under the hash
of the source, the compiler, its options and the processor.

Compiled on the user's machine and not shipped, because the instructions that make it fast (`-march=native`) differ
between machines, and because a reader can see what runs.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

from luthier import machine
from luthier.cache import root

SOURCES = Path(__file__).with_name("native")
OPTIONS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-Wno-psabi", "-fopenmp", "-fPIC")
_STANDARD = ("-lstdc++",) if sys.platform == "linux" else ()
"""A compiler that is named as C's (CXX=gcc) does not link C++'s library by itself."""
SWITCH = "LUTHIER_KERNELS"
"""Set to `plain` to do without the compiled functions."""


@cache
def library() -> ctypes.CDLL | None:
    """The compiled functions, or None; `reason` says why."""
    return _library()[0]


def reason() -> str:
    """Why there is no library; empty where there is one."""
    return _library()[1]


@cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get(SWITCH) == "plain":
        return None, f"{SWITCH}=plain"
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return None, "no C++ compiler was found (c++, g++, clang++, or the variable CXX)"
    try:
        return ctypes.CDLL(str(_compiled(compiler))), ""
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [str(error)]
        return None, f"{compiler} failed: {lines[0]}"
    except OSError as error:
        return None, f"{compiler}: {error}"


def _compiled(compiler: str) -> Path:
    # The compiler's own name and date stand for its version: asking it costs a process at every start.
    real = Path(shutil.which(compiler) or compiler).resolve()
    built = f"{real} {real.stat().st_mtime_ns} {real.stat().st_size}"
    files = sorted(SOURCES.iterdir())
    digest = hashlib.sha256("\0".join((built, *OPTIONS, *_STANDARD, machine.instructions())).encode())
    for file in files:
        digest.update(file.read_bytes())
    target = root() / "kernels" / f"{digest.hexdigest()[:16]}.so"
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        beside = Path(folder) / target.name
        sources = [file for file in files if file.suffix == ".cpp"]
        objects = [str(Path(folder) / f"{file.stem}.o") for file in sources]
        commands = [[compiler, *OPTIONS, "-c", str(a), "-o", b] for a, b in zip(sources, objects, strict=True)]
        with ThreadPoolExecutor() as pool:
            list(pool.map(_run, commands))
        _run([compiler, *OPTIONS, "-shared", *objects, *_openmp(), *_STANDARD, "-o", str(beside)])
        os.replace(beside, target)
    return target


def _run(command: list[str]) -> None:
    subprocess.run(command, capture_output=True, text=True, check=True)


def _openmp() -> list[str]:
    """Links against torch's own OpenMP library where it has one under a name of its own: with two such libraries two
    pools of threads would spin on the same cores. Under the usual name the loader takes the one in memory."""
    place = Path(torch.__file__).parent
    own = [*place.glob("lib/libgomp-*.so*"), *place.with_name("torch.libs").glob("libgomp-*.so*")]
    return [str(own[0]), "-Wl,--as-needed"] if own else []
