"""What a recipe leaves out is derived here from the model and the data; every value comes with its reason. Free of
torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from luthier import machine
from luthier.errors import DataError, RecipeError
from luthier.evaluation import scorers
from luthier.models.families import ENCODERS
from luthier.recipe import (
    Adapter,
    Classify,
    ClassifyMulti,
    Full,
    Lora,
    Objective,
    Recipe,
    Regress,
    Supervised,
    TextTokens,
)
from luthier.workflow.forecast import Fit

LONGEST_DEFAULT = 4096
VALIDATIONS = 8
TASKS: dict[str, scorers.Task] = {
    "supervised": "answers",
    "text": "text",
    "classify": "labels",
    "classify_multi": "multi_labels",
    "regress": "number",
}
"""Objective -> the task that the evaluation knows it by."""
PRIMARY = {kind: scorers.TASKS[task].primary for kind, task in TASKS.items()}
FITS = {
    "supervised": "conversation",
    "text": "text",
    "classify": "labelled",
    "classify_multi": "labelled",
    "regress": "regression",
}


@dataclass(frozen=True, slots=True)
class Derived:
    """A value that the recipe left out."""

    key: str
    value: Any
    why: str

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "value": self.value, "why": self.why}


class Deriver:
    """Collects derived values while a recipe is being filled in."""

    def __init__(self, recipe: Recipe) -> None:
        self.tree: dict[str, Any] = recipe.model_dump(mode="json")
        self.found: list[Derived] = []

    def fill(self, key: str, value: Any, why: str) -> None:
        """Sets `key` (dotted) if the recipe left it out."""
        *parents, last = key.split(".")
        node = self.tree
        for parent in parents:
            node = node[parent]
        if node[last] is None:
            node[last] = value
            self.found.append(Derived(key, value, why))

    def recipe(self) -> Recipe:
        return Recipe.model_validate(self.tree)


def derive_task(recipe: Recipe, *, format: str, why: str, family: str, several_labels: bool) -> Deriver:
    """Fills in what follows from the kind of rows and of model: objective and adapter.

    Raises:
        RecipeError: objective, rows and model do not fit together.
    """
    deriver = Deriver(recipe)
    deriver.fill("data.format", format, why)
    kind = {"text": "text", "labelled": "labelled", "regression": "regression"}.get(format, "conversation")
    encoder = family in ENCODERS
    objective: Objective = {
        "text": TextTokens(),
        "labelled": ClassifyMulti() if several_labels else Classify(),
        "regression": Regress(),
        "conversation": Supervised(),
    }[kind]
    deriver.fill("objective", objective.model_dump(mode="json"), f"the rows are of the format {format}")
    given = deriver.tree["objective"]["kind"]
    if FITS[given] != kind:
        raise RecipeError(
            f"objective.kind: {given} needs {FITS[given]} rows",
            got=f"rows of the format {format}",
            do="set data.format and data.columns, or leave the objective out",
        )
    if encoder and given in ("supervised", "text"):
        raise RecipeError(
            "this model reads text but cannot write it",
            where="model.source",
            got=f"a model of the family {family} and rows to learn answers from",
            do="use a GPT- or Llama-family model for answers; encoders are for labels and numbers",
        )
    if encoder:
        adapter: Adapter = Full()
        reason = "an encoder's classifier learns best with all of its weights, and they are few"
    else:
        adapter, reason = Lora(), "adapts all linear layers and leaves the base frozen"
    deriver.fill("adapter", adapter.model_dump(mode="json"), reason)
    return deriver


def derive_numbers(deriver: Deriver, *, positions: int, train_rows: int, answers: Sequence[int]) -> None:
    """Fills in rates, lengths and intervals.

    Args:
        positions: tokens that the model's positions allow.
        answers: tokens of the last answer of each training row.
    """
    tree = deriver.tree
    full, kind = tree["adapter"]["kind"] == "full", tree["objective"]["kind"]
    classifier = kind in ("classify", "classify_multi", "regress")
    if not full:
        deriver.fill("training.rate", 2e-4, "usual for LoRA, whatever the rank")
    elif classifier:
        deriver.fill("training.rate", 1e-4, "usual for a small encoder trained in full with a new head")
    else:
        deriver.fill("training.rate", 2e-5, "usual for full fine-tuning")
    steps_per_epoch = math.ceil(train_rows / tree["training"]["batch_examples"])
    steps = max(1, round(tree["training"]["epochs"] * steps_per_epoch))
    if tree["training"]["max_steps"]:
        steps = min(steps, tree["training"]["max_steps"])
    every = max(1, min(steps_per_epoch, math.ceil(steps / VALIDATIONS)))
    deriver.fill("training.validate_every", every, f"about {VALIDATIONS} times in {steps} steps, at least every epoch")
    deriver.fill("training.checkpoint_every", tree["training"]["validate_every"], "at every validation")
    deriver.fill("training.threads", machine.cores(), "the cores of this machine")
    deriver.fill("evaluation.primary", PRIMARY[kind], f"the usual measure of the objective {kind}")
    primary = scorers.SCORERS[deriver.tree["evaluation"]["primary"]]
    # The margin of an error is a share of the base's own error, which nobody knows yet.
    if not primary.relative:
        deriver.fill("evaluation.margin", primary.margin, f"the usual margin of {primary.name}")
    if kind == "supervised":
        # An index and not an interpolated quantile: the value must not depend on floating-point habits.
        usual = sorted(answers)[int(0.95 * (len(answers) - 1))] if answers else 256
        longest = max(16, min(512, math.ceil(usual * 1.25), positions // 2))
        deriver.fill("evaluation.max_new_tokens", longest, "a quarter more than 95 % of the training answers need")
    gpu = _derive_device(deriver)
    if tree["model"]["precision"] == "auto":
        fast, place = (gpu.bf16, "GPU") if gpu is not None else (machine.fast_bf16(), "processor")
        why = f"this {place} has {'' if fast else 'no '}instructions for bf16"
        tree["model"]["precision"] = None
        deriver.fill(
            "model.precision",
            "bf16" if fast else "fp32",
            f"{why}; trained weights stay in float32" if fast else why,
        )


def _derive_device(deriver: Deriver) -> machine.Gpu | None:
    """Settles `training.device`; gives the GPU where it is one.

    Raises:
        RecipeError: there is none.
    """
    gpu, training = machine.gpu(), deriver.tree["training"]
    if training["device"] == "auto":
        training["device"] = None
        there = f"{gpu.name} with {gpu.memory_bytes / 1e9:.0f} GB" if gpu else "no GPU that torch could use is here"
        deriver.fill("training.device", "cuda" if gpu else "cpu", there)
    elif training["device"] == "cuda" and gpu is None:
        raise RecipeError(
            "training.device: no GPU that torch could use is here", got="cuda", do="training.device: auto or cpu"
        )
    return gpu if training["device"] == "cuda" else None


def derive_length(deriver: Deriver, *, positions: int) -> None:
    """Fills in the longest example and what becomes of longer ones."""
    tree = deriver.tree
    longest = min(positions, LONGEST_DEFAULT)
    deriver.fill("training.max_length", longest, f"the model's positions allow {positions:,} tokens")
    if tree["training"]["max_length"] > positions:
        raise RecipeError(
            "training.max_length: the model's positions do not allow it",
            got=f"{tree['training']['max_length']}",
            do=f"at most {positions}",
        )
    conversation = tree["objective"]["kind"] == "supervised"
    policy, why = (
        ("refuse", "no supervised answer is cut unasked") if conversation else ("cut_end", "usual for documents")
    )
    deriver.fill("training.on_over_long", policy, why)


def derive_fit(deriver: Deriver, found: Fit) -> None:
    """Fills in how much is computed at once, and whether what the backward pass needs is kept."""
    deriver.fill("training.microbatch_tokens", found.microbatch_tokens, found.why)
    if deriver.tree["training"]["recompute"] == "auto":
        deriver.tree["training"]["recompute"] = None
        deriver.fill("training.recompute", found.recompute, found.why_recompute)


def label_list(recipe: Recipe, seen: set[str]) -> list[str]:
    """The outputs of a classifier in order.

    Raises:
        DataError: rows have labels that the recipe's list lacks, or there are fewer than two.
    """
    assert isinstance(recipe.objective, (Classify, ClassifyMulti))
    labels = recipe.objective.labels or sorted(seen)
    missing = sorted(seen - set(labels))
    if missing:
        raise DataError(
            "training rows have labels that objective.labels does not list",
            got=f"{len(missing)}: {', '.join(missing[:5])}",
        )
    if isinstance(recipe.objective, Classify) and len(labels) < 2:
        raise DataError("a classifier needs at least two labels", got=f"{len(labels)} in the training rows")
    return labels
