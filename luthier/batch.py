"""The tensors of one microbatch, what the models said about them, and where microbatches come from.

Shape suffixes
    T  tokens of the packed row          S  selected (supervised) positions
    N  sequences (documents) in the row  C  classes, labels or outputs

A packed row is a forest of segments. A segment sees itself from left to right and the whole of its ancestors, so tokens
that several documents begin with stand in it once. Without shared beginnings, each document is a segment of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Below(NamedTuple):
    """What a model's lowest layers made of a row before: its forward pass goes on from there."""

    layers: int
    states_TH: Tensor
    """The residual sum that enters layer `layers` (0 is the lowest), in the type that the model computes in."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Documents in one row. No padding and no mask exist: `bounds` and `parents` say who sees whom."""

    tokens_T: Tensor
    """int64."""
    positions_T: Tensor
    """int64, from zero in a segment without a parent, else on from the parent's last."""
    bounds: tuple[int, ...]
    """Offsets of the segments, one more than there are: segment s is tokens[bounds[s]:bounds[s + 1]]."""
    select_S: Tensor
    """int64: row positions whose *next* token is a target. A list and not a mask: the last token of a shared beginning
    predicts another token for each document, and a target within it counts once for each."""
    target_S: Tensor
    """int64: the token to predict at each selected position."""
    weight_S: Tensor
    """float32: its loss weight."""
    sequence_S: Tensor
    """int64: the document each selected position belongs to."""
    columns: dict[str, Tensor] = field(default_factory=dict)
    """Per-document values, first dimension N: `label_NC`, and `index_N`, the document's place in its token store."""
    parents: tuple[int, ...] = ()
    """For each segment the one that it continues, which stands before it, or -1. Empty: none continues another."""
    leaves: tuple[int, ...] = ()
    """For each document the segment that it ends in. Equal documents end in the same one, and a document that another
    one continues in one with children. Empty: document i is segment i."""
    below: Below | None = None
    """Where the lowest layers need not be run again."""

    def __post_init__(self) -> None:
        assert self.tokens_T.ndim == 1
        assert self.tokens_T.shape == self.positions_T.shape
        assert (self.bounds[0], self.bounds[-1]) == (0, len(self.tokens_T))
        assert all(a < b for a, b in zip(self.bounds, self.bounds[1:], strict=False)), "empty segment"
        assert len(self.parents) in (0, len(self.bounds) - 1)
        assert all(parent < s for s, parent in enumerate(self.parents)), "a parent stands before its children"
        if self.positions_T.device.type == "cpu":  # to read a GPU's memory is to wait for all that it has been told
            expected = torch.tensor(depths(self.bounds, self.parents))
            assert torch.equal(self.positions_T[list(self.bounds[:-1])], expected), "positions go on from the parent's"
        assert len(self.select_S) == len(self.target_S) == len(self.weight_S) == len(self.sequence_S)

    @property
    def documents(self) -> int:
        return len(self.leaves) or len(self.bounds) - 1

    @property
    def tokens(self) -> int:
        """Tokens that are computed: the length of the row."""
        return len(self.tokens_T)

    @property
    def plain_tokens(self) -> int:
        """Tokens of all documents, each in full: what is computed where nothing is shared."""
        starts = depths(self.bounds, self.parents)
        ends_in = self.leaves or range(len(starts))
        return sum(starts[s] + self.bounds[s + 1] - self.bounds[s] for s in ends_in)

    def to(self, device: torch.device) -> Batch:
        """The same with its tensors on `device`; itself where they are there."""
        if self.tokens_T.device == device:
            return self
        names = ("tokens_T", "positions_T", "select_S", "target_S", "weight_S", "sequence_S")
        return replace(
            self,
            **{name: getattr(self, name).to(device) for name in names},
            columns={name: column.to(device) for name, column in self.columns.items()},
            below=None if self.below is None else self.below._replace(states_TH=self.below.states_TH.to(device)),
        )

    def rows(self, document: int) -> Tensor:
        """Where a document's tokens stand in the row, from its first to its last, int64."""
        segment = self.leaves[document] if self.leaves else document
        stretches = []
        while segment >= 0:
            stretches.append(torch.arange(self.bounds[segment], self.bounds[segment + 1]))
            segment = self.parents[segment] if self.parents else -1
        return torch.cat(stretches[::-1])

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


def depths(bounds: tuple[int, ...], parents: tuple[int, ...]) -> list[int]:
    """Position of each segment's first token: how many tokens its ancestors have in all."""
    found: list[int] = []
    for s in range(len(bounds) - 1):
        parent = parents[s] if parents else -1
        found.append(found[parent] + bounds[parent + 1] - bounds[parent] if parent >= 0 else 0)
    return found


def wide(x: Tensor) -> Tensor:
    """Half types as float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
