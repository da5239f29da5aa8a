"""LoRA on a frozen model, and the choice of which weights are trained.

Low-rank adaptation (Hu et al., arXiv 2106.09685, section 4.1): y = W x + s B A x, W frozen, A [r, in], B [out, r],
s = alpha / r, or alpha / sqrt(r) with rank stabilisation (Kalajdzievski, arXiv 2312.03732, equation 5). DoRA (Liu et
al., arXiv 2402.09353, equation 5) gives each output a trained magnitude: y = m (W + s B A) x / ||W + s B A||. How A and
B begin is `models.starts`, files in PEFT's format are `models.peft_files`, PEFT's other methods `models.peft_methods`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError, RecipeError
from luthier.models import peft_methods, starts
from luthier.models.quantised import QuantisedLinear, quantised
from luthier.recipe import Adapter, Lora, Peft


class Parts(NamedTuple):
    """What a linear layer computes, for a caller that computes it together with its neighbours:
    y = k * (W x + scale * B A dropout(x)) + bias, where k is 1, or with a magnitude m what `column_scale` gives."""

    base: nn.Module
    """Give it to `dense_weight` for W [out, in]. A quantised base opens its weight anew at each call."""
    bias: Tensor | None
    A: Tensor | None
    """[rank, in], in float32 or wider whatever the base computes in; None without an adapter."""
    B: Tensor | None
    """[out, rank]."""
    scale: float
    magnitude: Tensor | None
    """[out], of DoRA."""
    dropout: float
    """Probability on the input of A; 0 outside of training."""
    trained: bool
    """The base's own weight or bias is trained."""


def parts(module: nn.Module) -> Parts | None:
    """The parts of a linear layer, or None for a module that computes anything else: one with hooks, a layer of PEFT's,
    a base that is not switched on as it was found."""
    base = module.base if isinstance(module, LoraLinear) else module
    if type(base) not in (nn.Linear, Conv1D, QuantisedLinear) or _hooked(module) or _hooked(base):
        return None
    trained = any(p.requires_grad for p in base.parameters())
    if type(module) is LoraLinear:
        if not module.enabled and module.start_A is not None:
            return None
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        if not module.enabled:
            return Parts(base, bias, None, None, 1.0, None, 0.0, trained)
        dropout = module.dropout if module.training else 0.0
        magnitude = module.lora_magnitude_vector
        return Parts(base, bias, module.lora_A, module.lora_B, module.scale, magnitude, dropout, trained)
    if base is not module:
        return None
    return Parts(base, base.bias, None, None, 1.0, None, 0.0, trained)  # type: ignore[arg-type]


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


def dense_weight(base: nn.Module) -> Tensor:
    """The weight of a linear layer as [out, in], without a copy where it is stored as numbers."""
    if isinstance(base, QuantisedLinear):
        return base.dense()
    weight: Tensor = base.weight  # type: ignore[assignment]
    return weight.t() if isinstance(base, Conv1D) else weight


