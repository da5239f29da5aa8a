"""The inner loops with torch's operations: the definition that `native` is tested against, and what runs on a GPU and
where nothing could be compiled.

Shape suffixes
    T  tokens   n  width of a row   h  query heads   k  key/value heads   d  head size   S  segments   V  vocabulary
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.batch import wide

SILU, GELU_TANH, GELU = 0, 1, 2
"""Activations of the inner layer."""


class Normed(NamedTuple):
    total: Tensor
    """x, or x + delta as it was rounded, [T, n]."""
    out: Tensor
    inverse: Tensor
    """1 / sqrt(mean(x^2) + eps), [T], float32 or wider."""


class Centred(NamedTuple):
    total: Tensor
    """x, or x + dropout(delta) as it was rounded, [T, n]."""
    out: Tensor
    mean: Tensor
    inverse: Tensor
    """1 / sqrt(variance + eps), [T], float32 or wider."""


class Drop(NamedTuple):
    """Dropout by a counter: what happens to number i depends on the seed and i only, so nothing is kept for the
    backward pass."""

    p: float = 0.0
    seed: int = 0

    def factors(self, counter: Tensor) -> Tensor:
        """1 / (1 - p) where a number is kept and 0 where it is dropped, float64 (a 64-bit mix, Steele et al., "Fast
        splittable pseudorandom number generators", 2014, section 4.2; arithmetic that wraps around)."""
        z = self.seed + (counter + 1) * _signed(0x9E3779B97F4A7C15)
        z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
        z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
        return (_shift(z ^ _shift(z, 31), 11) >= int(self.p * 2**53)).double() / (1 - self.p)


NOTHING = Drop()


class Segments(NamedTuple):
    """The forest that a packed row is: see `luthier.batch.Batch`."""

    bounds: Tensor
    """int64 [S + 1]."""
    parents: Tensor
    """int64 [S], -1 for a root."""
    starts: Tensor
    """int64 [S]: the position of each segment's first token."""


class Rule(NamedTuple):
    """Who attends to whom inside a tree, and how strongly."""

    scale: float
    causal: bool = True
    window: int = 0
    """Tokens within reach, the token itself counted; 0 sees all."""
    drop: Drop = NOTHING


def rms_norm(x: Tensor, weight: Tensor, eps: float, delta: Tensor | None = None) -> Normed:
    """Root-mean-square norm (Zhang and Sennrich, arXiv 1910.07467, equation 4) of x, or of the residual sum x +
    delta."""
    total = x if delta is None else x + delta
    values = wide(total)
    inverse = torch.rsqrt(values.square().mean(-1) + eps)
    return Normed(total, (values * inverse[:, None] * wide(weight)).to(x.dtype), inverse)


def rms_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, rest: Tensor | None = None, *, weight_grad: bool = False
) -> tuple[Tensor, Tensor | None]:
    """(dx + rest, dw or None); dw in float32 or wider."""
    g, a, s = wide(grad), wide(x), inverse[:, None]
    inner = g * wide(weight)
    dx = (inner - a * s.square() * (inner * a).mean(-1, keepdim=True)) * s
    if rest is not None:
        dx = dx + wide(rest)
    return dx.to(x.dtype), (g * a * s).sum(0) if weight_grad else None


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, delta: Tensor | None = None, drop: Drop = NOTHING
) -> Centred:
    """Layer norm (Ba et al., arXiv 1607.06450, equation 4) of x, or of the residual sum x + dropout(delta)."""
    total = x
    if delta is not None:
        total = (wide(x) + _through(wide(delta), drop)).to(x.dtype)
    values = wide(total)
    mean = values.mean(-1)
    inverse = torch.rsqrt(values.var(-1, correction=0) + eps)
    out = (values - mean[:, None]) * inverse[:, None] * wide(weight) + wide(bias)
    return Centred(total, out.to(x.dtype), mean, inverse)


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
    """(dx + rest, d delta, dw or None, db or None); without `drop` the second is the first."""
    g, h, s = wide(grad), (wide(total) - mean[:, None]) * inverse[:, None], inverse[:, None]
    inner = g * wide(weight)
    dx = (inner - inner.mean(-1, keepdim=True) - h * (inner * h).mean(-1, keepdim=True)) * s
    if rest is not None:
        dx = dx + wide(rest)
    rounded = dx.to(total.dtype)
    through = rounded if drop is None else _through(dx, drop).to(total.dtype)
    return rounded, through, (g * h).sum(0) if weight_grad else None, g.sum(0) if weight_grad else None


def _through(values: Tensor, drop: Drop) -> Tensor:
    if not drop.p:
        return values
    counter = torch.arange(values.numel(), device=values.device).view(values.shape)
    return values * drop.factors(counter).to(values.dtype)


