"""manifest.json: what a run was made from, down to hashes and versions. Its presence says that preparation is
finished."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier import machine
from luthier.runs.folder import RunFolder, write_json

_VERSIONS = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "sacrebleu", "rouge-score")


def write_manifest(
    run: RunFolder,
    *,
    base: Mapping[str, Any],
    data: Sequence[Mapping[str, Any]],
    seeds: Mapping[str, int],
    parents: Sequence[str] = (),
) -> None:
    """Writes the manifest of a prepared run.

    Args:
        base: source, kind, revision, licence and files (name -> SHA-256) of the base model.
        data: file, sha256, rows, bad, side of each data file.
        parents: run folders or adapters that this run goes on from.
    """
    write_json(
        run.manifest,
        {
            "version": 1,
            "luthier": importlib.metadata.version("luthier"),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "base": dict(base),
            "data": [dict(row) for row in data],
            "recipe_sha256": hashlib.sha256(run.recipe.read_bytes()).hexdigest(),
            "code_sha256": code_sha256(),
            "versions": versions(),
            "machine": machine.describe(),
            "seeds": dict(seeds),
            "parents": list(parents),
        },
    )


def versions() -> dict[str, str]:
    """Versions of the libraries that a result may depend on."""
    return {"python": machine.describe()["python"], **{name: importlib.metadata.version(name) for name in _VERSIONS}}


def code_sha256() -> str:
    """One hash over Luthier's own source files."""
    package = Path(__file__).parents[1]
    total = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        total.update(f"{path.relative_to(package).as_posix()}\n".encode())
        total.update(path.read_bytes())
    return total.hexdigest()
