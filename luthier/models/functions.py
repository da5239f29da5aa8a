"""Autograd functions of the fast path: a norm with the linear layers behind it, and a gated product with its linear
layer; attention is `models.attention`. Each keeps as little as possible for the backward pass and recomputes what is
cheap.

    kept for a token and layer of a Llama model, in numbers of the computation's type
    two residual sums 2 H   q, k, v   attention output   gate and up 2 I

against about 14 H + 4 I where autograd keeps the inputs of every operation.

Shape suffixes:  T tokens   H width of the input   O width of an output   r rank
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier import kernels
from luthier.batch import wide
from luthier.kernels.plain import Drop
from luthier.models.attention import fresh_drop
from luthier.models.lora import Parts, dense_weight, parts


class Scale(NamedTuple):
    """The weight of a root-mean-square norm."""

    weight: Tensor
    eps: float
    plus_one: bool = False
    """Gemma stores the weight less one."""

    def value(self, dtype: torch.dtype) -> Tensor:
        return ((wide(self.weight) + 1) if self.plus_one else self.weight).detach().to(dtype)


def fused(modules: Sequence[nn.Module]) -> list[Parts] | None:
    """The parts of linear layers that can be computed together, or None where one of them has to run by itself."""
    found = [parts(module) for module in modules]
    fit = all(p is not None and p.magnitude is None and not p.dropout for p in found)
    return found if fit else None  # type: ignore[return-value]


def norm(x: Tensor, scale: Scale, delta: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(x + delta, its norm)."""
    return _Norm.apply(x, delta, scale.weight, scale)  # type: ignore[no-untyped-call, no-any-return]


