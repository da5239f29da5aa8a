"""The forest of a packed row as attention on a GPU reads it: every segment with all of its ancestors, laid end to end.

A segment's queries stand against the keys of its chain, from the root to itself, so the last query belongs to the last
key (FlashAttention aligns its triangle there too). Without shared beginnings a chain is the segment itself and nothing
is copied. Pure arithmetic on a CPU; what is made of it lies on the device that asks.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier.kernels.plain import Segments

NUMBERS = 2**25
"""Scores that are held at once where attention is computed in blocks: 128 MB of float32."""


class Branches(NamedTuple):
    """Sequences of queries and of keys, laid end to end."""

    keys: Tensor | None
    """int64 [K]: the row of each key, chain after chain; None where chain after chain is the row itself."""
    query_ends: Tensor
    """int32 [S + 1]."""
    key_ends: Tensor
    """int32 [S + 1]."""
    longest_query: int
    longest_key: int


class Block(NamedTuple):
    """Pieces of queries with all keys that they may see, padded to the longest of each; G pieces, N queries, M keys."""

    queries: Tensor
    """int64 [G, N], rows; 0 where there is none."""
    keys: Tensor
    """int64 [G, M]."""
    places: Tensor
    """int64 [G, N]: the position of each query in its tree; keys stand at 0 to M - 1."""
    counts: Tensor
    """int64 [G]: how many of M are keys."""
    real: Tensor
    """int64 [R]: which of the G * N are queries."""
    rows: Tensor
    """int64 [R]: their rows."""


def branches(segments: Segments, device: torch.device) -> Branches:
    """What FlashAttention reads."""
    return _branches(*_forest(segments), device)


def blocks(segments: Segments, device: torch.device, *, heads: int, numbers: int = NUMBERS) -> tuple[Block, ...]:
    """The row in blocks of at most `numbers` scores, one query's own apart."""
    return _blocks(*_forest(segments), device, heads, numbers)


def _forest(segments: Segments) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(segments.bounds.tolist()), tuple(segments.parents.tolist())


@lru_cache(maxsize=64)
def _branches(bounds: tuple[int, ...], parents: tuple[int, ...], device: torch.device) -> Branches:
    chains = _chains(bounds, parents)
    own = [b - a for a, b in pairwise(bounds)]
    lengths = [len(chain) for chain in chains]
    q_ends, k_ends = (torch.tensor([0, *accumulate(x)], dtype=torch.int32, device=device) for x in (own, lengths))
    keys = torch.from_numpy(np.concatenate(chains)).to(device) if max(parents) >= 0 else None
    return Branches(keys, q_ends, k_ends, max(own), max(lengths))


@lru_cache(maxsize=16)
def _blocks(
    bounds: tuple[int, ...], parents: tuple[int, ...], device: torch.device, heads: int, numbers: int
) -> tuple[Block, ...]:
    chains = _chains(bounds, parents)
    pieces: list[tuple[int, int, int]] = []
    for s, (a, b) in enumerate(pairwise(bounds)):
        most = max(1, numbers // (heads * len(chains[s])))
        pieces += [(s, at, min(at + most, b)) for at in range(a, b, most)]
    # Neighbours in this order are alike, so little is padded.
    pieces.sort(key=lambda piece: (len(chains[piece[0]]), piece[2] - piece[1]), reverse=True)
    groups: list[list[tuple[int, int, int]]] = []
    for s, a, b in pieces:
        if groups:
            first, _, _ = groups[-1][0]
            tall = max(b - a, *(end - start for _, start, end in groups[-1]))
            if (len(groups[-1]) + 1) * tall * len(chains[first]) * heads <= numbers:
                groups[-1].append((s, a, b))
                continue
        groups.append([(s, a, b)])
    return tuple(_block(group, bounds, chains, device) for group in groups)


def _block(
    group: list[tuple[int, int, int]],
    bounds: tuple[int, ...],
    chains: list[NDArray[np.int64]],
    device: torch.device,
) -> Block:
    tall, long = max(b - a for _, a, b in group), max(len(chains[s]) for s, _, _ in group)
    queries, places = np.zeros((2, len(group), tall), dtype=np.int64)
    keys = np.zeros((len(group), long), dtype=np.int64)
    for g, (s, a, b) in enumerate(group):
        chain = chains[s]
        queries[g, : b - a] = np.arange(a, b)
        places[g, : b - a] = np.arange(a, b) - bounds[s + 1] + len(chain)
        keys[g, : len(chain)] = chain
    counts = np.array([len(chains[s]) for s, _, _ in group], dtype=np.int64)
    real = np.concatenate([g * tall + np.arange(b - a) for g, (_, a, b) in enumerate(group)])
    rows = queries.reshape(-1)[real]
    return Block(*(torch.from_numpy(x).to(device) for x in (queries, keys, places, counts, real, rows)))


def _chains(bounds: tuple[int, ...], parents: tuple[int, ...]) -> list[NDArray[np.int64]]:
    """For each segment the rows of its ancestors and of itself, from the root on."""
    found: list[NDArray[np.int64]] = []
    for (a, b), parent in zip(pairwise(bounds), parents, strict=True):
        own = np.arange(a, b, dtype=np.int64)
        found.append(own if parent < 0 else np.concatenate([found[parent], own]))
    return found
