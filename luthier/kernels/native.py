"""The inner loops in C++ (`native/*.cpp`): see `plain` for what each computes. Tensors lie in main memory; the caller
gives rows that are contiguous."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from luthier.kernels import plain
from luthier.kernels.build import library
from luthier.kernels.plain import NOTHING, Centred, Drop, Normed, Rule, Segments

_NAMES = {torch.bfloat16: "bf16", torch.float32: "f32", torch.float64: "f64"}
_LANES, _BLOCK = 16, 32
_DEEP = 8192
"""Width up to which rows of a block lie in the cache."""
_FEW = 64
"""Rows up to which a product is bound by reading the weights."""


class _Shape(ctypes.Structure):
    """`Shape` of attention.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "heads", "kv_heads", "size")),
        *((name, ctypes.c_int64) for name in ("q_stride", "k_stride", "v_stride", "o_stride", "segments")),
        *((name, ctypes.c_void_p) for name in ("bounds", "parents", "starts")),
        ("scale", ctypes.c_double),
        ("window", ctypes.c_int64),
        ("causal", ctypes.c_int),
        ("dropout", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("threads", ctypes.c_int),
    )


def _call(name: str, like: Tensor, *arguments: Tensor | ctypes.Structure | int | float | None) -> None:
    """Calls `name` for the type of `like`; tensors go as addresses, numbers as 64-bit ones (an `int` of C is read from
    the low half)."""
    function = getattr(library(), f"{name}_{_NAMES[like.dtype]}")
    function(*[_argument(a) for a in arguments])


def _argument(a: Tensor | ctypes.Structure | int | float | None):  # type: ignore[no-untyped-def]
    if isinstance(a, Tensor):
        return ctypes.c_void_p(a.data_ptr())
    if isinstance(a, float):
        return ctypes.c_double(a)
    if isinstance(a, int):
        return ctypes.c_int64(a)
    return ctypes.byref(a) if isinstance(a, ctypes.Structure) else ctypes.c_void_p(None)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rms_norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None) -> Normed:
    rows, n = x.shape
    total = x if delta is None else torch.empty_like(x)
    out, inverse = torch.empty_like(x), x.new_empty(rows, dtype=_wide(x))
    _call("rms_norm", x, x, delta, weight, total, out, inverse, rows, n, float(eps), torch.get_num_threads())
    return Normed(total, out, inverse)


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, rest: Tensor | None = None, *, weight_grad: bool = False
) -> tuple[Tensor, Tensor | None]:
    rows, n = x.shape
    dx, dw = torch.empty_like(x), x.new_empty(n, dtype=_wide(x)) if weight_grad else None
    _call("rms_norm_backward", x, grad, x, weight, inverse, rest, dx, dw, rows, n, torch.get_num_threads())
    return dx, dw


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, delta: Tensor | None = None, drop: Drop = NOTHING
) -> Centred:
    rows, n = x.shape
    total, out = x if delta is None else torch.empty_like(x), torch.empty_like(x)
    mean, inverse = (x.new_empty(rows, dtype=_wide(x)) for _ in range(2))
    sizes = (rows, n, float(eps), float(drop.p), drop.seed, torch.get_num_threads())
    _call("layer_norm", x, x, delta, weight, bias, total, out, mean, inverse, *sizes)
    return Centred(total, out, mean, inverse)


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
    rows, n = total.shape
    dx = torch.empty_like(total)
    through = torch.empty_like(total) if drop is not None and drop.p else None
    dw, db = (total.new_empty(n, dtype=_wide(total)) if weight_grad else None for _ in range(2))
    p, seed = (float(drop.p), drop.seed) if drop is not None else (0.0, 0)
    sizes = (rows, n, p, seed, torch.get_num_threads())
    _call("layer_norm_backward", grad, grad, total, weight, mean, inverse, rest, dx, through, dw, db, *sizes)
    return dx, dx if through is None else through, dw, db


