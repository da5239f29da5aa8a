"""The tuned model as a folder that other tools load: adapter or weights, tokenizer, generation settings."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from luthier.data.render import Renderer
from luthier.errors import ModelError
from luthier.models import adapters, peft_files
from luthier.models.peft_files import save_adapter
from luthier.models.policy import Policy
from luthier.models.sources import Origin
from luthier.recipe import Full, Recipe, Supervised
from luthier.runs.folder import RunFolder, storage, sync
from luthier.workflow.build import generation_config, head_modules


def package(run: RunFolder, recipe: Recipe, origin: Origin, tokenizer: Any, policy: Policy) -> None:
    """Writes RUN/model, whole or not at all, and reads it back."""
    beside = run.model.with_name(".model.partial")
    with storage(run.model):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_model(beside, recipe, origin, policy)
        save_beside(beside, recipe, tokenizer, policy)
        _compare_saved(beside, recipe, policy)
        shutil.rmtree(run.model, ignore_errors=True)
        os.rename(beside, run.model)
        sync(run.root)


def save_model(folder: Path, recipe: Recipe, origin: Origin, policy: Policy) -> None:
    """Adapter in PEFT's format, or whole weights in transformers'."""
    assert recipe.adapter is not None
    if not isinstance(recipe.adapter, Full):
        base = str(origin.path) if origin.kind == "folder" else origin.source
        revision = origin.revision if origin.kind == "hub" else None
        save_adapter(
            folder,
            policy.model,
            recipe.adapter,
            base=base,
            revision=revision,
            head=head_modules(policy),
            quantise=recipe.model.quantise,
        )
    else:
        save_whole(folder, policy)


def save_whole(folder: Path, policy: Policy) -> None:
    """Weights and configuration, as transformers loads them."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    policy.model.config.use_cache = policy.causal
    try:
        policy.model.save_pretrained(folder)
    finally:
        policy.model.config.use_cache = False


def save_beside(folder: Path, recipe: Recipe, tokenizer: Any, policy: Policy) -> None:
    """Tokenizer with the template that was trained with, and where to stop."""
    tokenizer.save_pretrained(folder)
    if isinstance(recipe.objective, Supervised):
        stop = Renderer(tokenizer).stop_tokens()
        generation_config(policy, stop, tokenizer.pad_token_id).save_pretrained(folder)


def _compare_saved(folder: Path, recipe: Recipe, policy: Policy) -> None:
    """Reads the trained tensors back: what is on the disk is what was trained.

    Raises:
        ModelError: it is not.
    """
    saved: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        saved |= load_file(path)
    if isinstance(recipe.adapter, Full):
        expected: dict[str, torch.Tensor] = dict(adapters.trained(policy.model))
    else:
        expected = peft_files.tensors(policy.model, head=head_modules(policy))
    for name, tensor in expected.items():
        if name not in saved or not torch.equal(saved[name], tensor):
            raise ModelError("a saved tensor is not what was trained", where=str(folder), got=name)
