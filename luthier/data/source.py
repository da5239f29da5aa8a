"""Which examples step n trains on: a pure function of (store, recipe, seed, n). There is no iterator whose state could
be lost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from luthier.batch import Batch
from luthier.data.pack import pack_step
from luthier.data.tokens import TokenStore


@dataclass
class EpochSource:
    """Every sequence once an epoch, in an order drawn from (seed, epoch). The last step of an epoch may be smaller."""

    store: TokenStore
    batch_examples: int
    microbatch_tokens: int
    epochs: float
    seed: int
    max_steps: int | None = None
    share: bool = False
    """Whether what examples of a step begin with alike is computed once."""
    _orders: dict[int, NDArray[np.int64]] = field(default_factory=dict, repr=False)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(len(self.store) / self.batch_examples)

    def __len__(self) -> int:
        steps = max(1, round(self.epochs * self.steps_per_epoch))
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def examples(self, n: int) -> NDArray[np.int64]:
        """Indices of the sequences of step n."""
        epoch, within = divmod(n, self.steps_per_epoch)
        if epoch not in self._orders:
            self._orders = {epoch: np.random.default_rng([self.seed, epoch]).permutation(len(self.store))}
        a = within * self.batch_examples
        return self._orders[epoch][a : a + self.batch_examples]

    def step(self, n: int) -> list[Batch]:
        return _packed(self.store, self.examples(n), self.microbatch_tokens, self.share)


def stream(
    store: TokenStore, indices: NDArray[np.int64], budget: int, *, window: int = 256, share: bool = False
) -> Iterator[Batch]:
    """Packs any number of sequences, `window` at a time, for passes that take no optimizer step."""
    for a in range(0, len(indices), window):
        yield from _packed(store, indices[a : a + window], budget, share)


def _packed(store: TokenStore, indices: NDArray[np.int64], budget: int, share: bool) -> list[Batch]:
    places = [int(i) for i in indices]
    return pack_step([store.sequence(i) for i in places], indices=places, budget=budget, share=share)
