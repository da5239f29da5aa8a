"""Log-probabilities of a store's supervised tokens under the model without its adapter, computed once: the base's loss
on the test rows, and what preference learning compares with.

They are kept in a file of the run under the hash of all that they depend on, and another run finds them there. What is
found equals what would be computed to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from luthier import cache
from luthier.batch import Batch
from luthier.data.source import stream
from luthier.data.tokens import TokenStore
from luthier.models.policy import Policy
from luthier.runs.folder import storage, sync

KIND = "reference"


@dataclass(frozen=True)
class Reference:
    """Log-probabilities by sequence."""

    logprobs: NDArray[np.floating]
    """Of all supervised tokens, sequence after sequence, in float32 or wider."""
    starts: dict[int, int]
    """Index in the store -> where its tokens begin."""

    def of(self, batch: Batch) -> Tensor:
        """log p of each target of the batch, [S]."""
        counts = torch.bincount(batch.sequence_S, minlength=batch.documents).tolist()
        begins = [self.starts[index] for index in batch.columns["index_N"].tolist()]
        parts = [self.logprobs[a : a + count] for a, count in zip(begins, counts, strict=True)]
        return torch.from_numpy(np.concatenate(parts))


def reference_logprobs(
    policy: Policy,
    store: TokenStore,
    indices: Sequence[int],
    *,
    budget: int,
    file: Path,
    past: Path | None = None,
    key: str | None = None,
) -> Reference:
    """One pass without gradients, dropout and adapter; or what an earlier run kept of the same pass.

    Args:
        policy: one that predicts tokens.
        indices: which sequences of the store.
        budget: tokens computed at once.
        file: where the numbers are kept (.npy).
        past, key: where earlier runs are noted (`cache.past`), and the hash of model, rows, settings and code.

    Raises:
        StorageError: the disk is full or read-only.
    """
    counts = [int(np.count_nonzero(store.sequence(i).weights_T[1:])) for i in indices]
    ends = np.cumsum(counts, dtype=np.int64)
    starts = dict(zip(indices, (ends - counts).tolist(), strict=True))
    known = None if past is None or key is None else cache.recall(past, KIND, key)
    if known is not None:
        return Reference(np.load(known, allow_pickle=False), starts)
    found: dict[int, Tensor] = {}
    with policy.inference(base=True):
        for batch in stream(store, np.asarray(indices, dtype=np.int64), budget):
            logprobs_S = policy.listen(batch).logprobs_S
            assert logprobs_S is not None
            for n, index in enumerate(batch.columns["index_N"].tolist()):
                found[index] = logprobs_S[batch.sequence_S == n]
    logprobs = torch.cat([found[index] for index in indices]).numpy()
    if past is not None and key is not None:
        with storage(file):
            np.save(file, logprobs, allow_pickle=False)
            sync(file)
        cache.remember(past, KIND, key, file)
    return Reference(logprobs, starts)
