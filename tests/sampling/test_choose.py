"""How a token is chosen, against what transformers' own chain of processors makes of the same logits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from luthier.kernels import native, plain
from luthier.kernels.build import library
from luthier.sampling.choose import Decoding, choose, truncated, uniforms

SETTINGS = [(1.0, None, 1.0), (0.7, 20, 1.0), (1.3, None, 0.8), (1.0, 30, 0.9), (2.0, 5, 0.3), (1.0, 1, 1.0)]
compiled = pytest.mark.skipif(library() is None, reason="no C++ compiler")


def random_logits(rows, columns, seed=0, spread=2.0):
    return spread * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_transformers(logits, temperature, top_k, top_p):
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k is not None:
        chain.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chain.append(TopPLogitsWarper(top_p))
    return chain(torch.zeros(len(logits), 1, dtype=torch.long), logits.clone()).softmax(-1)


def decoding(temperature, top_k, top_p):
    return Decoding(1, frozenset(), temperature=temperature, top_k=top_k, top_p=top_p)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
@pytest.mark.parametrize("columns", [40, 1000])
@pytest.mark.parametrize("spread", [0.05, 2.0])
def test_what_is_drawn_from_is_that_of_transformers(temperature, top_k, top_p, columns, spread):
    # A spread of 0.05 is so flat that top-p needs more than the tokens that are sorted first.
    logits = random_logits(8, columns, spread=spread)
    found = truncated(logits / temperature, decoding(temperature, top_k, top_p)).softmax(-1)
    assert torch.allclose(found, by_transformers(logits, temperature, top_k, top_p), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), SETTINGS)
def test_draws_follow_that_distribution(temperature, top_k, top_p):
    count = 20_000
    logits = random_logits(1, 60)
    expected = count * by_transformers(logits, temperature, top_k, top_p)[0]
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = choose(logits.repeat(count, 1), decoding(temperature, top_k, top_p), uniform)
    observed = torch.bincount(drawn.tokens_B, minlength=60).double()
    assert float(observed[expected == 0].sum()) == 0
    often = expected >= 10
    pairs = [(observed[often], expected[often]), (observed[~often].sum()[None], expected[~often].sum()[None])]
    seen, wanted = (np.concatenate([pair[k].numpy() for pair in pairs]) for k in (0, 1))
    if wanted[-1] < 10:
        seen[-2:], wanted[-2:] = [0, seen[-2:].sum()], [0, wanted[-2:].sum()]
        seen, wanted = (np.delete(x, -2) for x in (seen, wanted))
    assert len(seen) == 1 or chisquare(seen, wanted).pvalue > 1e-3
    # Recorded is the distribution at the temperature, before anything was cut off.
    whole = (logits / temperature).log_softmax(-1)[0]
    assert torch.allclose(drawn.logprobs_B, whole[drawn.tokens_B], rtol=1e-12)


def test_the_likeliest_of_equals_is_the_first():
    logits = torch.zeros(2, 50)
    logits[1, [17, 30, 49]] = 3
    chosen = choose(logits.clone(), Decoding(1, frozenset()), None)
    assert chosen.tokens_B.tolist() == [0, 17]
    assert torch.allclose(chosen.logprobs_B, logits.log_softmax(-1)[[0, 1], [0, 17]])


@compiled
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    cut=st.floats(0, 0.9),
    seed=st.integers(0, 10**6),
    wide=st.booleans(),
)
def test_a_draw_in_cpp_is_the_definition(rows, columns, cut, seed, wide):
    logits = random_logits(rows, columns, seed, spread=3)
    if not wide:
        logits = logits.float()
    generator = torch.Generator().manual_seed(seed)
    logits[torch.rand(logits.shape, generator=generator) < cut] = -torch.inf
    logits[:, 0] = 0
    u = torch.rand(rows, generator=generator, dtype=torch.float64)
    assert torch.equal(native.draw(logits), plain.draw(logits))
    found = native.draw(logits, u)
    assert torch.isfinite(logits.gather(1, found[:, None])).all()
    # Rounding decides where the sum passes u as it does between two tokens.
    running = logits.double().softmax(1).cumsum(1)
    after = running.gather(1, found[:, None])[:, 0]
    before = after - logits.double().softmax(1).gather(1, found[:, None])[:, 0]
    slack = 1e-12 if wide else 1e-5
    assert (before <= u + slack).all()
    assert (u <= after + slack).all()


def test_the_ends_of_the_range_draw_the_first_and_the_last_token():
    logits = torch.full((2, 40), -torch.inf)
    logits[:, [3, 20, 31]] = 0
    u = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert choose(logits, decoding(1.0, None, 1.0), u).tokens_B.tolist() == [3, 31]


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 16, 17, 40, 64, 65])
@pytest.mark.parametrize("outputs", [16, 41, 200])
def test_the_product_of_few_rows_is_the_definition(dtype, rows, outputs):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 48, generator=generator, dtype=torch.float64).to(dtype) for n in (rows, outputs))
    found = native.linear(x, weight)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Against exact sums of the same numbers: what is rounded in between is the definition's own matter.
    expected = x.double() @ weight.double().t()
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-4 if rows <= 64 else 0.2}[dtype]
    assert float((found - expected).abs().max()) < tolerance


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_of_a_product_does_not_depend_on_its_neighbours(dtype):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 64, generator=generator, dtype=torch.float64).to(dtype) for n in (64, 96))
    # Up to sixteen rows sums are taken in two parts.
    for rows in (1, 7):
        assert torch.equal(native.linear(x[:rows], weight), native.linear(x[:16], weight)[:rows])
    for rows in (20, 33, 50):
        assert torch.equal(native.linear(x[:rows], weight), native.linear(x, weight)[:rows])


def test_uniform_numbers_are_those_of_the_completion():
    sampled = Decoding(5, frozenset(), temperature=1.0, seed=4)
    assert uniforms(Decoding(5, frozenset()), 0, 0) is None
    assert torch.equal(uniforms(sampled, 3, 1), uniforms(sampled, 3, 1))
    different = {tuple(uniforms(sampled, i, k).tolist()) for i in range(3) for k in range(3)}
    assert len(different) == 9
