"""Sequences to packed batches. The shift by one between a token and its prediction happens here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence as Several
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.batch import Batch
from luthier.data.prefixes import Forest, apart, microbatches, prune, shared
from luthier.types import Sequence


def pack(documents: Several[Sequence], *, indices: Several[int] = (), share: bool = False) -> Batch:
    """Lays sequences into one row: end to end, or with `share` as a forest in which what documents begin with alike
    stands once, where that is worth it. Only a causal model without dropout computes the same from both.

    A document's first token is never a target: nothing stands before it. Sequences with labels give a column
    `label_NC`, `indices` (their places in a token store) a column `index_N`.
    """
    return lay(documents, indices, _forest(documents, share))


def pack_step(documents: Several[Sequence], *, indices: Several[int], budget: int, share: bool) -> list[Batch]:
    """Packs the sequences of one step into microbatches of at most `budget` computed tokens, the largest first.

    What is shared is decided once for the step; where its trees are cut, every part computes its beginning anew.
    """
    forest = _forest(documents, share)
    return [
        lay([documents[i] for i in group], [indices[i] for i in group], prune(forest, group))
        for group in microbatches(forest, budget)
    ]


def _forest(documents: Several[Sequence], share: bool) -> Forest:
    found = shared([s.tokens_T for s in documents]) if share else None
    return found or apart([len(s.tokens_T) for s in documents])


def lay(documents: Several[Sequence], indices: Several[int], forest: Forest) -> Batch:
    """Lays a forest of these documents into one row."""
    bounds = [0, *accumulate(end - start for start, end in zip(forest.starts, forest.ends, strict=True))]
    segments = list(zip(forest.owners, forest.starts, forest.ends, strict=True))
    tokens = np.concatenate([documents[i].tokens_T[start:end] for i, start, end in segments])
    targets = [np.flatnonzero(s.weights_T[1:]) + 1 for s in documents]
    select = []
    for i, target in enumerate(targets):
        row = np.concatenate([np.arange(bounds[s], bounds[s + 1]) for s in forest.chain(i)])
        select.append(row[target - 1])
    columns = {"index_N": torch.tensor(indices, dtype=torch.long)} if indices else {}
    if documents[0].label:
        columns["label_NC"] = torch.tensor([s.label for s in documents], dtype=torch.float32)
    plain = forest.leaves == list(range(len(forest.ends)))
    return Batch(
        tokens_T=torch.from_numpy(tokens.astype(np.int64)),
        positions_T=torch.from_numpy(np.concatenate([np.arange(start, end) for _, start, end in segments])),
        bounds=tuple(bounds),
        select_S=torch.from_numpy(np.concatenate(select)),
        target_S=_joined([s.tokens_T[t] for s, t in zip(documents, targets, strict=True)], np.int64),
        weight_S=_joined([s.weights_T[t] for s, t in zip(documents, targets, strict=True)], np.float32),
        sequence_S=torch.from_numpy(np.repeat(np.arange(len(documents)), [len(t) for t in targets])),
        columns=columns,
        parents=tuple(forest.parents) if max(forest.parents) >= 0 else (),
        leaves=() if plain else tuple(forest.leaves),
    )


def _joined(parts: list[NDArray[Any]], dtype: type) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(dtype))
