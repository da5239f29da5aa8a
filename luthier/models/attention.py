"""Attention by document, for training and for generation, registered with transformers under the name `luthier`.

No mask exists. A packed row carries its document bounds in a `Layout`, each document attends to itself; a decoding step
carries the `KeyValues` of its rows. Whatever a model family passes that is not implemented here is refused by name:
swallowing it would be silently wrong.

Shape suffixes
    B  rows (1 when packed)   T  new tokens   L  cached tokens   h  heads   k  key/value heads   d  head size
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.errors import ModelError

NAME = "luthier"
KEYWORD = "luthier_layout"
"""The keyword under which a `Layout` travels through a transformers model to its attention layers."""

# Keywords that families pass and that change nothing here: they repeat what the layout or `scaling` already says.
_HARMLESS = {"position_ids", "cache_position", "use_cache", "output_attentions", "deterministic", "is_causal"}


class KeyValues:
    """Keys and values of several rows while they are being continued: [B, k, capacity, d] for each layer."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows = rows
        self.capacity = capacity
        self.lengths_B = torch.zeros(rows, dtype=torch.long)
        """How many tokens of each row are in the cache."""
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """The storage of one layer, made on first use with the type and sizes of `like` [1 or B, k, T, d]."""
        if index not in self.layers:
            shape = (self.rows, like.shape[1], self.capacity, like.shape[3])
            self.layers[index] = (like.new_zeros(shape), like.new_zeros(shape))
        return self.layers[index]

    def grow(self, capacity: int) -> None:
        """Makes room for longer rows."""
        if capacity <= self.capacity:
            return
        for index, (keys, values) in self.layers.items():
            pad = (0, 0, 0, capacity - self.capacity)
            self.layers[index] = (F.pad(keys, pad), F.pad(values, pad))
        self.capacity = capacity

    def keep(self, rows: list[int]) -> None:
        """Drops every row that is not listed."""
        index = torch.tensor(rows, dtype=torch.long)
        self.layers = {i: (k[index], v[index]) for i, (k, v) in self.layers.items()}
        self.lengths_B = self.lengths_B[index]
        self.rows = len(rows)


@dataclass(frozen=True, slots=True)
class Layout:
    """What the attention layers must know of a forward pass."""

    bounds: tuple[int, ...] = ()
    """Document offsets of a packed row; empty in a decoding step, where every row has one new token."""
    cache: KeyValues | None = None
    rows: tuple[int, ...] = ()
    """Prefill: the cache row that each document of the packed row goes to."""


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
    if layout.cache is not None:
        _store(module, layout, key, value)
    # One split and not a slice for each document: a slice's backward pass fills a whole row with zeros every time.
    lengths = [b - a for a, b in pairwise(layout.bounds)]
    documents = zip(*(torch.split(x, lengths, 2) for x in (query, key, value)), strict=True)
    parts = [_document(q, k, v, causal, scaling, dropout, sliding_window) for q, k, v in documents]
    return torch.cat(parts, 2).transpose(1, 2), None


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


def _band(n: int, window: int, causal: bool, device: torch.device) -> Tensor:
    """Who sees whom under a sliding window, [n, n]. The window counts the token itself (transformers' convention, which
    for models that read both ways passes half the window plus one)."""
    distance = torch.arange(n, device=device)[:, None] - torch.arange(n, device=device)[None, :]
    near = distance.abs() < window
    return near & (distance >= 0) if causal else near


def _store(module: nn.Module, layout: Layout, key: Tensor, value: Tensor) -> None:
    """Puts the keys and values of a packed prefill into the cache, document by document."""
    assert layout.cache is not None
    keys, values = layout.cache.layer(module.layer_idx, key)  # type: ignore[arg-type]
    for row, (a, b) in zip(layout.rows, pairwise(layout.bounds), strict=True):
        keys[row, :, : b - a] = key[0, :, a:b]
        values[row, :, : b - a] = value[0, :, a:b]


def _decode(
    module: nn.Module, layout: Layout, q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None
) -> Tensor:
    """One new token in each row, against that row's cache: [B, 1, h, d]."""
    cache = layout.cache
    assert cache is not None
    assert q.shape[2] == 1
    keys, values = cache.layer(module.layer_idx, k)  # type: ignore[arg-type]
    rows, at = torch.arange(cache.rows), cache.lengths_B
    keys[rows, :, at] = k[:, :, 0]
    values[rows, :, at] = v[:, :, 0]
    longest = int(at.max()) + 1
    place = torch.arange(longest)
    seen = place <= at[:, None]
    if window is not None:
        seen &= place > at[:, None] - window
    out = F.scaled_dot_product_attention(
        q, keys[:, :, :longest], values[:, :, :longest], attn_mask=seen[:, None, None], scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2)


def register() -> None:
    """Makes `attn_implementation="luthier"` known to transformers; doing it twice changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)