def rotate_(x: Tensor, cosine: Tensor, sine: Tensor, size: int, *, back: bool = False) -> Tensor:
    tokens, width = x.shape
    half, sign = cosine.shape[1], -1 if back else 1
    _call("rotate", x, x, cosine, sine, tokens, width // size, size, half, width, sign, torch.get_num_threads())
    return x


def gate(z: Tensor, up: Tensor | None, kind: int) -> Tensor:
    out = torch.empty_like(z)
    _call("gate", z, z, up, out, z.numel(), kind, torch.get_num_threads())
    return out


def gate_backward(
    grad: Tensor, z: Tensor, up: Tensor | None, kind: int, *, product: bool = True
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    out = torch.empty_like(z) if product else None
    dz, dup = torch.empty_like(z), None if up is None else torch.empty_like(z)
    _call("gate_backward", z, grad, z, up, out, dz, dup, z.numel(), kind, torch.get_num_threads())
    return out, dz, dup


def logprobs_(z: Tensor, target: Tensor, *, bias: Tensor | None, softcap: float | None, keep: bool) -> Tensor:
    rows, n = z.shape
    out = z.new_empty(rows, dtype=_wide(z))
    bias = None if bias is None else bias.to(z.dtype)
    cap = float(softcap or 0)
    _call("head", z, z, bias, target, out, None, rows, n, cap, int(keep), torch.get_num_threads())
    return out


def _in_blocks(*matrices: Tensor) -> bool:
    """Whether products of these are our own: bf16, in whole blocks, as they lie in memory, where the processor has
    matrix tiles or dot products of pairs. Elsewhere torch's are as fast."""
    return _products() and all(
        m.dtype == torch.bfloat16 and m.is_contiguous() and m.shape[1] % _BLOCK == 0 and m.shape[1] <= _DEEP and len(m)
        for m in matrices
    )


@cache
def _products() -> bool:
    return bool(library().products_given())  # type: ignore[union-attr]


def adapted(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor | None, B: Tensor | None, scale: float
) -> tuple[Tensor, Tensor | None]:
    """As `plain`, the update being part of the sums that are rounded once."""
    if not _in_blocks(x, weight) or len(weight) % _BLOCK:
        return plain.adapted(x, weight, bias, A, B, scale)
    y = x.new_empty(len(x), len(weight))
    if A is None or B is None:
        _product(x, weight, None, None, bias, None, y, turned=True)
        return y, None
    low = x.new_empty(len(x), len(A))
    _product(x, weight, A.to(x.dtype), (B * scale).to(x.dtype), bias, low, y, turned=True)
    return y, low


def adapted_backward(
    grad: Tensor,
    weight: Tensor | None,
    A: Tensor | None,
    B: Tensor | None,
    scale: float,
    dx: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    if weight is None or not _in_blocks(grad, weight):
        return plain.adapted_backward(grad, weight, A, B, scale, dx)
    add = dx is not None
    out = grad.new_empty(len(grad), weight.shape[1]) if dx is None else dx
    low = None if A is None or B is None else grad.new_empty(len(grad), len(A))
    first, second = (None, None) if A is None or B is None else ((B * scale).to(grad.dtype), A.to(grad.dtype))
    _product(grad, weight, first, second, None, low, out, turned=False, add=add)
    return out, low


def _product(
    x: Tensor,
    weight: Tensor,
    first: Tensor | None,
    second: Tensor | None,
    bias: Tensor | None,
    low: Tensor | None,
    out: Tensor,
    *,
    turned: bool,
    add: bool = False,
) -> None:
    """out (+)= x W + (x first) second + bias, and low = x first; `turned` has matrices as torch's linear layers do."""
    first, second, bias = (None if m is None else m.to(x.dtype).contiguous() for m in (first, second, bias))
    rank = 0 if low is None else low.shape[1]
    sizes = (*x.shape, out.shape[1], rank, int(turned), int(add), torch.get_num_threads())
    _call("product", x, x, weight, first, second, bias, low, out, *sizes)


def gram(small: Tensor, big: Tensor) -> Tensor:
    if not _in_blocks(big) or small.dtype != big.dtype:
        return plain.gram(small, big)
    (rows, rank), n = small.shape, big.shape[1]
    out = torch.empty(rank, n)
    _call("gram", big, small.contiguous(), big, out, rank, n, rows, torch.get_num_threads())
    return out


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """As `plain`, and for few rows with the weights as they lie in memory: 0.97 to 2.0 times as fast as torch in bf16
    and 0.94 to 4.2 times in float32, at 1 to 64 rows and widths from 576 to 49,152 (two cores of an AMD EPYC, November
    2026)."""
    rows, n = x.shape
    out = len(weight)
    if rows > _FEW or n % _LANES or out < _LANES or weight.dtype != x.dtype or not weight.is_contiguous():
        return plain.linear(x, weight)
    y = x.new_empty(rows, out, dtype=_wide(x))
    _call("linear", x, x.contiguous(), weight, y, rows, n, out, torch.get_num_threads())
    return y


def draw(z: Tensor, u: Tensor | None = None) -> Tensor:
    rows, n = z.shape
    out = torch.empty(rows, dtype=torch.long)
    _call("draw", z, z, u, out, rows, n, torch.get_num_threads())
    return out


def supports(size: int) -> bool:
    """Whether heads of this size can be attended to: whole vectors only."""
    return size % _LANES == 0


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, rule: Rule) -> tuple[Tensor, Tensor]:
    out = torch.empty(q.shape, dtype=q.dtype)
    lse = torch.empty(q.shape[1], len(q), dtype=_wide(q))
    _call("attention", q, _shape(q, k, v, out, segments, rule), q, k, v, out, lse)
    return out, lse


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
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v))
    partial = torch.empty(2, q.shape[1], len(q), q.shape[2], dtype=_wide(q))
    shape = _shape(q, k, v, out, segments, rule)
    _call("attention_backward", q, shape, q, k, v, out, lse, grad, dq, dk, dv, partial)
    return dq, dk, dv


def _shape(q: Tensor, k: Tensor, v: Tensor, out: Tensor, segments: Segments, rule: Rule) -> _Shape:
    tokens, heads, size = q.shape
    return _Shape(
        tokens=tokens,
        heads=heads,
        kv_heads=k.shape[1],
        size=size,
        q_stride=q.stride(0),
        k_stride=k.stride(0),
        v_stride=v.stride(0),
        o_stride=out.stride(0),
        segments=len(segments.parents),
        bounds=segments.bounds.data_ptr(),
        parents=segments.parents.data_ptr(),
        starts=segments.starts.data_ptr(),
        scale=rule.scale,
        window=rule.window,
        causal=int(rule.causal),
        dropout=rule.drop.p,
        seed=rule.drop.seed,
        threads=torch.get_num_threads(),
    )
