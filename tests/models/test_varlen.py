"""Attention as a GPU runs it, on a CPU: the index arithmetic, the padded form, and the form over FlashAttention's
products with these two products written out here."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luthier.kernels import cuda, plain, varlen
from luthier.kernels.branches import blocks, branches
from luthier.kernels.plain import Drop, Rule, Segments
from luthier.models.attention import segments

CPU = torch.device("cpu")


def weights_of(q: Tensor, k: Tensor, scale: float, left: int, right: int) -> Tensor:
    """Softmax weights [h, n, m] with the last query at the last key; -1 sees all on that side."""
    n, m = len(q), len(k)
    beside = torch.arange(m)[None] - (torch.arange(n)[:, None] + m - n)
    seen = torch.ones(n, m, dtype=torch.bool)
    if left >= 0:
        seen &= beside >= -left
    if right >= 0:
        seen &= beside <= right
    scores = torch.einsum("nhd,mhd->hnm", q, k.repeat_interleave(q.shape[1] // k.shape[1], 1)) * scale
    return scores.masked_fill(~seen, -torch.inf)


def flash_forward(
    q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, max_q: int, max_k: int, dropout: float,
    causal: bool, debug: bool, *, scale: float, window_size_left: int, window_size_right: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    """What aten::_flash_attention_forward is said to compute."""
    assert q_ends.dtype == k_ends.dtype == torch.int32
    assert max_q == int(q_ends.diff().max())
    assert max_k == int(k_ends.diff().max())
    assert (causal, dropout) == (window_size_left < 0 and window_size_right == 0, 0.0)
    outs, sums = [], []
    for (a, b), (c, d) in zip(pairwise(q_ends.tolist()), pairwise(k_ends.tolist()), strict=True):
        scores = weights_of(q[a:b], k[c:d], scale, window_size_left, window_size_right)
        values = v[c:d].repeat_interleave(q.shape[1] // k.shape[1], 1)
        outs.append(torch.einsum("hnm,mhd->nhd", scores.softmax(-1), values))
        sums.append(scores.logsumexp(-1))
    return torch.cat(outs), torch.cat(sums, 1), torch.empty(0), torch.empty(0), torch.empty(0)


def flash_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, q_ends: Tensor, k_ends: Tensor,
    max_q: int, max_k: int, dropout: float, causal: bool, state: Tensor, unused: Tensor, **more: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        again, *_ = flash_forward(q, k, v, q_ends, k_ends, max_q, max_k, dropout, causal, False, **more)
    assert torch.allclose(again, out)
    return torch.autograd.grad(again, (q, k, v), grad)


WRITTEN_OUT = varlen.Flash(flash_forward, flash_backward)


@st.composite
def forests(draw: st.DrawFn, *, trees: bool = True) -> Segments:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    parents = tuple(draw(st.integers(-1, s - 1)) if trees and s else -1 for s in range(len(lengths)))
    bounds = (0, *torch.tensor(lengths).cumsum(0).tolist())
    return segments(bounds, parents if max(parents) >= 0 else ())


def tensors(count: int, heads: int = 4, groups: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(count)
    shapes = [(count, heads, 8), (count, groups, 8), (count, groups, 8), (count, heads, 8)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def close(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


@settings(deadline=None, max_examples=60)
@given(forests(), st.sampled_from([0, 1, 3, 50]))
def test_branches_over_flash_equal_the_definition(forest: Segments, window: int) -> None:
    q, k, v, grad = tensors(int(forest.bounds[-1]))
    rule = Rule(0.3, True, window)
    laid = branches(forest, CPU)
    ours, theirs = varlen.flash(q, k, v, laid, rule, WRITTEN_OUT), plain.attention(q, k, v, forest, rule)
    assert close(ours, theirs)
    back = varlen.flash_backward(q, k, v, *ours, grad, laid, rule, WRITTEN_OUT)
    assert close(back, plain.attention_backward(q, k, v, *theirs, grad, forest, rule))


@settings(deadline=None, max_examples=60)
@given(forests(), st.sampled_from([0, 1, 3]), st.sampled_from([0.0, 0.3]), st.sampled_from([1, 64, 200, 10**6]))
def test_padded_blocks_of_any_size_equal_the_definition(
    forest: Segments, window: int, dropout: float, numbers: int
) -> None:
    q, k, v, grad = tensors(int(forest.bounds[-1]))
    rule = Rule(0.3, True, window, Drop(dropout, 7))
    laid = blocks(forest, CPU, heads=4, numbers=numbers)
    ours, theirs = varlen.padded(q, k, v, laid, rule), plain.attention(q, k, v, forest, rule)
    assert close(ours, theirs)
    back = varlen.padded_backward(q, k, v, *ours, grad, laid, rule)
    assert close(back, plain.attention_backward(q, k, v, *theirs, grad, forest, rule))


@settings(deadline=None, max_examples=30)
@given(forests(trees=False), st.sampled_from([0, 1, 3]))
def test_models_that_read_both_ways_have_the_same_two_forms(forest: Segments, window: int) -> None:
    q, k, v, grad = tensors(int(forest.bounds[-1]))
    rule = Rule(0.3, False, window)
    theirs = plain.attention(q, k, v, forest, rule)
    back = plain.attention_backward(q, k, v, *theirs, grad, forest, rule)
    laid, padded = branches(forest, CPU), blocks(forest, CPU, heads=4, numbers=200)
    assert close(varlen.flash(q, k, v, laid, rule, WRITTEN_OUT), theirs)
    assert close(varlen.flash_backward(q, k, v, *theirs, grad, laid, rule, WRITTEN_OUT), back)
    assert close(varlen.padded(q, k, v, padded, rule), theirs)
    assert close(varlen.padded_backward(q, k, v, *theirs, grad, padded, rule), back)


def test_without_shared_beginnings_nothing_is_copied() -> None:
    assert branches(segments((0, 3, 7)), CPU).keys is None


def test_a_block_holds_no_more_scores_than_it_may() -> None:
    forest = segments((0, 40, 43, 50, 90), (-1, 0, 0, -1))
    for block in blocks(forest, CPU, heads=4, numbers=1000):
        assert block.queries.shape[1] == 1 or 4 * block.queries.numel() * block.keys.shape[1] <= 1000


def test_torchs_flash_products_take_what_they_are_given() -> None:
    """On tensors without numbers: the signature, and that a log-sum-exp stands by head and token."""
    q, k, v, grad = (x.to("meta", torch.bfloat16) for x in tensors(11))
    laid = branches(segments((0, 4, 7, 11), (-1, 0, 0)), CPU)
    laid = laid._replace(
        keys=laid.keys.to("meta"), query_ends=laid.query_ends.to("meta"), key_ends=laid.key_ends.to("meta")
    )
    rule = Rule(0.3, True, 5)
    out, lse = varlen.flash(q, k, v, laid, rule, cuda.FLASH)
    assert (out.shape, lse.shape, lse.dtype) == (q.shape, (4, 11), torch.float32)
    dq, dk, dv = varlen.flash_backward(q, k, v, out, lse, grad, laid, rule, cuda.FLASH)
    assert (dq.shape, dk.shape, dv.shape) == (q.shape, k.shape, v.shape)


@pytest.mark.parametrize(
    ("dtype", "size", "capability", "fits"),
    [
        (torch.bfloat16, 64, (8, 0), True),
        (torch.bfloat16, 256, (9, 0), True),
        (torch.bfloat16, 256, (8, 9), False),
        (torch.bfloat16, 60, (9, 0), False),
        (torch.float32, 64, (9, 0), False),
        (torch.float16, 64, (7, 5), False),
    ],
)
def test_flash_is_used_where_it_can_compute_the_gradient_too(
    dtype: torch.dtype, size: int, capability: tuple[int, int], fits: bool
) -> None:
    assert cuda.flash_fits(dtype, size, Rule(1.0), capability=capability) is fits
    assert not cuda.flash_fits(dtype, size, Rule(1.0, drop=Drop(0.1, 1)), capability=capability)


def test_a_compiled_row_function_is_one_graph_for_any_number_of_rows() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    run = torch.compile(plain.rms_norm_backward, dynamic=True, fullgraph=True, backend=count)
    weight = torch.linspace(0.5, 1, 12)
    for rows in (5, 8):
        x, grad = torch.linspace(-1, 1, 24 * rows).view(2, rows, 12)
        inverse = plain.rms_norm(x, weight, 1e-5).inverse
        ours = run(grad, x, weight, inverse, weight_grad=True)
        assert all(map(torch.allclose, ours, plain.rms_norm_backward(grad, x, weight, inverse, weight_grad=True)))
    assert len(graphs) == 1
