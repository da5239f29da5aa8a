"""The tensors of one microbatch, what the models said about them, and where microbatches come from.

Shape suffixes
    T  tokens of the packed row          S  selected (supervised) positions
    N  sequences (documents) in the row  C  classes, labels or outputs
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents laid end to end in one row. No padding and no mask exist: `bounds` says where documents begin."""

    tokens_T: Tensor
    """int64."""
    positions_T: Tensor
    """int64, restarting at zero in each document."""
    bounds: tuple[int, ...]
    """N + 1 offsets: document i is tokens[bounds[i]:bounds[i + 1]]."""
    select_S: Tensor
    """int64: row positions whose *next* token is a target. A list and not a mask, because a position may predict twice
    once documents share a prefix."""
    target_S: Tensor
    """int64: the token to predict at each selected position."""
    weight_S: Tensor
    """float32: its loss weight."""
    sequence_S: Tensor
    """int64: the document each selected position belongs to."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """Per-document values, first dimension N: `label_NC`, and `index_N`, the document's place in its token store."""

    def __post_init__(self) -> None:
        assert self.tokens_T.ndim == 1
        assert self.tokens_T.shape == self.positions_T.shape
        assert (self.bounds[0], self.bounds[-1]) == (0, len(self.tokens_T))
        assert all(a < b for a, b in zip(self.bounds, self.bounds[1:], strict=False)), "empty document"
        assert bool((self.positions_T[list(self.bounds[:-1])] == 0).all()), "positions restart in each document"
        assert len(self.select_S) == len(self.target_S) == len(self.weight_S) == len(self.sequence_S)

    @property
    def documents(self) -> int:
        return len(self.bounds) - 1

    @property
    def tokens(self) -> int:
        return len(self.tokens_T)

    def sum_by_document(self, values_S: Tensor) -> Tensor:
        """Sums values of selected positions within each document: [S] -> [N]."""
        return values_S.new_zeros(self.documents).index_add_(0, self.sequence_S, values_S)


@dataclass(frozen=True, slots=True)
class Signals:
    """What the models said about a batch; an objective reads nothing else."""

    logprobs_S: Tensor | None = None
    """log p of each target, float32 or wider."""
    scores_NC: Tensor | None = None
    """Outputs of a sequence head, one row a document."""


class Source(Protocol):
    """Step n's microbatches as a pure function of (recipe, seed, n); resume is `start at n`."""

    def __len__(self) -> int:
        """How many steps there are."""
        ...

    def step(self, n: int) -> list[Batch]:
        """Microbatches of 0-based step n, largest first."""
        ...


def wide(x: Tensor) -> Tensor:
    """Half types as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
