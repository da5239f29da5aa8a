"""The compiled inner loops against their definition: equal to float64 rounding, whatever the sizes, masks and trees."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.kernels import native, plain
from luthier.kernels.build import SWITCH, library, reason
from luthier.kernels.plain import GELU, GELU_TANH, SILU, Drop, Rule, Segments

pytestmark = pytest.mark.skipif(library() is None, reason=f"nothing was compiled: {reason()}")

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
TYPES = st.sampled_from(list(BOUNDS))
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 70))


def close(ours, naive):
    for a, b in zip(ours, naive, strict=True):
        if b is None:
            assert a is None
            continue
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        bound = BOUNDS[a.dtype] * max(1.0, float(b.double().abs().max()))
        assert float((a.double() - b.double()).abs().max()) <= bound


def draw(seed, dtype, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)


@given(TYPES, SIZES, st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_root_mean_square_norm(dtype, size, residual, seed):
    x, delta, g, rest = (draw(seed + i, dtype, *size) for i in range(4))
    w, delta = draw(seed, dtype, size[1]), delta if residual else None
    ours, naive = (k.rms_norm(x, w, 1e-5, delta) for k in (native, plain))
    close(ours, naive)
    for keep in (rest, None):
        arguments = (g, naive.total, w, naive.inverse, keep)
        close(*(k.rms_norm_backward(*arguments, weight_grad=residual) for k in (native, plain)))


@given(
    TYPES,
    st.tuples(st.integers(1, 9), st.integers(4, 70)),
    st.booleans(),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_layer_norm_with_dropout(dtype, size, residual, p, seed):
    x, delta, g, rest = (draw(seed + i, dtype, *size) for i in range(4))
    w, b, drop = draw(seed, dtype, size[1]), draw(seed + 9, dtype, size[1]), Drop(p, seed)
    ours, naive = (k.layer_norm(x, w, b, 1e-5, delta if residual else None, drop) for k in (native, plain))
    close(ours, naive)
    arguments = (g, naive.total, w, naive.mean, naive.inverse, rest)
    close(*(k.layer_norm_backward(*arguments, drop=drop, weight_grad=True) for k in (native, plain)))


@pytest.mark.parametrize("kind", [SILU, GELU_TANH, GELU])
@given(dtype=TYPES, size=SIZES, gated=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_gate(kind, dtype, size, gated, seed):
    z, up, g = (2 * draw(seed + i, dtype, *size) for i in range(3))
    up = up if gated else None
    close(*([k.gate(z, up, kind)] for k in (native, plain)))
    close(*(k.gate_backward(g, z, up, kind, product=gated) for k in (native, plain)))


@pytest.mark.parametrize("kind", [SILU, GELU_TANH, GELU])
def test_the_slope_of_a_gate_is_that_of_autograd(kind):
    z, up = (draw(i, torch.float64, 5, 40).requires_grad_() for i in range(2))
    out = plain.gate(z, up, kind)
    g = draw(7, torch.float64, 5, 40)
    _, dz, dup = plain.gate_backward(g, z.detach(), up.detach(), kind)
    close([dz, dup], torch.autograd.grad(out, (z, up), g))


@given(TYPES, st.integers(1, 9), st.integers(1, 3), st.integers(1, 20), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_rotation_and_back(dtype, tokens, heads, half, seed):
    size = 2 * half + seed % 3
    x, angle = draw(seed, dtype, tokens, heads * size), draw(seed, torch.float64, tokens, half)
    angle = angle.to(torch.float64 if dtype == torch.float64 else torch.float32)
    turned = [k.rotate_(x.clone(), angle.cos(), angle.sin(), size) for k in (native, plain)]
    close(turned[:1], turned[1:])
    back = native.rotate_(turned[0], angle.cos(), angle.sin(), size, back=True)
    assert float((back.double() - x.double()).abs().max()) <= 20 * BOUNDS[dtype]


@given(TYPES, st.tuples(st.integers(1, 5), st.integers(2, 200)), st.booleans(), st.booleans(), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_log_probabilities_and_their_gradient(dtype, size, capped, biased, seed):
    z, cap = 3 * draw(seed, dtype, *size), 4.0 if capped else None
    bias = draw(seed, dtype, size[1]) if biased else None
    target = torch.randint(0, size[1], (size[0],), generator=torch.Generator().manual_seed(seed))
    tiles = [z.clone(), z.clone()]
    logprobs = [
        k.logprobs_(tile, target, bias=bias, softcap=cap, keep=True)
        for k, tile in zip((native, plain), tiles, strict=True)
    ]
    close(logprobs[:1], logprobs[1:])
    close(tiles[:1], tiles[1:])
    wanted = z.double().requires_grad_()
    values = wanted if bias is None else wanted + bias.double()
    values = values if cap is None else cap * torch.tanh(values / cap)
    naive = values.log_softmax(1).gather(1, target[:, None]).sum()
    assert torch.allclose(logprobs[1].double().sum(), naive, atol=1e-2 if dtype == torch.bfloat16 else 1e-4)
    (slope,) = torch.autograd.grad(naive, wanted)
    assert float((tiles[1].double() - slope).abs().max()) <= 2 * BOUNDS[dtype]


@st.composite
def forests(draw_from):
    """Segments with parents before them, each tree in one piece."""
    lengths, parents, stack = [], [], []
    for i in range(draw_from(st.integers(1, 7))):
        lengths.append(draw_from(st.integers(1, 150)))
        depth = draw_from(st.integers(0, len(stack)))
        stack = [*stack[:depth], i]
        parents.append(stack[-2] if depth else -1)
    bounds, starts = [0], []
    for length, parent in zip(lengths, parents, strict=True):
        bounds.append(bounds[-1] + length)
        starts.append(starts[parent] + lengths[parent] if parent >= 0 else 0)
    return bounds, parents, starts


@given(TYPES, forests(), st.booleans(), st.sampled_from([0, 20]), st.sampled_from([0.0, 0.25]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_attention_over_trees(dtype, forest, causal, window, p, seed):
    bounds, parents, starts = forest
    if not causal:
        parents, starts = [-1] * len(parents), [0] * len(starts)
    segments = Segments(*(torch.tensor(x) for x in (bounds, parents, starts)))
    q, g = (draw(seed + i, dtype, bounds[-1], 4, 32) for i in range(2))
    k, v = (draw(seed + i, dtype, bounds[-1], 2, 32) for i in range(2, 4))
    rule = Rule(0.2, causal, window, Drop(p, seed))
    ours, naive = (kernel.attention(q, k, v, segments, rule) for kernel in (native, plain))
    close(ours, naive)
    close(*(kernel.attention_backward(q, k, v, *naive, g, segments, rule) for kernel in (native, plain)))


def test_the_definition_of_attention_is_softmax_by_autograd():
    bounds, parents, starts = [0, 5, 9, 12, 20], [-1, 0, 0, -1], [0, 5, 5, 0]
    segments = Segments(*(torch.tensor(x) for x in (bounds, parents, starts)))
    q, k, v, g = (draw(i, torch.float64, 20, 2, 16) for i in range(4))
    out, lse = plain.attention(q, k, v, segments, Rule(0.25))
    documents = [(range(9), range(9)), ([*range(5), *range(9, 12)],) * 2, (range(12, 20),) * 2]
    leaves = [x.requires_grad_() for x in (q, k, v)]
    expected = torch.zeros_like(out)
    for rows, _ in documents:
        a, b, c = (x[list(rows)].transpose(0, 1) for x in leaves)
        scores = (a @ b.transpose(1, 2)) * 0.25
        scores = scores.masked_fill(torch.ones(len(rows), len(rows)).triu(1).bool(), -torch.inf)
        expected = expected.index_copy(0, torch.tensor(list(rows)), (scores.softmax(-1) @ c).transpose(0, 1))
    close([out], [expected.detach()])
    gradients = torch.autograd.grad(expected, leaves, g)
    close(plain.attention_backward(*(x.detach() for x in leaves), out, lse, g, segments, Rule(0.25)), gradients)


def test_the_result_does_not_depend_on_the_threads():
    segments = Segments(torch.tensor([0, 90, 130, 200]), torch.tensor([-1, 0, -1]), torch.tensor([0, 90, 0]))
    q, k, v, g = (draw(i, torch.bfloat16, 200, h, 32) for i, h in enumerate((4, 2, 2, 4)))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out, lse = native.attention(q, k, v, segments, Rule(0.2))
            gradients = native.attention_backward(q, k, v, out, lse, g, segments, Rule(0.2))
            results.append((out, lse, *gradients))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_what_stands_in_a_segment_of_its_own_changes_nothing_elsewhere():
    segments = Segments(torch.tensor([0, 70, 140]), torch.tensor([-1, -1]), torch.tensor([0, 0]))
    q, k, v = (draw(i, torch.bfloat16, 140, 2, 32) for i in range(3))
    first, _ = native.attention(q, k, v, segments, Rule(0.2))
    k[:70], v[:70] = 5.0, -7.0
    second, _ = native.attention(q, k, v, segments, Rule(0.2))
    assert torch.equal(first[70:], second[70:])
    assert not torch.equal(first[:70], second[:70])


@pytest.mark.slow
def test_without_a_compiler_torch_computes_and_the_reason_is_known():
    code = "import torch; from luthier import kernels as k; print(k.of(torch.ones(1)).__name__, k.build.reason())"
    for switch, word in (({SWITCH: "plain"}, SWITCH), ({"CXX": "/nonexistent/compiler"}, "/nonexistent/compiler")):
        out = subprocess.run([sys.executable, "-c", code], env={**os.environ, **switch}, capture_output=True, text=True)
        assert out.stdout.startswith("luthier.kernels.plain")
        assert word in out.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_a_compiler_that_is_named_as_that_of_c_will_do(tmp_path):
    code = "import torch; from luthier import kernels as k; print(k.of(torch.ones(1)).__name__, k.build.reason())"
    env = {**os.environ, "CXX": "gcc", "LUTHIER_CACHE": str(tmp_path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert out.stdout.split() == ["luthier.kernels.native"]
