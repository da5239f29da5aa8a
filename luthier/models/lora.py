"""A linear layer with a low-rank update, as a module and as the parts that a caller computes with its neighbours.

Low-rank adaptation (Hu et al., arXiv 2106.09685, section 4.1): y = W x + s B A x, W frozen, A [r, in], B [out, r],
s = alpha / r, or alpha / sqrt(r) with rank stabilisation (Kalajdzievski, arXiv 2312.03732, equation 5). DoRA (Liu et
al., arXiv 2402.09353, equation 5) gives each output a trained magnitude: y = m (W + s B A) x / ||W + s B A||.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier import kernels
from luthier.models import starts
from luthier.models.quantised import QuantisedLinear, quantised


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
        y: Tensor
        y, low = kernels.of(rows).adapted(rows, weight, bias if magnitude is None else None, A, B, scale)
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
        wanted = ctx.needs_input_grad[0]
        own = kernels.of(g_rows)
        weight = dense_weight(ctx.base).to(g.dtype) if wanted else None
        gx, g_low = own.adapted_backward(g_rows, weight, a, b, ctx.scale)
        gA = own.gram(g_low, rows).to(ctx.dtype)
        gB = own.gram(low, g_rows).t().to(ctx.dtype).mul_(ctx.scale)
        gx = gx.view(*g.shape[:-1], -1) if wanted else None
        return gx, None, gA, gB, g_magnitude, None
