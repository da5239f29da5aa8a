"""`luthier export`: a run's adapter as a folder, or base and adapter merged into one model."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from luthier.data import tokens
from luthier.errors import InputError
from luthier.export.merge import difference, merge, outputs
from luthier.models import sources
from luthier.recipe import Full, Recipe
from luthier.recipe.load import load
from luthier.runs.folder import RunFolder, refuse_filled, storage, sync
from luthier.types import JSON
from luthier.workflow.arms import open_tokenizer
from luthier.workflow.build import open_policy
from luthier.workflow.package import save_beside, save_whole
from luthier.workflow.tell import Tell, silent

COMPARED_DOCUMENTS, COMPARED_TOKENS = 4, 256


def export(root: Path, *, to: Literal["merged", "adapter"], out: Path, tell: Tell = silent) -> JSON:
    """Writes the model of a run into the new folder `out`, whole or not at all.

    `merged` computes in float32 and saves float32: rounding to bf16 would lose part of a small update. Its logits are
    compared with those of base and adapter, and the folder is read back and compared once more.

    Raises:
        InputError: `out` is not empty, or the run has no adapter to export.
        ModelError: the merged model computes something else.
    """
    run, out = RunFolder.open(Path(root)), Path(out)
    if not run.model.exists():
        raise InputError("this run has no model yet", where=str(root), do=f"luthier resume {root}")
    refuse_filled(out, do="choose another --out")
    recipe = load(run.recipe)
    if to == "adapter" and isinstance(recipe.adapter, Full):
        raise InputError("this run trained whole weights and has no adapter", where=str(root), do="--to merged")
    beside = out.with_name(f".{out.name}.partial")
    with storage(out):
        shutil.rmtree(beside, ignore_errors=True)
        try:
            facts = _copied(run, beside) if to == "adapter" else _merged(run, recipe, beside, tell)
            if out.exists():
                out.rmdir()
            os.rename(beside, out)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        sync(out.parent)
    files = {p.name: p.stat().st_size for p in sorted(out.iterdir())}
    return {"to": to, "out": str(out), "files": files, **facts}


def _copied(run: RunFolder, beside: Path) -> JSON:
    shutil.copytree(run.model, beside)
    return {}


def _merged(run: RunFolder, recipe: Recipe, beside: Path, tell: Tell) -> JSON:
    tell({"event": "progress", "what": "merging", "done": 0, "total": 3})
    beside.mkdir(parents=True)
    origin = sources.resolve(str(run.model))
    whole, _ = open_policy(recipe, origin, dtype=torch.float32, device="cpu")
    documents = _documents(run)
    found: JSON = {}
    if origin.adapter is not None:
        found = {"merge": asdict(merge(whole, documents))}
    tell({"event": "progress", "what": "merging", "done": 1, "total": 3})
    tokenizer: Any = open_tokenizer(str(run.model), origin, recipe)
    save_whole(beside, whole)
    save_beside(beside, recipe, tokenizer, whole)
    if (run.card).exists():
        shutil.copy(run.card, beside / "README.md")
    tell({"event": "progress", "what": "merging", "done": 2, "total": 3})
    reread, _ = open_policy(recipe, sources.resolve(str(beside)), dtype=torch.float32, device="cpu")
    reloaded = difference(outputs(whole, documents), outputs(reread, documents), dtype=torch.float32)
    tell({"event": "progress", "what": "merging", "done": 3, "total": 3})
    return {**found, "reloaded": asdict(reloaded)}


def _documents(run: RunFolder) -> list[list[int]]:
    """A few training examples, on which two forms of a model are compared."""
    store = tokens.open_store(run.side("train"))
    count = min(COMPARED_DOCUMENTS, len(store))
    return [store.sequence(i).tokens_T[:COMPARED_TOKENS].tolist() for i in range(count)]
