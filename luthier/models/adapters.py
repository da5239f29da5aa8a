"""Which weights are trained: adapters put in place of a model's linear layers, modules trained in full, layers left
frozen.

The adapted layer is `models.lora`, how its A and B begin `models.starts`, files in PEFT's format `models.peft_files`,
PEFT's other methods `models.peft_methods`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError, RecipeError
from luthier.models import peft_methods
from luthier.models.lora import LoraLinear
from luthier.models.quantised import QuantisedLinear, quantised
from luthier.recipe import Adapter, Lora, Peft


def scale_of(adapter: Lora) -> float:
    """The factor on B A."""
    return adapter.alpha / (math.sqrt(adapter.rank) if adapter.rslora else adapter.rank)


def attach(
    model: nn.Module, adapter: Adapter, *, seed: int, head: tuple[str, ...] = (), quantise: str = "none"
) -> None:
    """Freezes and unfreezes `model` as the recipe says and, for an adapter, replaces the target layers in place.

    Args:
        head: module names that are always trained, such as a new classification head.
        quantise: how the linear layers of a frozen base are kept, a word of `recipe.Model.quantise`.

    Raises:
        RecipeError: a target, layer or module to save does not exist, or a start does not fit.
    """
    if adapter.kind == "full":
        if quantise != "none":
            raise RecipeError("model.quantise: quantised weights cannot be trained", do="adapter.kind: lora, or none")
        _unfreeze(model, adapter.freeze_layers)
        return
    model.requires_grad_(False)
    if isinstance(adapter, Peft):
        if quantise != "none":
            quantise_rest(model, quantise, whole=head)
        peft_methods.attach(model, adapter, seed=seed, head=head)
        for name in head:
            train_whole(model, name, leave_in=None)
        return
    generator = torch.Generator().manual_seed(seed)
    for path in targets(model, adapter, head=head):
        replacement = LoraLinear(
            model.get_submodule(path),
            rank=adapter.rank,
            scale=scale_of(adapter),
            dropout=adapter.dropout,
            generator=generator,
            init=adapter.init,
            dora=adapter.dora,
            quantise=quantise,
            loftq_iterations=adapter.loftq_iterations,
        )
        set_submodule(model, path, replacement)
    if quantise != "none":
        quantise_rest(model, quantise, whole=(*head, *adapter.modules_to_save))
    rest = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    for name in head:
        train_whole(model, name, leave_in=None)
    for name in adapter.modules_to_save:
        train_whole(model, name, leave_in=rest)


def _unfreeze(model: nn.Module, freeze_layers: int) -> None:
    """Trains everything but the embeddings and so many of the lowest layers, where any are to be left."""
    model.requires_grad_(True)
    layers = layer_list(model)
    if freeze_layers > len(layers):
        raise RecipeError(
            "adapter.freeze_layers: the model has fewer layers",
            got=f"{freeze_layers} of {len(layers)}",
            do=f"at most {len(layers)}",
        )
    if freeze_layers:
        model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
        for module in (*in_front(model, layers), *layers[:freeze_layers]):
            module.requires_grad_(False)


def quantise_rest(model: nn.Module, kind: str, *, whole: tuple[str, ...] = ()) -> None:
    """Quantises the linear layers that are still as they were loaded, except the output and the modules `whole`."""
    for path, module in linear_layers(model, whole=whole).items():
        set_submodule(model, path, quantised(module, kind))


def linear_layers(model: nn.Module, *, whole: tuple[str, ...] = ()) -> dict[str, nn.Module]:
    """Linear layers by path, in the model's order, except the output, adapted ones and those in the modules `whole`."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    inside = {id(inner) for _, layer in lora_layers(model) for inner in layer.modules()}
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not output
        and id(module) not in inside
        and not any(f".{name}." in f".{path}." for name in whole)
    }


def targets(model: nn.Module, adapter: Lora, *, head: tuple[str, ...] = ()) -> list[str]:
    """Paths of the linear layers that the recipe means, in the model's order."""
    linear = linear_layers(model, whole=(*head, *adapter.modules_to_save))
    if adapter.targets == "all-linear":
        chosen = list(linear)
    else:
        chosen = [p for p in linear if any(p == t or p.endswith(f".{t}") for t in adapter.targets)]
        missing = [t for t in adapter.targets if not any(p == t or p.endswith(f".{t}") for p in linear)]
        if missing:
            names = sorted({p.rsplit(".", 1)[-1] for p in linear})
            raise RecipeError(
                "adapter.targets: no linear layer has this name",
                got=", ".join(missing),
                do=f"there are {', '.join(names)}",
            )
    if adapter.layers is not None:
        count = len(layer_list(model))
        beyond = [i for i in adapter.layers if not 0 <= i < count]
        if beyond:
            raise RecipeError("adapter.layers: there is no such layer", got=str(beyond), do=f"0 to {count - 1}")
        wanted = {id(m) for i in adapter.layers for m in layer_list(model)[i].modules()}
        chosen = [p for p in chosen if id(linear[p]) in wanted]
    if not chosen:
        raise RecipeError("adapter.targets: nothing in this model to adapt", do="use all-linear")
    return chosen


