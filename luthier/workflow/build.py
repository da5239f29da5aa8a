"""A resolved recipe and a found model become a policy that is ready to train."""

from __future__ import annotations

from typing import Any

import torch

from luthier import machine
from luthier.errors import ModelError
from luthier.models import adapters
from luthier.models.device import chosen
from luthier.models.device import notes as device_notes
from luthier.models.load import Head, load_model
from luthier.models.peft_files import load_adapter
from luthier.models.policy import Policy, policy, verify
from luthier.models.sources import Origin
from luthier.models.starts import MOVES_THE_BASE
from luthier.recipe import Classify, ClassifyMulti, Full, Lora, Peft, Recipe, Regress


def head_of(recipe: Recipe) -> Head | None:
    """The sequence head that the objective needs."""
    objective = recipe.objective
    if isinstance(objective, Classify):
        return Head(len(objective.labels or ()), "single_label_classification", tuple(objective.labels or ()))
    if isinstance(objective, ClassifyMulti):
        return Head(len(objective.labels or ()), "multi_label_classification", tuple(objective.labels or ()))
    return Head(1, "regression") if isinstance(objective, Regress) else None


def open_policy(
    recipe: Recipe, origin: Origin, *, dtype: torch.dtype | None = None, device: str | None = None
) -> tuple[Policy, tuple[str, ...]]:
    """The model of `origin`, with its adapter where it has one, under the recipe's threads, head, precision and device;
    and what is to be said of it.

    Args:
        dtype: instead of the recipe's precision.
        device: instead of the recipe's, a word of `recipe.Training.device`.

    Raises:
        RecipeError: there is no such device.
    """
    place = chosen(device or recipe.training.device)
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    computed = dtype or (torch.bfloat16 if recipe.model.precision == "bf16" else torch.float32)
    # Weights that are trained themselves stay in float32 whatever is computed in: a small update is lost in bf16.
    stored = torch.float32 if dtype is None and isinstance(recipe.adapter, Full) else computed
    head, allowed = head_of(recipe), recipe.model.remote_code is not None
    loaded = load_model(origin, head=head, dtype=stored, seed=recipe.training.seed, remote_code=allowed)
    if origin.adapter is not None:
        load_adapter(origin.adapter, loaded.model)
    result = policy(loaded.model.to(place), sequence=head is not None, fresh=loaded.fresh)
    result.dtype = computed
    return result, (*loaded.notes, *device_notes(place))


def build_base(recipe: Recipe, origin: Origin, *, dtype: torch.dtype | None = None) -> tuple[Policy, tuple[str, ...]]:
    """The model before training (a new head is drawn from the recipe's seed), compared with its own forward pass; and
    what is to be said of it. `dtype` as in `open_policy`."""
    if origin.adapter is not None:
        raise ModelError(
            "this is an adapter on a base model, and training starts from whole weights",
            where=origin.source,
            do="merge it first (luthier export RUN --to merged --out DIR) and start from DIR",
        )
    result, notes = open_policy(recipe, origin, dtype=dtype)
    verify(result)
    return result, notes


def build(recipe: Recipe, origin: Origin, *, dtype: torch.dtype | None = None) -> tuple[Policy, tuple[str, ...]]:
    """The model with the weights unfrozen that the recipe trains. `dtype` as in `open_policy`."""
    assert recipe.adapter is not None
    result, notes = build_base(recipe, origin, dtype=dtype)
    adapters.attach(
        result.model,
        recipe.adapter,
        seed=recipe.training.seed,
        head=head_modules(result),
        quantise=recipe.model.quantise,
    )
    if recipe.model.quantise != "none":
        # The wider weights are gone, and what they took is needed for other things.
        machine.give_back()
    result.recompute = recipe.training.recompute is True
    return result, (*notes, *adapter_notes(recipe))


def adapter_notes(recipe: Recipe) -> tuple[str, ...]:
    """What is to be said of a choice of adapter and base."""
    adapter, quantise = recipe.adapter, recipe.model.quantise
    found = []
    if isinstance(adapter, Peft):
        found.append(f"{adapter.method} is computed by PEFT's own modules, which is slower than adapter.kind: lora")
    if isinstance(adapter, Lora) and adapter.init in MOVES_THE_BASE:
        found.append(
            f"init {adapter.init} changes the base; what is saved is plain LoRA of rank {2 * adapter.rank} on the base "
            "as it was" + ("" if quantise == "none" else ", which differs by what quantising changed")
        )
    elif quantise != "none":
        found.append(
            f"the adapter belongs to the base in {quantise}, which luthier chat, eval and export open for it; other "
            "programs put it on the base as it was and compute something a little different"
        )
    return tuple(found)


def head_modules(policy: Policy) -> tuple[str, ...]:
    """Modules that are trained whole beside an adapter: the sequence head, and whatever began at random."""
    own = policy.head.modules if policy.head is not None else ()
    return tuple(sorted({*own, *policy.fresh}))


def generation_config(policy: Policy, stop: tuple[int, ...], pad: int | None) -> Any:
    """What a server needs to stop where training taught the model to."""
    from transformers import GenerationConfig

    return GenerationConfig(eos_token_id=list(stop), pad_token_id=stop[0] if pad is None else pad, do_sample=False)
