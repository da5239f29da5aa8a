"""LoRA on a frozen model, and the choice of which weights are trained.

Low-rank adaptation (Hu et al., arXiv 2106.09685, section 4.1): y = W x + s B A x, W frozen, A [r, in], B [out, r], B =
0 at the start, s = alpha / r, or alpha / sqrt(r) with rank stabilisation (Kalajdzievski, arXiv 2312.03732, equation 5).
Files in PEFT's format are `models.peft_files`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError, RecipeError
from luthier.recipe import Adapter, Lora


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained low-rank update. The base may be `nn.Linear` or GPT-2's `Conv1D`, whose
    weight is stored [in, out]."""

    def __init__(self, base: nn.Module, *, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.transposed = isinstance(base, Conv1D)
        self.scale = scale
        self.dropout = dropout
        self.enabled = True
        weight: Tensor = base.weight  # type: ignore[assignment]
        outputs, inputs = weight.t().shape if self.transposed else weight.shape
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        # PEFT's start: A kaiming-uniform with a = sqrt(5), which is uniform within 1 / sqrt(inputs).
        A = torch.empty(rank, inputs, dtype=torch.float32)
        A.uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
        self.lora_A = nn.Parameter(A.to(dtype))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)  # type: ignore[no-any-return]
        if self.dropout and self.training:
            update = F.dropout(x, self.dropout) @ self.lora_A.to(x.dtype).t() @ self.lora_B.to(x.dtype).t()
            return self.base(x) + self.scale * update  # type: ignore[no-any-return]
        weight: Tensor = self.base.weight  # type: ignore[assignment]
        W = weight if self.transposed else weight.t()
        out: Tensor = _LoraProduct.apply(x, W, self.base.bias, self.lora_A, self.lora_B, self.scale)  # type: ignore[no-untyped-call]
        return out

    def update(self) -> Tensor:
        """s B A in the layout of the base's weight."""
        delta = self.scale * (self.lora_B @ self.lora_A)
        return delta.t() if self.transposed else delta


class _LoraProduct(torch.autograd.Function):
    """y = x W + b + s (x A^T) B^T with W [in, out] and b frozen; saves x and x A^T, adds in place, and orders the
    products of the backward pass so that none is larger than rank x inputs or rank x outputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a, b = A.to(x.dtype), B.to(x.dtype)
        y = rows @ W if bias is None else torch.addmm(bias, rows, W)
        low = rows @ a.t()
        y.addmm_(low, b.t(), alpha=scale)
        ctx.save_for_backward(rows, W, a, b, low)
        ctx.scale, ctx.dtype = scale, A.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        (g,) = grads
        rows, W, a, b, low = ctx.saved_tensors
        g_rows = g.reshape(-1, g.shape[-1])
        g_low = (g_rows @ b).mul_(ctx.scale)
        gx = None
        if ctx.needs_input_grad[0]:
            gx = (g_rows @ W.t()).addmm_(g_low, a).view(*g.shape[:-1], -1)
        gA = (g_low.t() @ rows).to(ctx.dtype)
        gB = (g_rows.t() @ low).to(ctx.dtype).mul_(ctx.scale)
        return gx, None, None, gA, gB, None


def scale_of(adapter: Lora) -> float:
    """The factor on B A."""
    return adapter.alpha / (math.sqrt(adapter.rank) if adapter.rslora else adapter.rank)


def attach(model: nn.Module, adapter: Adapter, *, seed: int, head: tuple[str, ...] = ()) -> None:
    """Freezes and unfreezes `model` as the recipe says and, for LoRA, replaces the target layers in place.

    Args:
        head: module names that are always trained, such as a new classification head.

    Raises:
        RecipeError: a target, layer or module to save does not exist.
    """
    if adapter.kind == "full":
        model.requires_grad_(True)
        layers = layer_list(model)
        if adapter.freeze_layers > len(layers):
            raise RecipeError(
                "adapter.freeze_layers: the model has fewer layers",
                got=f"{adapter.freeze_layers} of {len(layers)}",
                do=f"at most {len(layers)}",
            )
        if adapter.freeze_layers:
            model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
            for layer in layers[: adapter.freeze_layers]:
                layer.requires_grad_(False)
        return
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for path in targets(model, adapter, head=head):
        replacement = LoraLinear(
            model.get_submodule(path),
            rank=adapter.rank,
            scale=scale_of(adapter),
            dropout=adapter.dropout,
            generator=generator,
        )
        set_submodule(model, path, replacement)
    rest = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    for name in head:
        train_whole(model, name, leave_in=None)
    for name in adapter.modules_to_save:
        train_whole(model, name, leave_in=rest)


def targets(model: nn.Module, adapter: Lora, *, head: tuple[str, ...] = ()) -> list[str]:
    """Paths of the linear layers that the recipe means, in the model's order."""
    whole = (*head, *adapter.modules_to_save)
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    linear = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and module is not output
        and not any(f".{name}." in f".{path}." for name in whole)
    }
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
    """Inside, LoRA layers compute what the base alone would."""
    layers = [layer for _, layer in lora_layers(model)]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def merge(model: nn.Module) -> None:
    """Replaces every LoRA layer by its base with W + s B A, summed in float32 or wider and rounded once."""
    for path, layer in list(lora_layers(model)):
        weight: Tensor = layer.base.weight  # type: ignore[assignment]
        with torch.no_grad():
            wide_sum = weight.to(layer.lora_A.dtype) + layer.update()
            weight.copy_(wide_sum.to(weight.dtype))
        set_submodule(model, path, layer.base)


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


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that training changes, by name; a tied parameter appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
