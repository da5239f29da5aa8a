"""Rendered sequences on disk: flat arrays that are mapped into memory, so that a data set of any size costs an index.

tokens.bin   int32 [all tokens]        offsets.npy  int64 [sequences + 1]
weights.bin  float32 [all tokens]      rows.npy     int64 [sequences]: row of the example store
labels.npy   float32 [sequences, C]    (C = 0 without labels)
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.runs.folder import storage, sync
from luthier.types import Sequence


class TokenStore(NamedTuple):
    """Sequences by index."""

    tokens: NDArray[np.int32]
    weights: NDArray[np.float32]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    def sequence(self, index: int) -> Sequence:
        a, b = int(self.offsets[index]), int(self.offsets[index + 1])
        return Sequence(
            id=str(int(self.rows[index])),
            tokens_T=self.tokens[a:b],
            weights_T=self.weights[a:b],
            label=tuple(float(x) for x in self.labels[index]),
        )


class Written(NamedTuple):
    """What went into a store."""

    sequences: int
    tokens: int
    supervised_tokens: int
    longest: int


def write(folder: Path, sequences: Iterable[tuple[int, Sequence]]) -> Written:
    """Streams (row, sequence) pairs into `folder`, which appears whole or not at all."""
    beside = folder.with_name(f".{folder.name}.partial")
    with storage(folder):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        written = _write_arrays(beside, sequences)
        for path in beside.iterdir():
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(beside, folder)
        sync(folder.parent)
    return written


def _write_arrays(folder: Path, sequences: Iterable[tuple[int, Sequence]]) -> Written:
    offsets, rows, labels = [0], [], []
    supervised = 0
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "weights.bin").open("wb") as weights:
        for row, sequence in sequences:
            tokens.write(np.ascontiguousarray(sequence.tokens_T, dtype=np.int32).tobytes())
            weights.write(np.ascontiguousarray(sequence.weights_T, dtype=np.float32).tobytes())
            offsets.append(offsets[-1] + len(sequence.tokens_T))
            rows.append(row)
            labels.append(sequence.label)
            supervised += int(np.count_nonzero(sequence.weights_T))
    np.save(folder / "offsets.npy", np.asarray(offsets, dtype=np.int64))
    np.save(folder / "rows.npy", np.asarray(rows, dtype=np.int64))
    width = len(labels[0]) if labels else 0
    np.save(folder / "labels.npy", np.asarray(labels, dtype=np.float32).reshape(len(rows), width))
    lengths = np.diff(np.asarray(offsets))
    return Written(len(rows), offsets[-1], supervised, int(lengths.max()) if len(lengths) else 0)


def open_store(folder: Path) -> TokenStore:
    """Maps a finished store into memory."""

    def mapped(name: str, dtype: Any) -> NDArray[Any]:
        path = folder / name
        if path.stat().st_size == 0:
            return np.empty(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r")

    return TokenStore(
        tokens=mapped("tokens.bin", np.int32),
        weights=mapped("weights.bin", np.float32),
        offsets=np.load(folder / "offsets.npy"),
        rows=np.load(folder / "rows.npy"),
        labels=np.load(folder / "labels.npy"),
    )
