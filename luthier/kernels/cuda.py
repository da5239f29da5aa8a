"""The inner loops on a GPU of Nvidia's: attention by FlashAttention where it can, rows as in `plain`, one kernel each
where torch.compile works.

What a CPU can check of it is checked there (`tests/models/test_varlen.py`); on a GPU, `tests/gpu` compares it with
`plain`. It has not been run on one yet.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from luthier.kernels import plain, varlen
from luthier.kernels.branches import blocks, branches
from luthier.kernels.build import SWITCH
from luthier.kernels.plain import (
    Centred,
    Drop,
    Normed,
    Rule,
    Segments,
    adapted,
    adapted_backward,
    draw,
    gram,
    linear,
    supports,
)

__all__ = ["adapted", "adapted_backward", "draw", "gram", "linear", "supports"]

FLASH = varlen.Flash(torch.ops.aten._flash_attention_forward, torch.ops.aten._flash_attention_backward)
_WIDE_BACKWARD = frozenset({(8, 0), (9, 0), (10, 0), (10, 3)})
"""Compute capabilities with memory for the gradients of heads over 192 numbers."""


def flash_fits(dtype: torch.dtype, size: int, rule: Rule, *, capability: tuple[int, int]) -> bool:
    """Whether FlashAttention computes this. Dropout is left to the padded form, which draws it by a counter as the CPU
    does; heads are whole vectors of 8 numbers."""
    half = dtype in (torch.bfloat16, torch.float16) and capability >= (8, 0)
    return half and size % 8 == 0 and size <= (256 if capability in _WIDE_BACKWARD else 192) and not rule.drop.p


def _flash(q: Tensor, segments: Segments, rule: Rule) -> bool:
    # With a single query each, torch takes a path of its own for decoding, which has no gradient.
    short = int(segments.bounds.diff().max()) == 1
    return not short and flash_fits(q.dtype, q.shape[2], rule, capability=torch.cuda.get_device_capability(q.device))


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, rule: Rule) -> tuple[Tensor, Tensor]:
    """As `plain`."""
    if _flash(q, segments, rule):
        return varlen.flash(q, k, v, branches(segments, q.device), rule, FLASH)
    return varlen.padded(q, k, v, blocks(segments, q.device, heads=q.shape[1]), rule)


def attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    segments: Segments,
    rule: Rule,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain`."""
    if _flash(q, segments, rule):
        return varlen.flash_backward(q, k, v, out, lse, grad, branches(segments, q.device), rule, FLASH)
    return varlen.padded_backward(q, k, v, out, lse, grad, blocks(segments, q.device, heads=q.shape[1]), rule)


def rms_norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None) -> Normed:
    """As `plain`."""
    result: Normed = _rows(plain.rms_norm)(x, weight, eps, delta)
    # A compiled function gives an input back as a view of it, by which autograd could not tell that they are one.
    return result if delta is not None else result._replace(total=x)


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, rest: Tensor | None = None, *, weight_grad: bool = False
) -> tuple[Tensor, Tensor | None]:
    """As `plain`."""
    return _rows(plain.rms_norm_backward)(grad, x, weight, inverse, rest, weight_grad=weight_grad)  # type: ignore[no-any-return]


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, delta: Tensor | None = None, drop: Drop | None = None
) -> Centred:
    """As `plain`."""
    if drop is not None and drop.p:
        # The seed is another number each time, for which a compiled function would be compiled anew.
        return plain.layer_norm(x, weight, bias, eps, delta, drop)
    result: Centred = _rows(plain.layer_norm)(x, weight, bias, eps, delta)
    return result if delta is not None else result._replace(total=x)


def layer_norm_backward(
    grad: Tensor,
    total: Tensor,
    weight: Tensor,
    mean: Tensor,
    inverse: Tensor,
    rest: Tensor | None = None,
    *,
    drop: Drop | None = None,
    weight_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """As `plain`."""
    if drop is not None and drop.p:
        return plain.layer_norm_backward(grad, total, weight, mean, inverse, rest, drop=drop, weight_grad=weight_grad)
    run = _rows(plain.layer_norm_backward)
    dx, _, dw, db = run(grad, total, weight, mean, inverse, rest, weight_grad=weight_grad)
    return dx, dx, dw, db


def rotate_(x: Tensor, cosine: Tensor, sine: Tensor, size: int, *, back: bool = False) -> Tensor:
    """As `plain`."""
    _rows(plain.rotate_)(x, cosine, sine, size, back=back)
    return x


def gate(z: Tensor, up: Tensor | None, kind: int) -> Tensor:
    """As `plain`."""
    return _rows(plain.gate)(z, up, kind)  # type: ignore[no-any-return]


def gate_backward(
    grad: Tensor, z: Tensor, up: Tensor | None, kind: int, *, product: bool = True
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """As `plain`."""
    return _rows(plain.gate_backward)(grad, z, up, kind, product=product)  # type: ignore[no-any-return]


def logprobs_(z: Tensor, target: Tensor, *, bias: Tensor | None, softcap: float | None, keep: bool) -> Tensor:
    """As `plain`."""
    run = _rows(plain.logprobs_)
    return run(z, target, bias=bias, softcap=softcap, keep=keep)  # type: ignore[no-any-return]


def _rows(function: Callable[..., Any]) -> Callable[..., Any]:
    return function if reason() else compiled(function)


@cache
def compiled(function: Callable[..., Any], backend: str = "inductor") -> Callable[..., Any]:
    """One kernel for any number of rows of any width."""
    run = torch.compile(function, dynamic=True, backend=backend)

    def bare(x: Any) -> Any:
        # The compiler looks at gradients of what it is given, and these functions have none.
        return x.detach() if isinstance(x, Tensor) else x

    def outside_autograd(*arguments: Any, **more: Any) -> Any:
        return run(*map(bare, arguments), **{name: bare(x) for name, x in more.items()})

    return outside_autograd


@cache
def reason() -> str:
    """Why the rows are not compiled; empty where they are."""
    if os.environ.get(SWITCH) == "plain":
        return f"{SWITCH}=plain"
    x = torch.linspace(-1, 1, 4096, device="cuda").view(64, 64)
    try:
        found = compiled(plain.gate)(x, x, plain.SILU)
    except (RuntimeError, ImportError, OSError, subprocess.SubprocessError) as error:
        # Triton is missing, or the C compiler that it needs.
        return f"torch.compile failed: {type(error).__name__}"
    return "" if torch.allclose(found, plain.gate(x, x, plain.SILU)) else "torch.compile gave other numbers"
