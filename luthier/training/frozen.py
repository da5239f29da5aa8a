"""What frozen lower layers make of every sequence, computed once and read from disk in each pass over the data.

Where the lowest trained weight stands in layer k > 0, and nothing below draws dropout, the states that enter layer k
never change (AutoFreeze, Liu et al., arXiv 2102.01386, caches them too). They are computed in one pass before the first
step and not along with it: a step then depends on its number alone, and a run that was stopped goes on from the same
numbers. They differ from those of the plain way by the rounding of products of another shape.

    RUN/frozen/SIDE-KEY.bin   the states of every token of the side's store, one after the other

Shape suffixes:  T tokens of the packed row   H width of a state
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from luthier import kernels, machine
from luthier.batch import Batch, Below, Source
from luthier.data.pack import pack
from luthier.data.source import stream
from luthier.data.tokens import TokenStore
from luthier.kernels.build import library
from luthier.models import lower
from luthier.models.policy import Policy, draws
from luthier.runs.folder import storage, sync

SHARE_OF_DISK = 0.1
"""Of the free space, at most so much is taken."""


class Choice(NamedTuple):
    """Whether the states of lower layers are kept."""

    layers: int
    """So many; 0 keeps nothing."""
    bytes: int
    """What they take on disk."""
    why_not: str
    """Why nothing is kept although lower layers are frozen; empty where none is."""


@dataclass(frozen=True)
class Kept:
    """The states of one side's sequences."""

    layers: int
    states: NDArray[np.uint8]
    """[all tokens, bytes of a state], mapped into memory."""
    offsets: NDArray[np.int64]
    dtype: torch.dtype

    def onto(self, batch: Batch) -> Batch:
        """The batch with the states of its tokens, from which the policy goes on."""
        states = np.empty((batch.tokens, self.states.shape[1]), dtype=np.uint8)
        for n, index in enumerate(batch.columns["index_N"].tolist()):
            states[batch.rows(n).numpy()] = self.states[self.offsets[index] : self.offsets[index + 1]]
        return replace(batch, below=Below(self.layers, torch.from_numpy(states).view(self.dtype)))


@dataclass(frozen=True)
class KeptSource:
    """A source whose batches carry the states of their tokens."""

    source: Source
    kept: Kept

    def __len__(self) -> int:
        return len(self.source)

    def step(self, n: int) -> list[Batch]:
        return [self.kept.onto(batch) for batch in self.source.step(n)]


def choose(policy: Policy, *, tokens: int, passes: float, folder: Path, probe: TokenStore) -> Choice:
    """Whether it is worth it and can be exact.

    Args:
        tokens: of all sides whose states would be kept.
        passes: over the training rows.
        probe: a store; the frozen layers are run on the beginning of its first sequence.
    """
    layers = lower.untrained(policy.model)
    if not layers:
        return Choice(0, 0, "")
    if any(draws(module) for module in lower.below(policy.backbone, layers)):
        return Choice(0, 0, "they draw dropout, anew in each pass")
    first = probe.sequence(0)
    short = pack([replace(first, tokens_T=first.tokens_T[:2], weights_T=first.weights_T[:2])])
    states_TH = policy.below(short, layers).states_TH
    if states_TH.requires_grad:
        return Choice(0, 0, "")
    need = tokens * states_TH.shape[1] * states_TH.element_size()
    if passes <= 1:
        return Choice(0, need, "every row is read once only")
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if need > SHARE_OF_DISK * free:
        return Choice(0, need, f"they would take {need / 1e9:.1f} GB, more than a tenth of the free disk")
    return Choice(layers, need, "")


def keep(
    policy: Policy,
    store: TokenStore,
    folder: Path,
    side: str,
    *,
    layers: int,
    budget: int,
    progress: Callable[[Iterator[Batch], int], Iterable[Batch]],
) -> Kept:
    """Computes the states of a store's sequences into `folder`, unless they lie there already.

    Args:
        budget: tokens computed at once.
        progress: passes the batches of so many sequences on, and may stop between two of them by an exception.

    Raises:
        StorageError: the disk is full or read-only.
    """
    target = folder / f"{side}-{_key(policy, store, layers)}.bin"
    total = int(store.offsets[-1])
    if not target.exists():
        beside = folder / f".{target.name}.partial"
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC | getattr(os, "O_CLOEXEC", 0), 0o600)
        try:
            batches = stream(store, np.arange(len(store)), budget, share=policy.shares)
            with policy.inference():
                for batch in progress(batches, len(store)):
                    _write(handle, store, batch, policy.below(batch, layers).states_TH)
        finally:
            os.close(handle)
        with storage(folder):
            sync(beside)
            os.replace(beside, target)
    dtype, width = _form(policy, store, layers)
    states = np.memmap(target, dtype=np.uint8, mode="r").reshape(total, width)
    return Kept(layers, states, store.offsets, dtype)


def _write(handle: int, store: TokenStore, batch: Batch, states_TH: torch.Tensor) -> None:
    for n, index in enumerate(batch.columns["index_N"].tolist()):
        own = states_TH[batch.rows(n)].contiguous().view(torch.uint8).cpu().numpy()
        # Written and not mapped: a full disk is then an error and no signal that ends the process.
        left, at = own.tobytes(), int(store.offsets[index]) * own.shape[1]
        while left:
            written = os.pwrite(handle, left, at)
            left, at = left[written:], at + written


def _form(policy: Policy, store: TokenStore, layers: int) -> tuple[torch.dtype, int]:
    """(type of a state's numbers, bytes of a state)."""
    with policy.inference():
        states_TH = policy.below(pack([store.sequence(0)]), layers).states_TH
    return states_TH.dtype, states_TH.shape[1] * states_TH.element_size()


def _key(policy: Policy, store: TokenStore, layers: int) -> str:
    """Hash of all that the states depend on: frozen weights, tokens, type, and the code that computes them."""
    parameter = next(policy.backbone.parameters())
    path = [kernels.of(parameter).__name__, getattr(library(), "_name", ""), torch.__version__, str(policy.dtype)]
    if policy.device.type == "cuda":
        path.append(str(machine.gpu()))
    digest = hashlib.sha256("\0".join([*path, str(layers), str(torch.get_num_threads())]).encode())
    for module in lower.below(policy.backbone, layers):
        # What is trained stands above the states, such as the last norm.
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if not tensor.requires_grad:
                digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    for array in (store.tokens, store.offsets):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]
