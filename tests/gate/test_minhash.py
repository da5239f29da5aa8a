"""MinHash bands against what the theory says of them."""

import random

import numpy as np
import pytest

from luthier.gate.minhash import BANDS, ROWS, bands
from luthier.gate.text import similarities

PAIRS = 400


def by_text(texts: list[str]) -> list[set[int]]:
    found = bands(texts)
    return [set(found.hash_B[found.text_B == text].tolist()) for text in range(len(texts))]


@pytest.mark.parametrize(("words", "changed"), [(80, (6, 10)), (40, (6, 11)), (80, (2, 4))])
def test_texts_share_a_band_as_often_as_the_formula_says(words: int, changed: tuple[int, int]) -> None:
    """80 words are compared by triples, 40 by pairs. Four standard deviations: wrong once in 16,000 draws."""
    draw = random.Random(0)
    texts: list[str] = []
    for _ in range(PAIRS):
        text = [f"w{draw.randrange(10**6)}" for _ in range(words)]
        other = list(text)
        for at in draw.sample(range(words), draw.randint(*changed)):
            other[at] = f"v{draw.randrange(10**6)}"
        texts += [" ".join(text), " ".join(other)]
    pairs_P2 = np.arange(2 * PAIRS).reshape(-1, 2)
    same_P = similarities(texts, pairs_P2) ** ROWS
    found = by_text(texts)
    shared_P = np.array([len(found[a] & found[b]) for a, b in pairs_P2])
    any_P = 1 - (1 - same_P) ** BANDS
    assert abs((shared_P > 0).sum() - any_P.sum()) <= 4 * np.sqrt((any_P * (1 - any_P)).sum()) + 0.5
    assert abs(shared_P.sum() - BANDS * same_P.sum()) <= 4 * np.sqrt(BANDS * (same_P * (1 - same_P)).sum())


def test_equal_texts_share_all_bands_in_any_batch_and_others_none() -> None:
    draw = random.Random(1)
    texts = [" ".join(f"w{draw.randrange(10**6)}" for _ in range(words)) for words in (1, 5, 20, 40, 60, 200)]
    found = by_text([*texts, *reversed(texts)])
    assert found[: len(texts)] == found[len(texts) :][::-1]
    assert [by_text([text])[0] for text in texts] == found[: len(texts)]
    # A text near the bound between two kinds has the bands of both.
    assert [len(some) // BANDS for some in found[: len(texts)]] == [1, 1, 1, 1, 2, 1]
    assert len(set.union(*found)) == sum(map(len, found)) / 2
