"""A frozen base in 8 and in 4 bits: its errors, its gradients, its files, and what it saves."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError, RecipeError
from luthier.export.merge import merge
from luthier.models import adapters
from luthier.models.attention import Layout
from luthier.models.load import load_model
from luthier.models.peft_files import load_adapter, save_adapter
from luthier.models.policy import policy
from luthier.models.quantised import NF4, QuantisedLinear, quantised, rounded, to_nf4, weight_bytes
from luthier.recipe import Full, Lora

TOKENS = torch.tensor([5, 17, 300, 42, 99, 210, 7, 8])
KINDS = ["int8", "nf4"]


def logits(model):
    subject = policy(model)
    with subject.inference():
        return subject.next_logits(
            subject.hidden(TOKENS, torch.arange(len(TOKENS)), Layout(bounds=(0, len(TOKENS)))),
        )


def adapted(tiny, kind, family="llama", adapter=None, dtype=torch.float32):
    model = tiny(family, dtype=dtype)
    adapters.attach(model, adapter or Lora(rank=4), seed=0, quantise=kind)
    generator = torch.Generator().manual_seed(1)
    for _, layer in adapters.lora_layers(model):
        layer.lora_B.data += 0.05 * torch.randn(layer.lora_B.shape, generator=generator, dtype=layer.lora_B.dtype)
    return model


@settings(deadline=None, max_examples=40)
@given(outputs=st.integers(1, 40), inputs=st.integers(1, 40), seed=st.integers(0, 99), spread=st.floats(1e-6, 1e4))
def test_nf4_takes_the_nearest_of_its_sixteen_values_in_each_block(outputs, inputs, seed, spread):
    weight = spread * torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    weight = weight.bfloat16().float()
    flat, found = weight.reshape(-1), rounded(weight, "nf4").reshape(-1)
    for at in range(0, len(flat), 64):
        block, scale = flat[at : at + 64], flat[at : at + 64].abs().max()
        levels = scale * torch.tensor(NF4)
        nearest = (block[:, None] - levels).abs().amin(1)
        torch.testing.assert_close((block - found[at : at + 64]).abs(), nearest, rtol=1e-4, atol=float(scale) * 1e-6)


@settings(deadline=None, max_examples=40)
@given(outputs=st.integers(1, 20), inputs=st.integers(1, 40), seed=st.integers(0, 99))
def test_int8_is_within_half_a_step_of_each_output(outputs, inputs, seed):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed)).bfloat16().float()
    step = weight.abs().amax(1, keepdim=True) / 127
    assert ((weight - rounded(weight, "int8")).abs() <= step * 0.5001).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    assert torch.equal(rounded(torch.zeros(3, 70), kind), torch.zeros(3, 70))


def test_nf4_of_a_normal_weight_has_the_known_error():
    """Blocks of 64 normal weights: a root mean square error of about 0.09 of their spread."""
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    assert (weight - rounded(weight, "nf4")).square().mean().sqrt() == pytest.approx(0.0925, rel=0.03)


def test_sizes_in_bytes():
    packed, scales = to_nf4(torch.randn(576, 1536))
    assert packed.numel() == 576 * 1536 // 2
    assert scales.numel() == 576 * 1536 // 64
    assert weight_bytes(quantised(nn.Linear(256, 128, bias=False), "nf4")) == 128 * 256 // 2 + 128 * 256 // 64 * 4
    assert weight_bytes(quantised(nn.Linear(256, 128, bias=False), "int8")) == 128 * 256 + 128 * 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_is_a_linear_layer_with_the_rounded_weight(kind):
    torch.manual_seed(0)
    conv = Conv1D(7, 5)
    torch.nn.init.normal_(conv.weight)
    for layer in (nn.Linear(5, 7).double(), nn.Linear(5, 7, bias=False).double(), conv.double()):
        layer.requires_grad_(False)
        new = quantised(layer, kind)
        weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
        assert not list(new.parameters())
        x = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
        y = nn.functional.linear(x, rounded(weight, kind).double(), layer.bias)
        torch.testing.assert_close(new(x), y, rtol=1e-12, atol=1e-12)
        (expected,) = torch.autograd.grad(y.square().sum(), x)
        (found,) = torch.autograd.grad(new(x).square().sum(), x)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        opened = new.opened()
        assert type(opened) is type(layer)
        assert opened.weight.shape == layer.weight.shape
        torch.testing.assert_close(opened(x), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2"])
@pytest.mark.parametrize("dora", [False, True])
def test_an_adapter_on_a_quantised_base_survives_its_files_and_its_merge(tiny, tmp_path, kind, family, dora):
    adapter = Lora(rank=4, dora=dora)
    model = adapted(tiny, kind, family, adapter)
    assert all(isinstance(layer.base, QuantisedLinear) for _, layer in adapters.lora_layers(model))
    expected = logits(model)
    save_adapter(tmp_path, model, adapter, base="a base", quantise=kind)
    reread = tiny(family)
    load_adapter(tmp_path, reread)
    assert torch.equal(logits(reread), expected), "the base is quantised again, as it was"
    merge(policy(model), [TOKENS.tolist()])
    assert not any(isinstance(m, QuantisedLinear) for m in model.modules())
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_without_an_adapter_are_quantised_too_and_the_output_is_not(tiny, kind):
    model = adapted(tiny, kind, "llama-untied", Lora(rank=2, targets=["q_proj"], modules_to_save=["norm"]))
    left = [path for path, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert left == ["lm_head"]
    assert set(adapters.trained(model)) == {
        "model.norm.weight",
        *(f"model.layers.{i}.self_attn.q_proj.lora_{x}" for i in range(2) for x in "AB"),
    }


def test_bf16_and_float32_give_the_same_bytes(tiny):
    half, single = (adapted(tiny, "nf4", dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    for (_, a), (_, b) in zip(adapters.lora_layers(half), adapters.lora_layers(single), strict=True):
        assert torch.equal(a.base.packed, b.base.packed)
        assert torch.equal(a.base.scales, b.base.scales)


@pytest.mark.parametrize("kind", KINDS)
def test_loftq_begins_nearer_to_the_model_than_rounding(tiny, tmp_path, kind):
    base = logits(tiny("llama"))
    plain, corrected = tiny("llama"), tiny("llama")
    adapters.attach(plain, Lora(rank=8), seed=0, quantise=kind)
    adapter = Lora(rank=8, init="loftq", loftq_iterations=5)
    adapters.attach(corrected, adapter, seed=0, quantise=kind)
    gap = (logits(corrected) - base).abs().mean()
    assert gap < 0.8 * (logits(plain) - base).abs().mean()
    # What is written belongs to the base as it was, and only the update is in it.
    save_adapter(tmp_path, corrected, adapter, base="a base", quantise=kind)
    reread = tiny("llama")
    load_adapter(tmp_path, reread)
    torch.testing.assert_close(logits(reread), base, rtol=1e-4, atol=1e-5)


def test_quantised_weights_are_not_trained(tiny):
    with pytest.raises(RecipeError, match="cannot be trained"):
        adapters.attach(tiny("llama"), Full(), seed=0, quantise="nf4")


def test_a_weight_that_is_no_number_is_refused():
    layer = nn.Linear(3, 3)
    layer.weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match="not a finite number"):
        quantised(layer, "nf4")


@pytest.mark.models
def test_a_real_model_keeps_less_than_half_of_its_bytes(smollm2):
    model = load_model(smollm2, head=None, dtype=torch.bfloat16, seed=0).model
    before = weight_bytes(model)
    adapters.attach(model, Lora(rank=8), seed=0, quantise="nf4")
    trained = sum(p.numel() * p.element_size() for p in adapters.trained(model).values())
    assert (weight_bytes(model) - trained) / before < 0.45
