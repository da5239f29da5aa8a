"""The answers of a base that an earlier run asked the same rows: they lie in that run's predictions, nowhere else."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from luthier import cache, machine
from luthier.evaluation.run import TestSet
from luthier.kernels.build import library
from luthier.models.policy import Policy
from luthier.models.sources import Origin
from luthier.models.starts import MOVES_THE_BASE
from luthier.recipe import Lora
from luthier.types import JSON
from luthier.workflow.reuse import tokenizer_hash

BASE = "base"


class BaseAnswers(NamedTuple):
    """What the base of an earlier run answered."""

    run: Path
    items: list[JSON]


def base_key(test: TestSet, origin: Origin, policy: Policy, *, alone: bool, answers: bool) -> str | None:
    """Hash of all that the base's losses and, with `answers`, its answers depend on, down to the code and the processor
    that compute them; None where that cannot be told.

    Args:
        alone: the base is the tuned model without its adapter.
    """
    recipe = test.recipe
    cut = tokenizer_hash(test.renderer.tokenizer)
    if cut is None:
        return None
    adapter = recipe.adapter
    # Such adapters leave the base computing in another way, though it stays the same but for rounding.
    apart = alone and (not isinstance(adapter, Lora) or adapter.init in MOVES_THE_BASE)
    asked = recipe.evaluation.model_dump(
        mode="json", include={"generate", "max_new_tokens", "batch"} if answers else set()
    )
    return cache.key(
        base=dict(origin.files),
        tokenizer=cut,
        rows=_rows_hash(test),
        objective=None if recipe.objective is None else recipe.objective.model_dump(mode="json"),
        asked=asked,
        computed=[
            *(str(policy.dtype), str(policy.device), recipe.model.precision, recipe.model.quantise),
            torch.get_num_threads(),
        ],
        microbatch_tokens=recipe.training.microbatch_tokens,
        adapter=[adapter.model_dump(mode="json"), recipe.training.seed] if apart and adapter is not None else None,
        head=recipe.training.seed if policy.head is not None else None,
        alone=alone,
        versions=[torch.__version__, *(version(name) for name in ("tokenizers", "transformers"))],
        machine=[machine.instructions(), getattr(library(), "_name", ""), str(machine.gpu())],
    )


def _rows_hash(test: TestSet) -> str:
    digest = hashlib.sha256()
    for row in test.rows:
        example = test.examples[row]
        digest.update(json.dumps([row, example.id, example.provenance.hash]).encode())
    for array in test.tokens:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def base_answers(past: Path, key: str) -> BaseAnswers | None:
    """The base's items in the predictions of an earlier run, scored, in the order of the rows."""
    file = cache.recall(past, BASE, key)
    if file is None:
        return None
    items = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return BaseAnswers(file.parent, [item for item in items if item["arm"] == "base"])