def rotate_(x: Tensor, cosine: Tensor, sine: Tensor, size: int, *, back: bool = False) -> Tensor:
    """Rotary positions (Su et al., arXiv 2104.09864, equation 34; halves of a head as pairs), in place.

    Args:
        x: [T, heads * size]; cosine, sine: [T, r / 2], the first r of each head's `size` numbers are rotated.
        back: turns back, which is the gradient.
    """
    half = cosine.shape[1]
    heads = x.view(len(x), -1, size)
    a, b = wide(heads[..., :half]), wide(heads[..., half : 2 * half])
    c, s = cosine[:, None], (-sine if back else sine)[:, None]
    first, second = a * c - b * s, b * c + a * s
    heads[..., :half] = first.to(x.dtype)
    heads[..., half : 2 * half] = second.to(x.dtype)
    return x


def gate(z: Tensor, up: Tensor | None, kind: int) -> Tensor:
    """f(z) up (Shazeer, arXiv 2002.05202, equation 6), or f(z)."""
    value = _activation(wide(z), kind)
    return (value if up is None else value * wide(up)).to(z.dtype)


def gate_backward(
    grad: Tensor, z: Tensor, up: Tensor | None, kind: int, *, product: bool = True
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """(f(z) up where it is asked for, dz, dup)."""
    g, a = wide(grad), wide(z)
    u = torch.ones_like(a) if up is None else wide(up)
    value = _activation(a, kind)
    if kind == SILU:
        s = torch.sigmoid(a)
        slope = s + a * s * (1 - s)
    elif kind == GELU_TANH:
        k, c = 0.7978845608028654, 0.044715
        s = torch.sigmoid(2 * k * (a + c * a**3))
        slope = s + a * s * (1 - s) * 2 * k * (1 + 3 * c * a.square())
    else:
        slope = (1 + torch.erf(a * 0.5**0.5)) / 2 + a * (-a.square() / 2).exp() * 0.3989422804014327
    to = z.dtype
    dup = None if up is None else (g * value).to(to)
    return (value * u).to(to) if product else None, (g * u * slope).to(to), dup


def _activation(z: Tensor, kind: int) -> Tensor:
    return F.silu(z) if kind == SILU else F.gelu(z, approximate="tanh" if kind == GELU_TANH else "none")


def logprobs_(z: Tensor, target: Tensor, *, bias: Tensor | None, softcap: float | None, keep: bool) -> Tensor:
    """log softmax(cap(z + b))[target], [T] in float32 or wider, cap(z) = c tanh(z / c) (Gemma 2, arXiv 2408.00118,
    section 2). With `keep`, z [T, V] becomes d log p / d z."""
    values = wide(z) if bias is None else wide(z) + wide(bias)
    if softcap is not None:
        values = softcap * torch.tanh(values / softcap)
    whole = values.logsumexp(1, keepdim=True)
    out = (values.gather(1, target[:, None]) - whole)[:, 0]
    if keep:
        slope = None if softcap is None else 1 - (values / softcap).square()
        d = (values - whole).exp_().neg_().scatter_add_(1, target[:, None], torch.ones_like(whole))
        z.copy_(d if slope is None else d.mul_(slope))
    return out


def adapted(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor | None, B: Tensor | None, scale: float
) -> tuple[Tensor, Tensor | None]:
    """A linear layer with a low-rank update (Hu et al., arXiv 2106.09685, section 4.1).

    Args:
        x: [T, in]; weight: [out, in] in the type of x; A: [r, in] and B: [out, r] in any type, or None.

    Returns:
        x W^T + scale (x A^T) B^T + bias, [T, out], and x A^T, [T, r].
    """
    if A is None or B is None:
        return _affine(x, weight, bias), None
    low = x @ A.to(x.dtype).t()
    if _in_one_product(x):
        both = torch.cat((weight, (B * scale).to(x.dtype)), 1)
        return _affine(torch.cat((x, low), 1), both, bias), low
    return _affine(x, weight, bias).addmm_(low, B.to(x.dtype).t(), alpha=scale), low


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x @ weight.t() if bias is None else torch.addmm(bias.to(x.dtype), x, weight.t())


def _in_one_product(x: Tensor) -> bool:
    """Whether an update is summed with its base in one product, so that the sum is rounded once. A small update is lost
    where it is added to an output of 16 bits, but the joined matrices are a copy: 0 to 5 % of the product at 256 rows
    and more (two cores with AVX512-BF16, November 2026), more at few rows and on a GPU."""
    return x.dtype in {torch.bfloat16, torch.float16} and x.device.type == "cpu" and len(x) >= _MANY


_MANY = 64
"""Rows."""


def adapted_backward(
    grad: Tensor,
    weight: Tensor | None,
    A: Tensor | None,
    B: Tensor | None,
    scale: float,
    dx: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradient of x, added to `dx` where there is one, and that of x A^T, [T, r]. Without `weight` the first is
    not wanted."""
    low = None if B is None else (grad @ B.to(grad.dtype)).mul_(scale)
    if weight is None:
        return dx, low
    if low is None or A is None:
        return _added(dx, grad, weight), None
    if _in_one_product(grad):
        return _added(dx, torch.cat((grad, low), 1), torch.cat((weight, A.to(grad.dtype)))), low
    return _added(dx, grad, weight).addmm_(low, A.to(grad.dtype)), low


def _added(dx: Tensor | None, grad: Tensor, weight: Tensor) -> Tensor:
    return grad @ weight if dx is None else dx.addmm_(grad, weight)


def gram(small: Tensor, big: Tensor) -> Tensor:
    """small^T big, [r, n], of few columns [T, r] and many [T, n]: the gradient of A or of B."""
    return small.t() @ big


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T, [T, out] in float32 or wider, for the few rows of a decoding step."""
    return wide(x @ weight.to(x.dtype).t())


def draw(z: Tensor, u: Tensor | None = None) -> Tensor:
    """A column of each row of z [T, V]: the first of its largest numbers, or with u [T] (float64, in [0, 1)) the one in
    which the running sum of softmax(z) passes u. int64 [T]."""
    if u is None:
        return z.argmax(1)
    running = (z - z.amax(1, keepdim=True)).double().exp().cumsum(1)
    places: Tensor = torch.searchsorted(running, (u.to(z.device) * running[:, -1])[:, None], right=True)
    return places[:, 0]


def supports(size: int) -> bool:
    """Whether heads of this size can be attended to."""
    return size > 0


def attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, rule: Rule) -> tuple[Tensor, Tensor]:
    """Softmax attention by segment: q [T, h, d], k and v [T, k, d] -> out [T, h, d] and the log-sum-exp of the scaled
    scores [h, T]."""
    out, lse = torch.empty_like(q), wide(q).new_empty(q.shape[1], len(q))
    for a, b, keys, weights, whole in _weights(q, k, segments, rule):
        out[a:b] = torch.einsum("hqt,thd->qhd", weights, _grouped(v, keys, q.shape[1])).to(q.dtype)
        lse[:, a:b] = whole
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
    """Gradients of q, k and v (Dao, arXiv 2307.08691, algorithm 2, without its blocks)."""
    heads, groups = q.shape[1], k.shape[1]
    dq, dk, dv = (wide(torch.zeros_like(x)) for x in (q, k, v))
    dots = (wide(out) * wide(grad)).sum(-1).t()
    for a, b, keys, weights, _ in _weights(q, k, segments, rule._replace(drop=NOTHING)):
        kept = _kept(rule, heads, len(q), a, b, keys)
        g = wide(grad[a:b])
        slopes = torch.einsum("qhd,thd->hqt", g, _grouped(v, keys, heads)) * kept
        slopes = slopes.to(weights.dtype)
        scores = weights * (slopes - dots[:, a:b, None]) * rule.scale
        dq[a:b] = torch.einsum("hqt,thd->qhd", scores, _grouped(k, keys, heads))
        for total, x, y in ((dk, scores, wide(q[a:b])), (dv, (weights * kept).to(g.dtype), g)):
            by_head = torch.einsum("hqt,qhd->thd", x, y)
            total.index_add_(0, keys, by_head.view(len(keys), groups, heads // groups, -1).sum(2))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _weights(q: Tensor, k: Tensor, segments: Segments, rule: Rule):  # type: ignore[no-untyped-def]
    """For each segment: its rows [a, b), the rows that it may see, the weights [h, b - a, keys] and log-sum-exps."""
    bounds, parents, starts = (x.tolist() for x in segments)
    for i, (a, b) in enumerate(pairwise(bounds)):
        chain, at = [i], parents[i]
        while at >= 0:
            chain.insert(0, at)
            at = parents[at]
        keys = torch.cat([torch.arange(bounds[c], bounds[c + 1], device=q.device) for c in chain])
        places = torch.cat([torch.arange(bounds[c + 1] - bounds[c], device=q.device) + starts[c] for c in chain])
        distance = torch.arange(b - a, device=q.device)[:, None] + starts[i] - places[None, :]
        seen = distance >= 0 if rule.causal else torch.ones_like(distance, dtype=torch.bool)
        if rule.window:
            seen = seen & (distance.abs() < rule.window)
        scores = torch.einsum("qhd,thd->hqt", wide(q[a:b]), _grouped(k, keys, q.shape[1])) * rule.scale
        scores = scores.masked_fill(~seen, -torch.inf)
        whole = scores.logsumexp(-1)
        weights = (scores - whole[..., None]).exp() * _kept(rule, q.shape[1], len(q), a, b, keys)
        yield a, b, keys, weights.to(whole.dtype), whole


def _grouped(x: Tensor, rows: Tensor, heads: int) -> Tensor:
    """Rows of keys or values, repeated for the query heads that share them: [rows, h, d]."""
    return wide(x[rows]).repeat_interleave(heads // x.shape[1], 1)


def _kept(rule: Rule, heads: int, tokens: int, a: int, b: int, keys: Tensor) -> Tensor | float:
    """What dropout makes of the weights [h, b - a, keys], counted by (head, query, key)."""
    if not rule.drop.p:
        return 1.0
    query, head = torch.arange(a, b, device=keys.device), torch.arange(heads, device=keys.device)
    return rule.drop.factors((head[:, None, None] * tokens + query[:, None]) * tokens + keys)


def _signed(x: int) -> int:
    return x - 2**64 if x >= 2**63 else x


def _shift(z: Tensor, bits: int) -> Tensor:
    out: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return out
