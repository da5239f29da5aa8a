"""Attention by document, for training and for generation, registered with transformers under the name `luthier`.

A packed row carries its segments in a `Layout`: each attends to its ancestors and to itself, so documents never see
each other, and what they begin with alike stands there once. A decoding step carries the `KeyValues` of its rows.
Whatever a model family passes that is not implemented here is refused by name: swallowing it would be silently wrong.

Shape suffixes
    B  rows (1 when packed)   T  new tokens   L  cached tokens   h  heads   k  key/value heads   d  head size
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier import kernels
from luthier.batch import depths
from luthier.errors import ModelError
from luthier.kernels import plain
from luthier.kernels.plain import Drop, Rule, Segments

NAME = "luthier"
KEYWORD = "luthier_layout"
"""The keyword under which a `Layout` travels through a transformers model to its attention layers."""

CHUNK = 256
"""Tokens by which a cache grows."""

# Keywords that families pass and that change nothing here: they repeat what the layout or `scaling` already says.
_HARMLESS = {"position_ids", "cache_position", "use_cache", "output_attentions", "deterministic", "is_causal"}


@dataclass
class KeyValues:
    """Keys and values of sequences while they are being continued, [places, k, capacity, d] for each layer. A sequence
    keeps its place for as long as it lives, so that the others need not move when it ends."""

    places: int
    capacity: int
    """Tokens that each place has room for."""
    slots_B: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """The place of each row of a decoding step, in ascending order."""
    lengths_B: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """How many tokens of each row are in the cache."""
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def layer(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The storage of one layer, made on first use with the type and sizes of `like` [k, T, d]."""
        if index not in self.layers:
            shape = (self.places, like.shape[0], self.capacity, like.shape[2])
            self.layers[index] = (like.new_zeros(shape), like.new_zeros(shape))
        return self.layers[index]

    def reserve(self, tokens: int) -> None:
        """Makes room for longer sequences, in steps of 256 tokens: each step copies what is there."""
        if tokens <= self.capacity:
            return
        more = -(-(tokens - self.capacity) // CHUNK) * CHUNK
        for index, (keys, values) in self.layers.items():
            self.layers[index] = (F.pad(keys, (0, 0, 0, more)), F.pad(values, (0, 0, 0, more)))
        self.capacity += more

    def put(self, index: int, layout: Layout, key: Tensor, value: Tensor) -> None:
        """Puts keys and values [k, T, d] of a packed prefill into one layer, a sequence segment by segment."""
        keys, values = self.layer(index, key)
        for slot, leaf in zip(layout.slots, layout.leaves or range(len(layout.slots)), strict=True):
            at = 0
            for segment in _chain(layout.parents, leaf):
                a, b = layout.bounds[segment], layout.bounds[segment + 1]
                keys[slot, :, at : at + b - a] = key[:, a:b]
                values[slot, :, at : at + b - a] = value[:, a:b]
                at += b - a

    def copy(self, source: int, targets: list[int], tokens: int) -> None:
        """Gives other places what one place begins with."""
        for pair in self.layers.values():
            for x in pair:
                # All that it has room for where virtual tokens stand in front and are not counted.
                end = tokens + x.shape[2] - self.capacity
                for target in targets:
                    x[target, :, :end] = x[source, :, :end]


@dataclass(frozen=True, slots=True)
class Layout:
    """What the attention layers must know of a forward pass."""

    bounds: tuple[int, ...] = ()
    """Segment offsets of a packed row; empty in a decoding step, where every row has one new token."""
    parents: tuple[int, ...] = ()
    """For each segment the one before it that it continues, or -1. Empty: each segment is a document."""
    cache: KeyValues | None = None
    slots: tuple[int, ...] = ()
    """Prefill: the place in the cache of each document of the packed row."""
    leaves: tuple[int, ...] = ()
    """Prefill: the segment that each of them ends in. Empty: each segment is a document."""


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """The attention function that transformers calls: query [B, h, T, d], key and value [B, k, T, d] -> [B, T, h,
    d]."""
    layout: Layout | None = rest.pop(KEYWORD, None)
    unknown = [name for name, given in rest.items() if given is not None and name not in _HARMLESS]
    if unknown:
        raise ModelError(
            "this model's attention uses something that Luthier does not implement",
            where=type(module).__name__,
            got=", ".join(sorted(unknown)),
            do="use a model of a family that Luthier knows: Llama, Qwen2, Gemma 3, GPT-2, BERT, ModernBERT",
        )
    if layout is None or attention_mask is not None:
        raise ModelError(
            "a model reached its attention without a layout, or with a mask",
            where=type(module).__name__,
            do="call it through luthier.models.policy",
        )
    causal = bool(getattr(module, "is_causal", True))
    if not layout.bounds:
        return _decode(module, layout, query, key, value, scaling, sliding_window), None
    if query.shape[0] != 1:
        raise ModelError("packed documents stand in one row", where=type(module).__name__, got=f"{query.shape[0]} rows")
    assert causal or not layout.parents, "what reads both ways sees its own beginning differently"
    if layout.cache is not None:
        layout.cache.put(module.layer_idx, layout, key[0], value[0])  # type: ignore[arg-type]
    kernel = kernels.of(query)
    if kernel is not plain and kernel.supports(query.shape[3]):
        scale = query.shape[3] ** -0.5 if scaling is None else scaling
        rule = Rule(scale, causal, sliding_window or 0, fresh_drop(dropout))
        q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
        return rotary_attention(q, k, v, None, segments(layout.bounds, layout.parents), rule)[None], None
    # One split and not a slice for each document: a slice's backward pass fills a whole row with zeros every time.
    lengths = [b - a for a, b in pairwise(layout.bounds)]
    queries, keys, values = (torch.split(x, lengths, 2) for x in (query, key, value))
    parts = []
    for s, q in enumerate(queries):
        chain = _chain(layout.parents, s)
        if len(chain) == 1:
            parts.append(_document(q, keys[s], values[s], causal, scaling, dropout, sliding_window))
        else:
            k, v = (torch.cat([x[at] for at in chain], 2) for x in (keys, values))
            parts.append(_branch(q, k, v, scaling, dropout, sliding_window))
    return torch.cat(parts, 2).transpose(1, 2), None


def fresh_drop(p: float) -> Drop:
    """Dropout with a seed from torch's generator, which the loop seeds for each microbatch."""
    return Drop(p, int(torch.randint(2**62, (1,)))) if p else Drop()


def rotary_attention(
    q: Tensor, k: Tensor, v: Tensor, angles: tuple[Tensor, Tensor] | None, segments: Segments, rule: Rule
) -> Tensor:
    """Attention by segment; `angles` (cosines and sines [T, r / 2]) rotates q and k first, in place. q [T, h, d], k and
    v [T, k, d] -> [T, h, d]."""
    cosine, sine = angles if angles is not None else (None, None)
    return _Attention.apply(q, k, v, cosine, sine, segments, rule)  # type: ignore[no-any-return, no-untyped-call]


@lru_cache(maxsize=64)
def segments(bounds: tuple[int, ...], parents: tuple[int, ...] = ()) -> Segments:
    """A packed row's forest as the kernels read it."""
    roots = parents or (-1,) * (len(bounds) - 1)
    starts = depths(bounds, parents)
    return Segments(torch.tensor(bounds), torch.tensor(roots), torch.tensor(starts))


def _chain(parents: tuple[int, ...], segment: int) -> list[int]:
    """A segment behind all of its ancestors, from the root on."""
    found = [segment]
    while parents and parents[found[-1]] >= 0:
        found.append(parents[found[-1]])
    return found[::-1]


def _document(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scaling: float | None, dropout: float, window: int | None
) -> Tensor:
    """One document attending to itself: [1, h, n, d]."""
    n = q.shape[2]
    mask = None
    if window is not None and n > window:
        mask = _band(n, window, causal, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal and mask is None, scale=scaling, dropout_p=dropout, enable_gqa=True
    )


def _branch(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, dropout: float, window: int | None) -> Tensor:
    """A segment [1, h, n, d] attending to its ancestors and itself, keys and values [1, k, m + n, d]: [1, h, n, d]."""
    if window is not None:
        # The first query sees this far back; what lies before is seen by none.
        first = max(0, k.shape[2] - q.shape[2] + 1 - window)
        k, v = k[:, :, first:], v[:, :, first:]
    distance = torch.arange(k.shape[2] - q.shape[2], k.shape[2], device=q.device)[:, None]
    distance = distance - torch.arange(k.shape[2], device=q.device)[None, :]
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    # A mask, because with more keys than queries torch's is_causal aligns its triangle with the first key.
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling, dropout_p=dropout, enable_gqa=True)


