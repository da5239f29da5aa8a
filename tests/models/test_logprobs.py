"""The head: log-probabilities of given tokens against `log_softmax`, values and gradients, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.models import logprobs
from luthier.models.logprobs import token_logprobs


def naive(h, W, y, bias, cap):
    z = h @ W.t() if bias is None else h @ W.t() + bias
    z = z if cap is None else cap * torch.tanh(z / cap)
    return z.log_softmax(-1).gather(1, y[:, None])[:, 0]


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(0, 700),
    trained=st.booleans(),
    with_bias=st.booleans(),
    cap=st.sampled_from([None, 3.0]),
    seed=st.integers(0, 99),
)
def test_values_and_gradients_equal_the_full_softmax(n, trained, with_bias, cap, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    h = draw(n, 8).requires_grad_()
    W = draw(31, 8).requires_grad_(trained)
    bias = draw(31).requires_grad_(trained) if with_bias else None
    y = torch.randint(0, 31, (n,), generator=generator)
    scale = draw(n)
    inputs = [t for t in (h, W, bias) if t is not None and t.requires_grad]
    ours = token_logprobs(h, W, y, bias_V=bias, softcap=cap)
    theirs = naive(h, W, y, bias, cap)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad((ours * scale).sum(), inputs),
        torch.autograd.grad((theirs * scale).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_half_precision_rows_stay_close_and_never_exceed_zero():
    generator = torch.Generator().manual_seed(0)
    h, W = torch.randn(300, 64, generator=generator), torch.randn(500, 64, generator=generator)
    y = torch.randint(0, 500, (300,), generator=generator)
    ours = token_logprobs(h.bfloat16(), W.bfloat16(), y)
    assert ours.dtype == torch.float32
    assert float(ours.max()) <= 1e-6
    exact = naive(h.double(), W.double(), y, None, None)
    # bf16 keeps 8 bits: logits near 30 are off by up to 0.1.
    torch.testing.assert_close(ours.double(), exact, rtol=0.05, atol=0.3)


@pytest.mark.parametrize("rows", [logprobs.TILE - 1, logprobs.TILE, logprobs.TILE + 1, 2 * logprobs.TILE + 1])
def test_tiles_leave_no_seam(rows):
    h = torch.randn(rows, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    W = torch.eye(6, 4, dtype=torch.float64)
    y = torch.arange(rows) % 6
    torch.testing.assert_close(token_logprobs(h, W, y), naive(h, W, y, None, None), rtol=1e-13, atol=1e-13)
