"""MinHash bands of texts (Broder, 1997): near duplicates share at least one, almost surely.

A signature of 130 minima in 26 bands of 5. Two texts of Jaccard similarity s share a band with probability
1 - (1 - s^5)^26: 0.992 at 0.7, 0.99997 at 0.8, and 0.0003 at 0.1, which is what two texts of one field have in common.
Fewer rows to a band would find no more and make ten times as many candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from luthier.gate.text import KINDS, mix, shingles

BANDS, ROWS, SEED = 26, 5, 20
VERSION = f"minhash 1: rensa R, seed {SEED}, {BANDS} x {ROWS}"
"""Changes whenever the same text could have other bands; a stored set of bands holds for its version alone."""
_AT_ONCE = 2_000


class Bands(NamedTuple):
    """The bands of a batch of texts: two texts of one kind are candidates where they share a `hash_B`."""

    text_B: NDArray[np.int64]
    """Position of the text in the batch."""
    band_B: NDArray[np.int16]
    """0-25 for shingles of characters, 26-51 of pairs, 52-77 of triples of words. Mixed into the hash already."""
    hash_B: NDArray[np.uint64]


def bands(forms: Sequence[str]) -> Bands:
    """The bands of bare forms (`text.bare`); none for an empty one, and those of two kinds near the bound between them.

    For the store, from a batch of rows: with `forms = [text.forms(row) for row in rows]`, `bands([f.asked for f in
    forms])` are those of what = 'prompt', and `bands([f.whole for f in forms])` those of what = 'row'. About 25
    microseconds a text of 350 characters. The same text gives the same bands in any batch and process.
    """
    parts = [_some(forms[begin : begin + _AT_ONCE], begin) for begin in range(0, len(forms), _AT_ONCE)]
    if not parts:
        return Bands(np.zeros(0, np.int64), np.zeros(0, np.int16), np.zeros(0, np.uint64))
    return Bands(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _some(forms: Sequence[str], first: int) -> Bands:
    text, band, hashed = [np.zeros(0, np.int64)], [np.zeros(0, np.int16)], [np.zeros(0, np.uint64)]
    for of_kind in shingles(forms):
        offsets = of_kind.start_K.astype(np.uint64)
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(of_kind.hash_S, offsets, BANDS * ROWS, SEED)
        flat = np.fromiter(chain.from_iterable(matrix.to_rows()), np.uint64, len(of_kind.text_K) * BANDS * ROWS)
        minima_KBR = flat.reshape(-1, BANDS, ROWS)
        number_B = np.arange(BANDS, dtype=np.int16) + np.int16(BANDS * KINDS.index(of_kind.kind))
        hash_KB = np.zeros(minima_KBR.shape[:2], np.uint64) + number_B.astype(np.uint64)
        for row in range(ROWS):
            hash_KB = mix(hash_KB ^ minima_KBR[:, :, row])
        text.append(np.repeat(of_kind.text_K + first, BANDS))
        band.append(np.tile(number_B, len(of_kind.text_K)))
        hashed.append(hash_KB.ravel())
    return Bands(np.concatenate(text), np.concatenate(band), np.concatenate(hashed))