def column_scale(weight: Tensor, A: Tensor, B: Tensor, scale: float, magnitude: Tensor) -> Tensor:
    """m / ||W + s B A|| for each output, [out] (DoRA, equation 5), the norm taken in the adapter's type."""
    norm: Tensor = torch.addmm(weight.to(A.dtype), B, A, alpha=scale).norm(dim=1)
    return magnitude / norm


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained low-rank update. The base may be `nn.Linear`, GPT-2's `Conv1D`, whose
    weight is stored [in, out], or a `QuantisedLinear`."""

    def __init__(
        self,
        base: nn.Module,
        *,
        rank: int,
        scale: float,
        dropout: float,
        generator: torch.Generator,
        init: str = "default",
        dora: bool = False,
        quantise: str = "none",
        loftq_iterations: int = 1,
    ) -> None:
        """
        Args:
            base: replaced by its quantised form with `quantise`; its weight is changed by some `init`.
        """
        super().__init__()
        self.scale = scale
        self.dropout = dropout
        self.enabled = True
        weight = dense_weight(base)
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        begun = starts.begin(
            weight.detach().to(dtype),
            init,
            rank=rank,
            scale=scale,
            quantise=quantise,
            iterations=loftq_iterations,
            generator=generator,
        )
        self.lora_A, self.lora_B = nn.Parameter(begun.A.contiguous()), nn.Parameter(begun.B.contiguous())
        # What was taken out of the base: without it, a layer that is switched off would not be the model's own.
        self.register_buffer("start_A", begun.A.clone() if begun.rest is not None else None, persistent=False)
        self.register_buffer("start_B", begun.B.clone() if begun.rest is not None else None, persistent=False)
        if begun.rest is not None:
            with torch.no_grad():
                weight.copy_(begun.rest)
        self.base = base if quantise == "none" else quantised(base, quantise)
        self.transposed = isinstance(base, Conv1D)
        self.register_parameter("lora_magnitude_vector", None)
        if dora:
            with torch.no_grad():
                whole = torch.addmm(dense_weight(self.base).to(dtype), begun.B, begun.A, alpha=scale)
            self.lora_magnitude_vector = nn.Parameter(whole.norm(dim=1))

    start_A: Tensor | None
    start_B: Tensor | None
    lora_magnitude_vector: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            out: Tensor = self.base(x)
            if self.start_A is None or self.start_B is None:
                return out
            return out + self.scale * (x @ self.start_A.to(x.dtype).t() @ self.start_B.to(x.dtype).t())
        if self.dropout and self.training:
            return self._dropped(x)
        out = _LoraProduct.apply(x, self.base, self.lora_A, self.lora_B, self.lora_magnitude_vector, self.scale)  # type: ignore[no-untyped-call]
        return out

    def _dropped(self, x: Tensor) -> Tensor:
        """With dropout on A's input. As in PEFT, DoRA's factor acts on the dropped input beyond the plain base."""
        dropped = F.dropout(x, self.dropout)
        update = self.scale * (dropped @ self.lora_A.to(x.dtype).t() @ self.lora_B.to(x.dtype).t())
        out: Tensor = self.base(x)
        if self.lora_magnitude_vector is None:
            return out + update
        weight = dense_weight(self.base)
        with torch.no_grad():
            unit = column_scale(weight, self.lora_A, self.lora_B, self.scale, torch.ones_like(weight[:, 0]))
        k = (self.lora_magnitude_vector * unit).to(x.dtype)
        return out + (k - 1) * F.linear(dropped, weight.to(x.dtype)) + k * update

    def update(self) -> Tensor:
        """What is added to the base's weight, in its layout: s B A, or with DoRA k (W + s B A) - W."""
        delta = self.scale * (self.lora_B @ self.lora_A)
        if self.lora_magnitude_vector is not None:
            weight = dense_weight(self.base).to(delta.dtype)
            k = column_scale(weight, self.lora_A, self.lora_B, self.scale, self.lora_magnitude_vector)
            delta = k[:, None] * (weight + delta) - weight
        return delta.t() if self.transposed else delta


class _LoraProduct(torch.autograd.Function):
    """y = k (x W^T + s (x A^T) B^T) + b with W [out, in] and b frozen; k is 1, or DoRA's m / ||W + s B A||, whose norm
    counts as a constant in the backward pass (section 4.3). Saves x, x A^T and, for m, y - b; adds in place, and orders
    the products of the backward pass so that none is larger than rank x inputs or rank x outputs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, base: nn.Module, A: Tensor, B: Tensor, magnitude: Tensor | None, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        a, b = A.to(x.dtype), B.to(x.dtype)
        weight = dense_weight(base).to(x.dtype)
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        scaled = bias is not None and magnitude is None
        y = torch.addmm(bias, rows, weight.t()) if scaled else rows @ weight.t()  # type: ignore[arg-type]
        low = rows @ a.t()
        y.addmm_(low, b.t(), alpha=scale)
        ctx.base, ctx.scale, ctx.dtype = base, scale, A.dtype
        if magnitude is None:
            ctx.save_for_backward(rows, a, b, low)
            return y.view(*x.shape[:-1], -1)
        k = column_scale(weight, A, B, scale, magnitude)
        y.mul_(k.to(y.dtype))
        out = y if bias is None else y + bias
        ctx.save_for_backward(rows, a, b, low, y, k, magnitude)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, Tensor | None, None]:
        (g,) = grads
        rows, a, b, low, *dora = ctx.saved_tensors
        g_rows = g.reshape(-1, g.shape[-1])
        g_magnitude = None
        if dora:
            y, k, magnitude = dora
            g_magnitude = (g_rows * y).sum(0, dtype=ctx.dtype) / magnitude
            g_rows = g_rows * k.to(g.dtype)
        g_low = (g_rows @ b).mul_(ctx.scale)
        gx = None
        if ctx.needs_input_grad[0]:
            weight = dense_weight(ctx.base).to(g.dtype)
            gx = (g_rows @ weight).addmm_(g_low, a).view(*g.shape[:-1], -1)
        gA = (g_low.t() @ rows).to(ctx.dtype)
        gB = (g_rows.t() @ low).to(ctx.dtype).mul_(ctx.scale)
        return gx, None, gA, gB, g_magnitude, None


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
