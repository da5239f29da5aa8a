"""Log-probabilities of given tokens from hidden states, without keeping the logits of any of them.

Rows are walked in tiles with the whole vocabulary in each, so a log-sum-exp is never summed over parts. Where the head
is frozen the gradient of log p with respect to the hidden state is computed in the forward pass (it does not depend on
the objective, which only scales it), one vocabulary product fewer than recomputing. Where it is trained, tiles are
recomputed in the backward pass and the head's gradient is summed in float32 or wider.

Shape suffixes:  N selected positions   H hidden size   V vocabulary
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier import kernels
from luthier.batch import wide
from luthier.kernels import plain

TILE = 256
"""Positions in a tile on a CPU: 50 MB of float32 logits at a vocabulary of 49,152."""
TILE_NUMBERS = 2**26
"""Logits in a tile on a GPU, which needs larger products to be busy: 1,365 positions at that vocabulary."""


def token_logprobs(
    hidden_NH: Tensor,
    weight_VH: Tensor,
    target_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """log softmax(cap(h W^T + b))[target], [N] in float32 or wider.

    `softcap` c applies c tanh(z / c) to the logits (Gemma 2, arXiv 2408.00118, section 2).
    """
    out: Tensor = _TokenLogprobs.apply(hidden_NH, weight_VH, target_N, bias_V, softcap)  # type: ignore[no-untyped-call]
    return out


def logits(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, softcap: float | None) -> Tensor:
    """[N, V] in float32 or wider; for few positions, such as the next tokens of a sampler."""
    # The compiled product has no gradient.
    kernel = plain if torch.is_grad_enabled() else kernels.of(hidden_NH)
    z = kernel.linear(hidden_NH, weight_VH.to(hidden_NH.dtype))
    if bias_V is not None:
        z = z + bias_V.to(z.dtype)
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def _tile(W: Tensor) -> int:
    return max(1, TILE_NUMBERS // len(W)) if W.is_cuda else TILE


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, W: Tensor, target: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
        trained = W.requires_grad or (bias is not None and bias.requires_grad)
        differentiate = h.requires_grad or trained
        logprobs = wide(h.new_empty(0)).new_empty(len(target))
        grad_rows = torch.empty_like(h) if h.requires_grad and not trained else None
        matrix, kernel = W.to(h.dtype), kernels.of(h)
        tile = _tile(W)
        for i in range(0, len(target), tile):
            z, _ = kernel.adapted(h[i : i + tile], matrix, None, None, None, 1.0)
            keep = grad_rows is not None
            logprobs[i : i + tile] = kernel.logprobs_(z, target[i : i + tile], bias=bias, softcap=softcap, keep=keep)
            if grad_rows is not None:
                torch.mm(z, matrix, out=grad_rows[i : i + tile])
        ctx.softcap = softcap
        ctx.recompute = differentiate and trained
        if ctx.recompute:
            ctx.save_for_backward(h, W, target, bias)
        else:
            ctx.save_for_backward(grad_rows)
        return logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, Tensor | None, None]:
        (g,) = grads
        if not ctx.recompute:
            (rows,) = ctx.saved_tensors
            return (None if rows is None else (wide(rows) * g[:, None]).to(rows.dtype)), None, None, None, None
        h, W, target, bias = ctx.saved_tensors
        dh = torch.empty_like(h) if ctx.needs_input_grad[0] else None
        dW = wide(torch.zeros_like(W)) if ctx.needs_input_grad[1] else None
        db = wide(torch.zeros_like(bias)) if bias is not None and ctx.needs_input_grad[3] else None
        matrix, kernel = W.to(h.dtype), kernels.of(h)
        tile = _tile(W)
        for i in range(0, len(target), tile):
            z, _ = kernel.adapted(h[i : i + tile], matrix, None, None, None, 1.0)
            kernel.logprobs_(z, target[i : i + tile], bias=bias, softcap=ctx.softcap, keep=True)
            z.mul_(g[i : i + tile, None])
            if db is not None:
                db += wide(z).sum(0)
            if dh is not None:
                torch.mm(z, matrix, out=dh[i : i + tile])
            if dW is not None:
                dW += wide(z.t() @ h[i : i + tile])
        return (
            dh,
            None if dW is None else dW.to(W.dtype),
            None,
            None if db is None or bias is None else db.to(bias.dtype),
            None,
        )
