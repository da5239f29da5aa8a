"""Each kernel on a GPU computes what its definition in `plain` does on the processor."""

import pytest
import torch
from torch import Tensor

from luthier import kernels
from luthier.kernels import cuda, plain
from luthier.kernels.plain import Drop, Rule, Segments
from luthier.models.attention import segments

pytestmark = pytest.mark.gpu

BOUND = {torch.float32: 2e-5, torch.bfloat16: 4e-2}
FORESTS = {
    "documents": segments((0, 40, 41, 300, 437)),
    "a shared beginning": segments((0, 200, 240, 300, 437), (-1, 0, 0, 2)),
    "single tokens": segments(tuple(range(20))),
}


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def agree(ours: object, theirs: object, dtype: torch.dtype) -> None:
    """Of tuples each part; numbers within a bound of the largest."""
    assert isinstance(ours, tuple)
    assert isinstance(theirs, tuple)
    for a, b in zip(ours, theirs, strict=True):
        if b is None:
            assert a is None
            continue
        gap, size = (a.cpu().double() - b.double()).abs().max(), b.double().abs().max()
        assert gap <= BOUND[dtype] * max(1.0, float(size))


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("forest", FORESTS.values(), ids=FORESTS)
@pytest.mark.parametrize("rule", [Rule(0.125), Rule(0.125, window=16), Rule(0.125, drop=Drop(0.2, 5))], ids=str)
@pytest.mark.parametrize("size", [64, 20])
def test_attention(card: torch.device, dtype: torch.dtype, forest: Segments, rule: Rule, size: int) -> None:
    count = int(forest.bounds[-1])
    q, k, v, grad = drawn(*[(count, h, size) for h in (6, 2, 2, 6)], dtype=dtype)
    theirs = plain.attention(q, k, v, forest, rule)
    back = plain.attention_backward(q, k, v, *theirs, grad, forest, rule)
    q, k, v, grad = (x.to(card) for x in (q, k, v, grad))
    ours = cuda.attention(q, k, v, forest, rule)
    agree(ours, theirs, dtype)
    agree(cuda.attention_backward(q, k, v, *ours, grad, forest, rule), back, dtype)


def test_attention_that_reads_both_ways(card: torch.device) -> None:
    forest, rule = FORESTS["documents"], Rule(0.125, False, 9)
    q, k, v = drawn(*[(437, 4, 64)] * 3, dtype=torch.bfloat16)
    agree(
        cuda.attention(q.to(card), k.to(card), v.to(card), forest, rule),
        plain.attention(q, k, v, forest, rule),
        torch.bfloat16,
    )


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("rows", [1, 37, 500])
def test_norms(card: torch.device, dtype: torch.dtype, rows: int) -> None:
    x, delta, grad, rest = drawn(*[(rows, 96)] * 4, dtype=dtype)
    weight, bias = drawn((96,), (96,), dtype=dtype)
    there = [t.to(card) for t in (x, delta, grad, rest, weight, bias)]
    for beside, on_card in ((None, None), (delta, there[1])):
        theirs = plain.rms_norm(x, weight, 1e-5, beside)
        agree(cuda.rms_norm(there[0], there[4], 1e-5, on_card), theirs, dtype)
        agree(
            cuda.rms_norm_backward(there[2], theirs.total.to(card), there[4], theirs.inverse.to(card), there[3]),
            plain.rms_norm_backward(grad, theirs.total, weight, theirs.inverse, rest),
            dtype,
        )
        for drop in (Drop(), Drop(0.3, 9)):
            centred = plain.layer_norm(x, weight, bias, 1e-5, beside, drop)
            agree(cuda.layer_norm(there[0], there[4], there[5], 1e-5, on_card, drop), centred, dtype)
            kept = [t.to(card) for t in (centred.total, centred.mean, centred.inverse)]
            agree(
                cuda.layer_norm_backward(there[2], kept[0], there[4], *kept[1:], there[3], drop=drop, weight_grad=True),
                plain.layer_norm_backward(
                    grad, centred.total, weight, centred.mean, centred.inverse, rest, drop=drop, weight_grad=True
                ),
                dtype,
            )


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("kind", [plain.SILU, plain.GELU_TANH, plain.GELU])
def test_gates(card: torch.device, dtype: torch.dtype, kind: int) -> None:
    z, up, grad = drawn(*[(50, 64)] * 3, dtype=dtype)
    on_card = [t.to(card) for t in (z, up, grad)]
    agree((cuda.gate(*on_card[:2], kind),), (plain.gate(z, up, kind),), dtype)
    ours = cuda.gate_backward(on_card[2], *on_card[:2], kind)
    agree(ours, plain.gate_backward(grad, z, up, kind), dtype)


@pytest.mark.parametrize("dtype", BOUND)
def test_rotation_and_log_probabilities_change_what_they_are_given(card: torch.device, dtype: torch.dtype) -> None:
    x, z = drawn((30, 64), (30, 300), dtype=dtype)
    cosine, sine = drawn((30, 8), (30, 8), dtype=torch.float32)
    x_card, z_card, target = x.to(card, copy=True), z.to(card, copy=True), torch.arange(30)
    cuda.rotate_(x_card, cosine.to(card), sine.to(card), 16)
    agree((x_card,), (plain.rotate_(x, cosine, sine, 16),), dtype)
    found = cuda.logprobs_(z_card, target.to(card), bias=None, softcap=5.0, keep=True)
    agree((found, z_card), (plain.logprobs_(z, target, bias=None, softcap=5.0, keep=True), z), dtype)


def test_the_card_is_chosen_and_its_rows_are_compiled(card: torch.device) -> None:
    assert kernels.of(torch.zeros(1, device=card)) is cuda
    assert cuda.reason() == ""
