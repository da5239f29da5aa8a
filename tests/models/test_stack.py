"""Our own way through a model's layers: which models take it, and that leaving work out changes nothing. That it
computes what the model's own forward pass does is shown in tests/proof."""

import numpy as np
import pytest
import torch

from luthier.data.pack import pack
from luthier.kernels.build import library
from luthier.models import adapters
from luthier.models.attention import Layout
from luthier.models.load import Head
from luthier.models.policy import fast_stack, policy
from luthier.recipe import Full, Lora
from luthier.types import Sequence
from tests.conftest import CAUSAL, ENCODERS

pytestmark = pytest.mark.skipif(library() is None, reason="nothing was compiled here")
FAMILIES = (*CAUSAL, "bert")
HEAD = Head(3, "single_label_classification", ("a", "b", "c"))


def documents(*lengths):
    draw = np.random.default_rng(0)
    return [
        Sequence(str(i), draw.integers(3, 448, n).astype(np.int32), (draw.random(n) < 0.4).astype(np.float32), ())
        for i, n in enumerate(lengths)
    ]


def subject(tiny, family, adapter=None, dtype=torch.float64):
    head = HEAD if family in ENCODERS else None
    result = policy(tiny(family, dtype=dtype, head=head), sequence=head is not None)
    if adapter is not None:
        adapters.attach(result.model, adapter, seed=0, head=result.head.modules if result.head else ())
        for name, weight in adapters.trained(result.model).items():
            if "lora_B" in name:
                weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return result


def loss_and_gradients(policy, batch):
    policy.model.zero_grad()
    signals = policy.listen(batch)
    values = signals.scores_NC if policy.head else signals.logprobs_S
    loss = (values.double() * torch.linspace(1, 2, values.numel()).view(values.shape)).sum()
    loss.backward()
    return loss.detach(), {n: p.grad.double() for n, p in adapters.trained(policy.model).items() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_norm_that_is_not_the_models_own_is_called_and_not_read(tiny, family):
    found = subject(tiny, family)
    assert fast_stack(found.backbone) is not None
    norm = next(m for m in found.backbone.modules() if type(m).__name__.endswith(("RMSNorm", "LayerNorm")))
    handle = norm.register_forward_hook(lambda _module, _inputs, output: 2 * output)
    assert fast_stack(found.backbone) is None
    handle.remove()
    assert fast_stack(found.backbone) is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_that_nobody_reads_change_no_others(tiny, family):
    found = subject(tiny, family)
    batch = pack(documents(30, 4, 17))
    layout, rows = Layout(bounds=batch.bounds), torch.tensor([2, 29, 31, 50])
    with found.inference():
        whole = found.hidden(batch.tokens_T, batch.positions_T, layout)
        some = found.hidden(batch.tokens_T, batch.positions_T, layout, rows=rows)
    torch.testing.assert_close(some, whole[rows], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", [Lora(rank=3), Full()], ids=["lora", "full"])
def test_computing_a_layer_again_gives_the_same_bits(tiny, family, adapter):
    found = subject(tiny, family, adapter)
    batch = pack(documents(30, 4, 17))
    loss, gradients = loss_and_gradients(found, batch)
    found.recompute = True
    again, more = loss_and_gradients(found, batch)
    assert torch.equal(loss, again)
    assert gradients.keys() == more.keys()
    assert all(torch.equal(gradients[name], more[name]) for name in gradients)


@pytest.mark.parametrize("family", [*FAMILIES, "modernbert"])
def test_float32_weights_may_be_computed_with_in_bf16(tiny, family):
    exact = loss_and_gradients(subject(tiny, family, Full(), torch.float32), pack(documents(30, 4, 17)))
    found = subject(tiny, family, Full(), torch.float32)
    found.dtype = torch.bfloat16
    loss, gradients = loss_and_gradients(found, pack(documents(30, 4, 17)))
    assert loss == pytest.approx(float(exact[0]), rel=0.03)
    assert {p.dtype for p in found.model.parameters()} == {torch.float32}
    whole = torch.stack([gradient.norm() for gradient in exact[1].values()]).norm()
    for name, gradient in gradients.items():
        # Some gradients are nothing but rounding: a bias on the keys moves no weight of attention.
        size = max(exact[1][name].norm(), whole / 100)
        assert (gradient - exact[1][name]).norm() / size < 0.15, name


def test_a_trained_embedding_gathers_what_each_of_its_rows_learns(tiny):
    found = subject(tiny, "llama-untied", Full())
    batch = pack(documents(12, 5))
    _, gradients = loss_and_gradients(found, batch)
    ours = gradients["model.embed_tokens.weight"]
    untouched = torch.ones(len(ours), dtype=torch.bool)
    untouched[batch.tokens_T] = False
    assert not ours[untouched].any()
    assert ours[~untouched].any()
    twice = [batch, batch]
    found.model.zero_grad()
    for one in twice:
        signals = found.listen(one)
        values = signals.logprobs_S
        (values * torch.linspace(1, 2, len(values))).sum().backward()
    torch.testing.assert_close(found.model.model.embed_tokens.weight.grad, 2 * ours)