def _band(n: int, window: int, causal: bool, device: torch.device) -> Tensor:
    """Who sees whom under a sliding window, [n, n]. The window counts the token itself (transformers' convention, which
    for models that read both ways passes half the window plus one)."""
    distance = torch.arange(n, device=device)[:, None] - torch.arange(n, device=device)[None, :]
    near = distance.abs() < window
    return near & (distance >= 0) if causal else near


def _decode(
    module: nn.Module, layout: Layout, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """One new token in each row, against that row's cache: [B, 1, h, d]."""
    cache = layout.cache
    assert cache is not None
    assert q.shape[2] == 1
    keys, values = cache.layers[module.layer_idx]  # type: ignore[index]
    slots, at = cache.slots_B, cache.lengths_B
    keys[slots, :, at] = k[:, :, 0]
    values[slots, :, at] = v[:, :, 0]
    longest = int(at.max()) + 1
    # Ascending places: where the last row's is the last number, none lies between, and nothing has to be copied.
    rows: slice | Tensor = slice(len(slots)) if int(slots[-1]) == len(slots) - 1 else slots
    place = torch.arange(longest)
    seen = place <= at[:, None]
    if window is not None:
        seen &= place > at[:, None] - window
    k, v, mask = keys[rows, :, :longest], values[rows, :, :longest], seen[:, None, None].to(q.device)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True)
    return out.transpose(1, 2)


def register() -> None:
    """Makes `attn_implementation="luthier"` known to transformers; doing it twice changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cosine: Tensor | None,
        sine: Tensor | None,
        segments: Segments,
        rule: Rule,
    ) -> Tensor:
        kernel = kernels.of(q)
        if cosine is not None:
            for x in (q, k):
                kernel.rotate_(x.view(len(x), -1), cosine, sine, x.shape[2])
        out, lse = kernel.attention(q, k, v, segments, rule)
        ctx.save_for_backward(q, k, v, out, lse, cosine, sine)
        ctx.segments, ctx.rule = segments, rule
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, cosine, sine = ctx.saved_tensors
        kernel = kernels.of(q)
        g = grads[0].contiguous()
        dq, dk, dv = kernel.attention_backward(q, k, v, out, lse, g, ctx.segments, ctx.rule)
        if cosine is not None:
            for x in (dq, dk):
                kernel.rotate_(x.view(len(x), -1), cosine, sine, x.shape[2], back=True)
        return dq, dk, dv, None, None, None, None
