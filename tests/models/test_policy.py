"""Packed rows and the fused adapter: no leak to a neighbour by one bit, and the gradients of the formula. Against plain
transformers they are held by the checks that users run, in tests/proof."""

import numpy as np
import pytest
import torch

from luthier.data.pack import pack
from luthier.models import adapters, lora
from luthier.models.policy import policy, verify
from luthier.objectives import OBJECTIVES
from luthier.recipe import Lora
from luthier.types import Sequence

WRITERS = ["llama", "llama-untied", "qwen2", "gemma3", "gpt2"]


def documents(lengths, vocabulary, *, seed=0, labels=0, share=0.5):
    rng = np.random.default_rng(seed)
    found = []
    for n in lengths:
        weights = rng.choice([0.0, 0.5, 1.0], size=n, p=[1 - share, share / 2, share / 2]).astype(np.float32)
        label = (float(rng.integers(labels)),) if labels else ()
        found.append(Sequence("x", rng.integers(3, vocabulary, n).astype(np.int32), weights, label))
    return found


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def clear(model):
    for p in model.parameters():
        p.grad = None


def assert_same(ours, naive, tolerance=1e-11):
    assert ours.keys() == naive.keys()
    for name in naive:
        torch.testing.assert_close(ours[name], naive[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("family", WRITERS)
def test_a_document_does_not_change_its_neighbour_by_one_bit(tiny, family):
    model = policy(tiny(family))
    first, second = documents([14, 14], model.model.config.vocab_size, seed=1)
    other = documents([14], model.model.config.vocab_size, seed=2)[0]
    with model.inference():
        alone = model.listen(pack([first, second]))
        changed = model.listen(pack([Sequence("y", other.tokens_T, first.weights_T), second]))
    count = int((second.weights_T[1:] != 0).sum())
    assert torch.equal(alone.logprobs_S[-count:], changed.logprobs_S[-count:])


@pytest.mark.parametrize("family", WRITERS)
def test_the_own_forward_pass_agrees(tiny, family):
    assert verify(policy(tiny(family, dtype=torch.float64))) < 1e-6


def test_a_planted_leak_is_caught(tiny):
    from luthier.errors import ModelError

    model = tiny("llama")
    leaky = policy(model)
    layer = model.model.layers[0]
    layer.register_forward_hook(lambda _m, _i, out: out + 0.5 * out.mean(1, keepdim=True))
    with pytest.raises(ModelError, match=r"see each other|does not reproduce"):
        verify(leaky)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_fused_adapter_has_the_gradients_of_the_formula(tiny, family, rslora):
    model = tiny(family, dtype=torch.float64)
    settings_ = Lora(rank=3, alpha=7, rslora=rslora)
    adapters.attach(model, settings_, seed=0)
    scale = 7 / (3**0.5 if rslora else 3)
    for path, layer in adapters.lora_layers(model):
        assert layer.scale == pytest.approx(scale), path
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    sequences = documents([11, 6], model.config.vocab_size)
    batch = pack(sequences)
    loss = OBJECTIVES["supervised"].loss(policy(model).listen(batch), batch)
    loss.backward()
    fused = gradients(model)
    clear(model)

    def literal(self, x):
        update = x @ self.lora_A.t() @ self.lora_B.t()
        return self.base(x) + self.scale * update

    class Literal(lora.LoraLinear):
        forward = literal

    for _, layer in adapters.lora_layers(model):
        layer.__class__ = Literal
    naive = OBJECTIVES["supervised"].loss(policy(model).listen(batch), batch)
    naive.backward()
    torch.testing.assert_close(loss, naive, rtol=1e-12, atol=1e-12)
    assert_same(gradients(model), fused)
    assert all(".lora_" in name for name in fused), "the base stays frozen"


def test_an_adapter_changes_nothing_at_the_start_and_nothing_when_left_out(tiny):
    model = tiny("llama", dtype=torch.float64)
    batch = pack(documents([13, 8], model.config.vocab_size))
    subject = policy(model)
    with subject.inference():
        before = subject.listen(batch).logprobs_S
        adapters.attach(model, Lora(rank=4), seed=0)
        assert torch.equal(subject.listen(batch).logprobs_S, before)
        for _, layer in adapters.lora_layers(model):
            torch.nn.init.normal_(layer.lora_B)
        assert not torch.allclose(subject.listen(batch).logprobs_S, before)
    with subject.inference(base=True):
        assert torch.equal(subject.listen(batch).logprobs_S, before)
