"""What a run takes over from an earlier one that began with the same rows, template and tokenizer: its prepared rows
and tokens, linked or copied whole into the new folder after every file was compared with its hash.

    RUN/data/prepared.json   what was found when they were prepared, and the hash of every file beside it
    RUN/data/sides.npy, keys.npy, answers.npy   the arrays of it
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier import cache
from luthier.data.detect import Detection
from luthier.data.load import Counts, Loaded
from luthier.data.read import STDIN, find
from luthier.data.store import ExampleStore
from luthier.data.tokens import Written
from luthier.models.shape import Shape
from luthier.recipe import Recipe
from luthier.runs.folder import storage, sync, write_json
from luthier.types import SIDES, Finding, Side

KIND, FACTS = "prepared", "prepared.json"
_ARRAYS = ("sides", "keys", "answers")


class Rendered(NamedTuple):
    """What became of the rows of each side."""

    sides: dict[Side, Written]
    answers: list[int]
    """Tokens of the last answer of each training row."""
    findings: list[Finding]


class Taken(NamedTuple):
    """Rows and tokens of an earlier run."""

    run: Path
    loaded: Loaded
    labels: list[str] | None
    """Labels of the training rows, sorted; None for rows without."""
    rendered: Rendered


def tokenizer_hash(tokenizer: Any) -> str | None:
    """Hash of how a tokenizer cuts and writes text; None where that is code that cannot be hashed."""
    if not getattr(tokenizer, "is_fast", False):
        return None
    parts = [tokenizer.special_tokens_map, tokenizer.chat_template, type(tokenizer).__name__]
    text = tokenizer.backend_tokenizer.to_str() + json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def prepared_key(recipe: Recipe, tokenizer: Any, shape: Shape) -> str | None:
    """Hash of all that prepared rows depend on; None where that is not known before they are read.

    Raises:
        DataError: a file of the data does not exist.
    """
    cut = tokenizer_hash(tokenizer)
    found = {side: find(getattr(recipe.data, side)) for side in SIDES}
    names = [name for files in found.values() for name in files.files]
    # A pipe is read once only, and what cannot be read is said where it is read.
    if cut is None or not all(name != STDIN and os.path.isfile(name) and os.access(name, os.R_OK) for name in names):
        return None
    template = recipe.model.template
    file = Path(template) if template is not None else None
    text = file.read_bytes() if file is not None and file.is_file() else b""
    dated = b"strftime" in text or "strftime" in str(tokenizer.chat_template)
    return cache.key(
        data=recipe.data.model_dump(mode="json", exclude={"gate"}),
        objective=None if recipe.objective is None else recipe.objective.model_dump(mode="json"),
        length=[recipe.training.max_length, recipe.training.on_over_long],
        template=[template, hashlib.sha256(text).hexdigest(), date.today().isoformat() if dated else ""],
        tokenizer=cut,
        libraries=[version(name) for name in ("tokenizers", "transformers", "jinja2")],
        model=[shape.family, shape.positions],
        files={side: [[name, cache.digest(Path(name))] for name in files.files] for side, files in found.items()},
        skipped={side: files.skipped for side, files in found.items()},
    )


def leave(folder: Path, key: str, loaded: Loaded, labels: list[str] | None, rendered: Rendered) -> None:
    """Writes beside prepared rows in `folder` what another run needs to take them."""
    arrays: list[NDArray[Any]] = [loaded.sides, loaded.keys, np.asarray(rendered.answers, dtype=np.int64)]
    for name, values in zip(_ARRAYS, arrays, strict=True):
        with storage(folder):
            np.save(folder / f"{name}.npy", values, allow_pickle=False)
            sync(folder / f"{name}.npy")
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != FACTS)
    facts = {
        "key": key,
        "files": {str(path.relative_to(folder)): cache.digest(path) for path in files},
        "split_by": loaded.split_by,
        "detection": loaded.detection._asdict(),
        "counts": {name: count._asdict() for name, count in loaded.counts.items()},
        "sha256": dict(loaded.sha256),
        "findings": [finding.as_dict() for finding in loaded.findings],
        "labels": labels,
        "sides": {side: written._asdict() for side, written in rendered.sides.items()},
        "rendered": [finding.as_dict() for finding in rendered.findings],
    }
    write_json(folder / FACTS, facts)


def take(past: Path, key: str, folder: Path) -> Taken | None:
    """Puts the prepared rows of an earlier run into `folder`, or does nothing where there are none that are whole."""
    file = cache.recall(past, KIND, key)
    if file is None or file.parent == folder.absolute():
        return None
    facts = json.loads(file.read_text(encoding="utf-8"))
    beside = folder.with_name(f".{folder.name}.partial")
    with storage(folder):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            for name, expected in facts["files"].items():
                _link(file.parent / name, beside / name)
                if cache.digest(beside / name) != expected:
                    raise FileNotFoundError
            _link(file, beside / FACTS)
        except FileNotFoundError:
            # That run was deleted or changed in the meantime: everything is prepared anew.
            shutil.rmtree(beside)
            return None
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(beside, folder)
        sync(folder.parent)
    arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _ARRAYS}
    loaded = Loaded(
        ExampleStore(folder),
        arrays["sides"],
        arrays["keys"],
        facts["split_by"],
        Detection(**facts["detection"]),
        _findings(facts["findings"]),
        {name: Counts(**count) for name, count in facts["counts"].items()},
        facts["sha256"],
    )
    sides = {side: Written(**facts["sides"][side]) for side in SIDES if side in facts["sides"]}
    rendered = Rendered(sides, arrays["answers"].tolist(), _findings(facts["rendered"]))
    return Taken(file.parent.parent, loaded, facts["labels"], rendered)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        # Another disk, or a file system without links.
        shutil.copyfile(source, target)
        sync(target)


def _findings(rows: list[dict[str, Any]]) -> list[Finding]:
    return [Finding(**{**row, "examples": tuple(row["examples"])}) for row in rows]
