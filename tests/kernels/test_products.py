"""A linear layer and its low-rank update in bf16, rounded once, against the same numbers computed in float64."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from luthier.kernels import native, plain
from luthier.kernels.build import library

in_blocks = pytest.mark.skipif(
    library() is None or not library().products_given(), reason="this processor has neither AMX nor AVX512-BF16"
)
either = pytest.mark.parametrize(("own", "fewest"), [(plain, 64), pytest.param(native, 1, marks=in_blocks)])
"""Torch's products round once from so many rows on."""
ROUNDING = 2.0**-8
"""Of bf16, relative."""

sizes = st.sampled_from([32, 64, 96, 160])
rows = st.integers(0, 130)
"""Beyond the fewest."""
ranks = st.sampled_from([1, 4, 8, 16, 24, 32, 40])


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def near(got: Tensor, wanted: Tensor) -> bool:
    """Equal but for one rounding to bf16, and for float32 sums of a few hundred terms."""
    return bool(((got.double() - wanted).abs() <= ROUNDING * wanted.abs() + 1e-3).all())


@either
@given(rows=rows, inputs=sizes, outputs=sizes, rank=ranks, bias=st.booleans(), seed=st.integers(0, 99))
def test_forward_rounds_the_sum_once(
    own: ModuleType, fewest: int, rows: int, inputs: int, outputs: int, rank: int, bias: bool, seed: int
) -> None:
    rows += fewest
    x, W, b = drawn(rows, inputs, seed=seed), drawn(outputs, inputs, seed=seed + 1), drawn(outputs, seed=seed + 2)
    A, B = drawn(rank, inputs, seed=seed + 3).float(), drawn(outputs, rank, seed=seed + 4).float()
    y, low = own.adapted(x, W, b if bias else None, A, B, 2.0)
    assert low is not None
    assert near(low, x.double() @ A.double().t())
    # With the rounded product x A, as the backward pass will use it.
    wanted = x.double() @ W.double().t() + 2.0 * low.double() @ B.double().t() + (b.double() if bias else 0)
    assert near(y, wanted)


@either
@given(rows=rows, inputs=sizes, outputs=sizes, rank=ranks, added=st.booleans(), seed=st.integers(0, 99))
def test_backward_rounds_the_sum_once(
    own: ModuleType, fewest: int, rows: int, inputs: int, outputs: int, rank: int, added: bool, seed: int
) -> None:
    rows += fewest
    g, W = drawn(rows, outputs, seed=seed), drawn(outputs, inputs, seed=seed + 1)
    A, B = drawn(rank, inputs, seed=seed + 3).float(), drawn(outputs, rank, seed=seed + 4).float()
    before = drawn(rows, inputs, seed=seed + 5)
    dx, low = own.adapted_backward(g, W, A, B, 0.5, before.clone() if added else None)
    assert dx is not None
    assert low is not None
    assert near(low, 0.5 * g.double() @ B.double())
    assert near(dx, g.double() @ W.double() + low.double() @ A.double() + (before.double() if added else 0))


@either
@given(rows=rows, n=sizes, rank=ranks, seed=st.integers(0, 99))
def test_gram_is_the_product(own: ModuleType, fewest: int, rows: int, n: int, rank: int, seed: int) -> None:
    rows += fewest
    small, big = drawn(rows, rank, seed=seed), drawn(rows, n, seed=seed + 1)
    assert near(own.gram(small, big), small.double().t() @ big.double())


@in_blocks
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """What is packed beside a document never changes it, to the bit."""
    x, W = drawn(70, 64, seed=0), drawn(96, 64, seed=1)
    A, B = drawn(16, 64, seed=2), drawn(96, 16, seed=3)
    whole, _ = native.adapted(x, W, None, A, B, 2.0)
    for start, end in ((0, 1), (5, 37), (33, 70)):
        part, _ = native.adapted(x[start:end].contiguous(), W, None, A, B, 2.0)
        assert torch.equal(part, whole[start:end])
