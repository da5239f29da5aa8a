"""Attention over the branches of a packed row in two forms: through FlashAttention's products for sequences of any
length, and in padded blocks of plain products, which take every type, head size and dropout.

Both work on any device that has the products they are given; `kernels.cuda` chooses between them on a GPU.

Shape suffixes
    T  tokens   K  keys of all branches   h  query heads   k  key/value heads   d  head size
    G  pieces of a block   N  queries of a piece   M  keys of a piece
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from luthier.batch import wide
from luthier.kernels.branches import Block, Branches
from luthier.kernels.plain import Rule


class Flash(NamedTuple):
    """FlashAttention's products (Dao, arXiv 2307.08691), with the signatures of torch's `aten::_flash_attention_*`."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]


def flash(q: Tensor, k: Tensor, v: Tensor, branches: Branches, rule: Rule, products: Flash) -> tuple[Tensor, Tensor]:
    """As `plain.attention`, without dropout."""
    k, v = (_laid(x, branches) for x in (k, v))
    out, lse, *_ = products.forward(q, k, v, *_sizes(branches), 0.0, _whole(rule), False, **_window(rule))
    return out, lse


def flash_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    branches: Branches,
    rule: Rule,
    products: Flash,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain.attention_backward`, without dropout. What several branches share gets the sum of their gradients, in
    float32."""
    laid = [_laid(x, branches) for x in (k, v)]
    # The state of a random generator, which dropout alone would read.
    state, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
    dq, *d = products.backward(
        grad, q, *laid, out, lse, *_sizes(branches), 0.0, _whole(rule), state, unused, **_window(rule)
    )
    if branches.keys is None:
        return dq, d[0], d[1]
    dk, dv = (wide(torch.zeros_like(x)).index_add_(0, branches.keys, wide(y)) for x, y in zip((k, v), d, strict=True))
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _laid(x: Tensor, branches: Branches) -> Tensor:
    return x if branches.keys is None else x.index_select(0, branches.keys)


def _sizes(branches: Branches) -> tuple[Tensor, Tensor, int, int]:
    return branches.query_ends, branches.key_ends, branches.longest_query, branches.longest_key


def _whole(rule: Rule) -> bool:
    return rule.causal and not rule.window


def _window(rule: Rule) -> dict[str, Any]:
    """Flash counts the tokens beside the token itself; -1 sees all."""
    left = rule.window - 1 if rule.window else -1
    return {"scale": rule.scale, "window_size_left": left, "window_size_right": 0 if rule.causal else left}


def padded(q: Tensor, k: Tensor, v: Tensor, blocks: tuple[Block, ...], rule: Rule) -> tuple[Tensor, Tensor]:
    """As `plain.attention`."""
    out, lse = torch.empty_like(q), wide(q).new_empty(q.shape[1], len(q))
    for block in blocks:
        weights, whole = _weights(q, k, block, rule)
        kept = (weights * _kept(rule, q, block, k.shape[1])).to(weights.dtype)
        own = torch.einsum("gkrnm,gmkd->gnkrd", kept, wide(v[block.keys])).flatten(0, 1).flatten(1, 2)
        out[block.rows] = own[block.real].to(q.dtype)
        lse[:, block.rows] = whole.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)[:, block.real]
    return out, lse


def padded_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad: Tensor,
    blocks: tuple[Block, ...],
    rule: Rule,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain.attention_backward`."""
    groups, (dq, dk, dv) = k.shape[1], (wide(torch.zeros_like(x)) for x in (q, k, v))
    dots = (wide(out) * wide(grad)).sum(-1)
    for block in blocks:
        weights, _ = _weights(q, k, block, rule)
        kept = _kept(rule, q, block, k.shape[1])
        # Queries that only fill up get no gradient and give none.
        mine = torch.zeros(block.queries.numel(), dtype=wide(q).dtype, device=q.device).index_fill_(0, block.real, 1.0)
        mine = mine.view(*block.queries.shape, 1, 1, 1)
        g = _by_group(grad, block.queries, groups) * mine
        slopes = (torch.einsum("gnkrd,gmkd->gkrnm", g, wide(v[block.keys])) * kept).to(weights.dtype)
        own = _by_group(dots[..., None], block.queries, groups).permute(0, 2, 3, 1, 4)
        scores = weights * (slopes - own) * rule.scale
        by_query = torch.einsum("gkrnm,gmkd->gnkrd", scores, wide(k[block.keys])).flatten(0, 1).flatten(1, 2)
        dq[block.rows] = by_query[block.real]
        rows = block.keys.flatten()
        asked = _by_group(q, block.queries, groups) * mine
        dk.index_add_(0, rows, torch.einsum("gkrnm,gnkrd->gmkd", scores, asked).flatten(0, 1))
        dv.index_add_(0, rows, torch.einsum("gkrnm,gnkrd->gmkd", (weights * kept).to(g.dtype), g).flatten(0, 1))
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _by_group(x: Tensor, rows: Tensor, groups: int) -> Tensor:
    """Rows [G, N] of x [T, h, d], query heads beside the key head that they share: [G, N, k, h / k, d]."""
    return wide(x[rows]).view(*rows.shape, groups, -1, x.shape[-1])


def _weights(q: Tensor, k: Tensor, block: Block, rule: Rule) -> tuple[Tensor, Tensor]:
    """(weights [G, k, h / k, N, M], log-sum-exps [G, k, h / k, N]) before dropout."""
    scores = torch.einsum("gnkrd,gmkd->gkrnm", _by_group(q, block.queries, k.shape[1]), wide(k[block.keys]))
    place = torch.arange(block.keys.shape[1], device=q.device)
    distance = block.places[:, :, None] - place
    seen = (place < block.counts[:, None])[:, None].expand_as(distance)
    if rule.causal:
        seen = seen & (distance >= 0)
    if rule.window:
        seen = seen & (distance.abs() < rule.window)
    scores = (scores * rule.scale).masked_fill(~seen[:, None, None], -torch.inf)
    whole = scores.logsumexp(-1)
    # What only fills up stands at place 0 and sees the first key, so nothing is divided by zero.
    return (scores - whole[..., None]).exp(), whole


def _kept(rule: Rule, q: Tensor, block: Block, groups: int) -> Tensor | float:
    """What dropout makes of the weights, counted by (head, query, key) as `plain` counts."""
    if not rule.drop.p:
        return 1.0
    tokens, heads = q.shape[:2]
    head = torch.arange(heads, device=q.device)[:, None, None]
    counter = (head * tokens + block.queries[:, None, :, None]) * tokens + block.keys[:, None, None]
    return rule.drop.factors(counter).view(len(counter), groups, -1, *counter.shape[2:])