def named(model: nn.Module, name: str) -> list[str]:
    """Paths of the modules that `name` (a path or its last part) means."""
    return [path for path, _ in model.named_modules() if path == name or path.endswith(f".{name}")]


def train_whole(model: nn.Module, name: str, *, leave_in: torch.dtype | None) -> None:
    """Trains the module `name` (a path or its last part) in full, in float32 whatever the rest computes in.

    `leave_in` is the type of the frozen rest, which the module's output returns to; None where its output goes to no
    frozen layer.

    Raises:
        RecipeError: there is no such module, or its weight is tied to another that would silently change with it.
    """
    found = named(model, name)
    if not found:
        raise RecipeError("adapter.modules_to_save: there is no such module", got=name)
    for path in found:
        module = model.get_submodule(path)
        if _tied(model, module):
            raise RecipeError(
                "adapter.modules_to_save: this module shares its weight with the embedding or the head",
                got=path,
                do="leave it out, or use `adapter.kind: full`",
            )
        for parameter in module.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        module.register_forward_pre_hook(_enter_wide)
        if leave_in is not None:
            module.register_forward_hook(lambda _module, _inputs, output: output.to(leave_in))


def _enter_wide(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    dtype = next(module.parameters()).dtype
    return tuple(x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _tied(model: nn.Module, module: nn.Module) -> bool:
    ours = {id(p) for p in module.parameters()}
    inside = {id(m) for m in module.modules()}
    return any(
        id(parameter) in ours
        for other in model.modules()
        if id(other) not in inside
        for parameter in other.parameters(recurse=False)
    )


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Adapted layers with the paths that they had before (PEFT's names)."""
    return ((path, m) for path, m in model.named_modules() if isinstance(m, LoraLinear))


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside, adapted layers compute what the base alone would."""
    layers = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        layer.enabled = False
    try:
        with peft_methods.disabled(model):
            yield
    finally:
        for layer in layers:
            layer.enabled = True


def merge(model: nn.Module) -> None:
    """Replaces every adapted layer by a plain one with W + s B A, summed in float32 or wider and rounded once. A
    quantised base is opened: its values and not those that it was made from are what the adapter was trained on.

    Raises:
        ModelError: PEFT has no merged form of its method.
    """
    peft_methods.merge(model)
    for path, layer in list(lora_layers(model)):
        base = layer.base.opened() if isinstance(layer.base, QuantisedLinear) else layer.base
        weight: Tensor = base.weight  # type: ignore[assignment]
        with torch.no_grad():
            wide_sum = weight.to(layer.lora_A.dtype) + layer.update()
            weight.copy_(wide_sum.to(weight.dtype))
        set_submodule(model, path, base)
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantisedLinear):
            set_submodule(model, path, module.opened())


def set_submodule(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, name, module)


def layer_list(model: nn.Module) -> nn.ModuleList:
    """The model's stack of blocks.

    Raises:
        ModelError: no stack is found.
    """
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    if not stacks:
        raise ModelError("this model has no stack of layers", where=type(model).__name__)
    return max(stacks, key=lambda m: sum(p.numel() for p in m.parameters()))


def in_front(model: nn.Module, layers: nn.ModuleList) -> list[nn.Module]:
    """Modules that stand before the stack of layers in what holds it: embeddings of tokens and positions, their norm.
    Families declare their modules in the order in which they are run."""
    found: list[nn.Module] = []
    place: nn.Module = model
    while place is not layers:
        for child in place.children():
            if any(module is layers for module in child.modules()):
                place = child
                break
            found.append(child)
    return found


def weight_count(model: nn.Module) -> int:
    """Weights of the model, its adapter's among them, however they are stored."""
    layers = [m for m in model.modules() if isinstance(m, QuantisedLinear)]
    return sum(p.numel() for p in model.parameters()) + sum(q.in_features * q.out_features for q in layers)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name; a tied parameter appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
