"""The contract of an objective: a summed loss, and the count of what it sums over, taken from the batch alone.

The loop divides the sum by the count of the whole step, so how a step is cut into microbatches, packed rows or
processes never changes its gradient. Whatever couples examples is computed before the step and travels as a column of
the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from luthier.batch import Batch, Signals


class Objective(NamedTuple):
    loss: Callable[[Signals, Batch], Tensor]
    """(signals, batch) -> summed loss, []."""
    units: Callable[[Batch], float]
    """How many tokens, rows or labels it sums over; no forward pass is needed to know it."""
    unit: str
    """The name of one unit, for people."""
    sequence: bool = False
    """Whether it reads the scores of a sequence head instead of token log-probabilities."""