def project(
    x: Tensor, modules: Sequence[nn.Module], *, scale: Scale | None = None, delta: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """The residual sum x + delta [T, H], and what linear layers make of its norm (of x itself without `scale`)."""
    found = fused(modules)
    if found is None:
        total, h = (x, x) if scale is None else norm(x, scale, delta)
        # Copies, because attention rotates in place what a module may have kept.
        return total, [module(h).clone() for module in modules]
    weight = None if scale is None else scale.weight
    total, *outputs = _Project.apply(x, delta, weight, scale, found, *_trained(found))  # type: ignore[no-untyped-call]
    return total, outputs


def layer_norm(
    x: Tensor, module: nn.LayerNorm, delta: Tensor | None = None, dropout: float = 0.0
) -> tuple[Tensor, Tensor]:
    """(x + dropout(delta), its norm)."""
    drop = fresh_drop(dropout)
    arguments = (x, delta, module.weight, module.bias, float(module.eps), drop)
    return _LayerNorm.apply(*arguments)  # type: ignore[no-untyped-call, no-any-return]


def embed(tokens: Tensor, module: nn.Embedding) -> Tensor:
    """Rows of an embedding, [T, H]. Where it is trained, its gradient is added to `weight.grad` row by row: a dense one
    would be filled with zeros and added up for each microbatch."""
    return _Embedding.apply(tokens, module.weight, module.padding_idx)  # type: ignore[no-any-return, no-untyped-call]


def gated(z: Tensor, up: Tensor | None, kind: int, module: nn.Module) -> Tensor:
    """The linear layer `module` on f(z) up, or on f(z), which is not kept."""
    found = fused([module])
    if found is None:
        return module(_Gate.apply(z, up, kind))  # type: ignore[no-any-return, no-untyped-call]
    return _Gated.apply(z, up, kind, found[0], *_trained(found))  # type: ignore[no-any-return, no-untyped-call]


def _trained(found: Sequence[Parts]) -> list[Tensor | None]:
    """Four tensors for each linear layer, so that autograd sees them: weight, bias, A, B."""
    flat: list[Tensor | None] = []
    for p in found:
        flat += [p.base.weight if p.trained else None, p.bias if p.trained else None, p.A, p.B]  # type: ignore[list-item]
    return flat


def _linear(h: Tensor, p: Parts) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(y [T, O], x A^T [T, r], the weight in the computation's type where it is stored in another: kept, because
    turning it again costs more than its memory)."""
    stored = dense_weight(p.base)
    W = stored.to(h.dtype)
    y, low = kernels.of(h).adapted(h, W, p.bias, p.A, p.B, p.scale)
    return y, low, W if p.trained and W.dtype != stored.dtype else None


def _input_grad(
    g: Tensor, turned: Tensor | None, p: Parts, dh: Tensor | None, *, wanted: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(dh with this layer's share added where it is wanted, the gradient of x A^T)."""
    W = None
    if wanted:
        W = dense_weight(p.base).to(g.dtype) if turned is None else turned
    return kernels.of(g).adapted_backward(g, W, p.A, p.B, p.scale, dh)  # type: ignore[no-any-return]


def _own_grads(
    g: Tensor, h: Tensor | None, low: Tensor | None, g_low: Tensor | None, p: Parts, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of weight, bias, A and B, as far as they are needed; h is what entered the layer."""
    grads: list[Tensor | None] = [None] * 4
    if needs[0]:
        assert h is not None
        dW = g.t() @ h
        grads[0] = (dW.t() if isinstance(p.base, Conv1D) else dW).to(p.base.weight.dtype)  # type: ignore[arg-type]
    if needs[1]:
        assert p.bias is not None
        grads[1] = wide(g).sum(0).to(p.bias.dtype)
    if needs[2]:
        assert h is not None
        assert g_low is not None
        assert p.A is not None
        grads[2] = kernels.of(g).gram(g_low, h).to(p.A.dtype)
    if needs[3]:
        assert low is not None
        assert p.B is not None
        grads[3] = kernels.of(g).gram(low, g).t().to(p.B.dtype) * p.scale
    return grads


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, delta: Tensor | None, weight: Tensor, scale: Scale) -> tuple[Tensor, Tensor]:
        total, out, inverse = kernels.of(x).rms_norm(x, scale.value(x.dtype), scale.eps, delta)
        ctx.save_for_backward(total, inverse)
        ctx.scale, ctx.added = scale, delta is not None
        ctx.set_materialize_grads(False)
        return (total.view_as(total) if total is x else total), out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        rest, g = grads
        if g is None:
            return rest, rest if ctx.added else None, None, None
        total, inverse = ctx.saved_tensors
        rest = None if rest is None else rest.contiguous()
        weight, trained = ctx.scale.value(g.dtype), ctx.needs_input_grad[2]
        dx, dw = kernels.of(g).rms_norm_backward(g.contiguous(), total, weight, inverse, rest, weight_grad=trained)
        return dx, dx if ctx.added else None, None if dw is None else dw.to(ctx.scale.weight.dtype), None


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float, drop: Drop
    ) -> tuple[Tensor, Tensor]:
        w, b = weight.detach().to(x.dtype), bias.detach().to(x.dtype)
        total, out, mean, inverse = kernels.of(x).layer_norm(x, w, b, eps, delta, drop)
        ctx.save_for_backward(total, mean, inverse)
        ctx.weight, ctx.drop, ctx.added = weight, drop, delta is not None
        ctx.set_materialize_grads(False)
        return (total.view_as(total) if total is x else total), out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        rest, g = grads
        total, mean, inverse = ctx.saved_tensors
        kernel = kernels.of(total)
        drop = ctx.drop if ctx.added else None
        if g is None:
            g = torch.zeros_like(total)
        weight, trained = ctx.weight.detach().to(total.dtype), ctx.needs_input_grad[2]
        rest = None if rest is None else rest.contiguous()
        dx, ddelta, dw, db = kernel.layer_norm_backward(
            g.contiguous(), total, weight, mean, inverse, rest, drop=drop, weight_grad=trained
        )
        own = (None, None) if dw is None else (dw.to(ctx.weight.dtype), db.to(ctx.weight.dtype))
        return dx, ddelta if ctx.added else None, *own, None, None


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.weight, ctx.padding = weight, padding
        return weight.detach().index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, None]:
        (tokens,) = ctx.saved_tensors
        weight, g = ctx.weight, grads[0].to(ctx.weight.dtype)
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        if ctx.padding is not None:  # torch's embedding learns nothing for this row
            tokens, g = tokens[tokens != ctx.padding], g[tokens != ctx.padding]
        weight.grad.index_add_(0, tokens, g)
        return None, None, None


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor | None,
        weight: Tensor | None,
        scale: Scale | None,
        found: list[Parts],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        if scale is None:
            total, h, inverse = x, x, None
        else:
            total, h, inverse = kernels.of(x).rms_norm(x, scale.value(x.dtype), scale.eps, delta)
        results = [_linear(h, p) for p in found]
        ctx.save_for_backward(total, inverse, *(kept for _, *pair in results for kept in pair))
        ctx.scale, ctx.found, ctx.added = scale, found, delta is not None
        ctx.set_materialize_grads(False)
        return (total.view_as(total) if total is x else total, *(y for y, *_ in results))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        rest, *outer = grads
        total, inverse, *kept = ctx.saved_tensors
        scale, needs = ctx.scale, ctx.needs_input_grad
        wanted = needs[0] or needs[1] or needs[2]
        kernel = kernels.of(total)
        weight = None if scale is None else scale.value(total.dtype)
        needs_h = any(needs[5 + 4 * i] or needs[7 + 4 * i] for i in range(len(ctx.found)))
        h = total if scale is None else kernel.rms_norm(total, weight, scale.eps).out if needs_h else None
        dh: Tensor | None = None
        flat: list[Tensor | None] = []
        for i, (p, g) in enumerate(zip(ctx.found, outer, strict=True)):
            if g is None:
                flat += [None] * 4
                continue
            low, turned = kept[2 * i : 2 * i + 2]
            mine = needs[5 + 4 * i : 9 + 4 * i]
            g = g.contiguous()
            dh, g_low = _input_grad(g, turned, p, dh, wanted=wanted)
            flat += _own_grads(g, h, low, g_low, p, mine)
        del h
        if not wanted:
            return None, None, None, None, None, *flat
        if scale is None:
            dx = dh if rest is None else rest if dh is None else dh.add_(rest)
            return dx, None, None, None, None, *flat
        if dh is None:
            return rest, rest if ctx.added else None, None, None, None, *flat
        rest = None if rest is None else rest.contiguous()
        dx, dw = kernel.rms_norm_backward(dh, total, weight, inverse, rest, weight_grad=needs[2])
        dw = None if dw is None else dw.to(scale.weight.dtype)
        return dx, dx if ctx.added else None, dw, None, None, *flat


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, up: Tensor | None, kind: int) -> Tensor:
        ctx.save_for_backward(z, up)
        ctx.kind = kind
        return kernels.of(z).gate(z, up, kind)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        z, up = ctx.saved_tensors
        _, dz, dup = kernels.of(z).gate_backward(grads[0].contiguous(), z, up, ctx.kind, product=False)
        return dz, dup, None


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, up: Tensor | None, kind: int, p: Parts, *tensors: Tensor | None) -> Tensor:
        y, *kept = _linear(kernels.of(z).gate(z, up, kind), p)
        ctx.save_for_backward(z, up, *kept)
        ctx.kind, ctx.parts = kind, p
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        g = g.contiguous()
        z, up, low, turned = ctx.saved_tensors
        p, needs = ctx.parts, ctx.needs_input_grad
        kernel = kernels.of(z)
        inner = needs[0] or needs[1]
        dh, g_low = _input_grad(g, turned, p, None, wanted=inner)
        h = dz = dup = None
        needs_h = needs[4] or needs[6]
        if inner:
            h, dz, dup = kernel.gate_backward(dh, z, up, ctx.kind, product=needs_h)
        elif needs_h:
            h = kernel.gate(z, up, ctx.kind)
        own = _own_grads(g, h, low, g_low, p, needs[4:8])
        return dz, dup, None, None, *own
