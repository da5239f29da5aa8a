"""How much a run computes: steps, tokens, positions that are read, and what is answered. Plain counts of a few hundred
steps, and by how much the rest of the run is larger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.budget.memory import Row


@dataclass(frozen=True, slots=True)
class Pass:
    """Forward passes over rows; with `times` for what was not counted one by one."""

    rows: tuple[Row, ...] = ()
    times: float = 1.0

    @property
    def calls(self) -> float:
        return len(self.rows) * self.times

    @property
    def tokens(self) -> float:
        """Computed."""
        return sum(row.tokens for row in self.rows) * self.times

    @property
    def read(self) -> float:
        return sum(row.read for row in self.rows) * self.times

    @property
    def pairs(self) -> float:
        return sum(row.pairs for row in self.rows) * self.times


@dataclass(frozen=True, slots=True)
class Work:
    """All that a run computes."""

    steps: int
    tokens: int
    """Of the examples, in all steps."""
    train: Pass
    largest: Row
    """The largest microbatch of training, number by number."""
    validation: Pass
    """One validation."""
    validations: int
    checkpoints: int
    test: Pass
    """Losses of the test rows, by one model."""
    passes_over_frozen: float
    """How often the frozen lower layers are run over the training rows and those of validation."""
    prompts: Pass
    answers: int = 0
    """Rows that one model answers."""
    answer_tokens: int = 0
    """Of the expected answers."""
    most_tokens: int = 0
    """Of one answer."""
    batch: int = 0
    room: int = 0
    """Tokens of the longest prompt with its answer."""


def largest(rows: Sequence[Row]) -> Row:
    """The most of each number."""
    return Row(*(max(getattr(row, name) for row in rows) for name in ("tokens", "read", "pairs")))
