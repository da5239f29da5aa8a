"""Sequences to packed batches. The shift by one between a token and its prediction happens here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence as Several

import numpy as np
import torch

from luthier.batch import Batch
from luthier.types import Sequence


def pack(documents: Several[Sequence], *, indices: Several[int] = ()) -> Batch:
    """Lays sequences end to end in one row.

    A document's first token is never a target: nothing stands before it. Sequences with labels give a column
    `label_NC`, `indices` (their places in a token store) a column `index_N`.
    """
    lengths = [len(s.tokens_T) for s in documents]
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.concatenate([s.tokens_T for s in documents]).astype(np.int64)
    weights = np.concatenate([s.weights_T for s in documents]).astype(np.float32)
    weights[bounds[:-1]] = 0
    targets = np.flatnonzero(weights)
    columns = {"index_N": torch.tensor(indices, dtype=torch.long)} if indices else {}
    if documents[0].label:
        columns["label_NC"] = torch.tensor([s.label for s in documents], dtype=torch.float32)
    return Batch(
        tokens_T=torch.from_numpy(tokens),
        positions_T=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths])),
        bounds=tuple(int(b) for b in bounds),
        select_S=torch.from_numpy(targets - 1),
        target_S=torch.from_numpy(tokens[targets]),
        weight_S=torch.from_numpy(weights[targets]),
        sequence_S=torch.from_numpy(np.searchsorted(bounds, targets, side="right") - 1),
        columns=columns,
    )


def microbatches(lengths: list[int], budget: int) -> list[list[int]]:
    """Divides the examples of one step into groups of at most `budget` tokens: first fit, longest first.

    The largest group comes first, so a shortage of memory shows in the first microbatch. An example longer than the
    budget stands alone. Which examples share a step is not decided here, so the result of the step does not depend on
    it.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    groups: list[list[int]] = []
    totals: list[int] = []
    for i in order:
        for g, total in enumerate(totals):
            if total + lengths[i] <= budget:
                groups[g].append(i)
                totals[g] += lengths[i]
                break
        else:
            groups.append([i])
            totals.append(lengths[i])
    return [groups[g] for g in sorted(range(len(groups)), key=lambda g: -totals[g])]
