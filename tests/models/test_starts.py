"""How adapters begin, DoRA, and LoRA+: the formulas of the papers, and what PEFT makes of the same settings."""

import peft
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.pack import pack
from luthier.errors import RecipeError
from luthier.export.merge import merge
from luthier.models import adapters, lora, starts
from luthier.models.attention import Layout
from luthier.models.peft_files import load_adapter, save_adapter
from luthier.models.policy import policy
from luthier.models.quantised import rounded
from luthier.objectives import OBJECTIVES
from luthier.recipe import Lora, Training
from luthier.training.loop import train
from luthier.training.optim import adamw
from tests.chain import Steps, sequence

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
TOKENS = torch.tensor([5, 17, 300, 42, 99, 210, 7, 8, 64, 128, 33])
MOVES_THE_BASE = ["pissa", "pissa_niter_16", "olora"]
FAMILIES = ["llama", "qwen2", "gpt2"]


def logits(model):
    subject = policy(model)
    with subject.inference():
        return subject.next_logits(
            subject.hidden(TOKENS, torch.arange(len(TOKENS)), Layout(bounds=(0, len(TOKENS)))),
        )


def theirs(model):
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS[None], attention_mask=torch.ones(1, len(TOKENS), dtype=torch.long)).logits[
            0
        ]


def trained_a_little(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.trained(model).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def attached(tiny, adapter, family="llama", dtype=torch.float32, quantise="none"):
    model = tiny(family, dtype=dtype)
    adapters.attach(model, adapter, seed=0, quantise=quantise)
    return model


# Starts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", *MOVES_THE_BASE])
def test_every_start_leaves_the_model_as_it_was(tiny, family, init, dora):
    base = logits(tiny(family, dtype=torch.float64))
    model = attached(tiny, Lora(rank=4, alpha=6, init=init, dora=dora), family, torch.float64)
    torch.testing.assert_close(logits(model), base, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("init", MOVES_THE_BASE)
def test_what_left_the_base_comes_back_when_saved(tiny, tmp_path, family, init, dora, rslora):
    adapter = Lora(rank=4, alpha=6, init=init, dora=dora, rslora=rslora)
    model = trained_a_little(attached(tiny, adapter, family))
    expected = logits(model)
    base = logits(tiny(family))
    assert (expected - base).abs().max() > 1e-2
    with adapters.disabled(model):
        torch.testing.assert_close(logits(model), base, rtol=1e-4, atol=1e-5)
    save_adapter(tmp_path, model, adapter, base="a base")
    wrapper = peft.PeftModel.from_pretrained(tiny(family), tmp_path)
    assert wrapper.peft_config["default"].r == 8, "twice the rank"
    torch.testing.assert_close(theirs(wrapper), expected, rtol=1e-4, atol=2e-5)
    ours = tiny(family)
    load_adapter(tmp_path, ours)
    torch.testing.assert_close(logits(ours), expected, rtol=1e-4, atol=2e-5)
    assert merge(policy(model), [TOKENS.tolist()]).largest < 2e-5
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_start_is_that_of_peft(tiny, init):
    """Singular vectors and columns have no sign of their own, so what is compared is their product and the base."""
    ours = attached(tiny, Lora(rank=4, alpha=6, init=init))
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=init)
    wrapper = peft.get_peft_model(tiny("llama"), config).get_base_model()
    for path, layer in adapters.lora_layers(ours):
        other = wrapper.get_submodule(path)
        product = other.lora_B["default"].weight @ other.lora_A["default"].weight
        torch.testing.assert_close(layer.lora_B @ layer.lora_A, product, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.base.weight, other.base_layer.weight, rtol=1e-4, atol=1e-5)


def test_pissa_takes_the_largest_singular_values():
    weight = torch.randn(24, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(weight)
    for init in ("pissa", "pissa_niter_16"):
        found = starts.begin(
            weight, init, rank=5, scale=2.0, quantise="none", iterations=1, generator=torch.Generator().manual_seed(0)
        )
        rest = torch.linalg.svdvals(found.rest)
        torch.testing.assert_close(rest[:11], values[5:], rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(found.A.norm(dim=1), found.B.norm(dim=0), rtol=1e-8, atol=1e-8)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), rank=st.integers(1, 6), kind=st.sampled_from(["nf4", "int8"]))
def test_loftq_brings_base_and_adapter_nearer_to_the_weight_than_rounding_alone(seed, rank, kind):
    weight = torch.randn(32, 24, generator=torch.Generator().manual_seed(seed))
    errors = []
    for iterations in (1, 3):
        found = starts.begin(
            weight, "loftq", rank=rank, scale=2.0, quantise=kind, iterations=iterations, generator=torch.Generator()
        )
        errors.append((weight - rounded(found.rest, kind) - 2.0 * found.B @ found.A).norm())
    assert errors[0] < (weight - rounded(weight, kind)).norm()
    assert errors[1] < (weight - rounded(weight, kind)).norm()


def test_loftq_without_a_quantised_base_and_odd_or_too_large_ranks_are_refused(tiny):
    with pytest.raises(RecipeError, match="quantised base"):
        attached(tiny, Lora(rank=4, init="loftq"))
    with pytest.raises(RecipeError, match="even rank"):
        attached(tiny, Lora(rank=3, init="orthogonal"))
    with pytest.raises(RecipeError, match="fewer than `rank`"):
        attached(tiny, Lora(rank=64, init="pissa"))


# DoRA


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_dora_has_the_outputs_and_gradients_of_peft(tiny, family, dtype):
    adapter = Lora(rank=3, alpha=7, dora=True)
    model = trained_a_little(attached(tiny, adapter, family, dtype))
    conv = family == "gpt2"
    config = peft.LoraConfig(r=3, lora_alpha=7, use_dora=True, target_modules="all-linear", fan_in_fan_out=conv)
    other = peft.get_peft_model(tiny(family, dtype=dtype), config, autocast_adapter_dtype=False).get_base_model()
    pairs = []
    for path, layer in adapters.lora_layers(model):
        theirs_ = other.get_submodule(path)
        pairs += [
            (layer.lora_A, theirs_.lora_A["default"].weight),
            (layer.lora_B, theirs_.lora_B["default"].weight),
            (layer.lora_magnitude_vector, theirs_.lora_magnitude_vector["default"].weight),
        ]
    for mine, his in pairs:
        his.data.copy_(mine.data)
    # Both by our attention: transformers' own softmax is in float32 whatever the model computes in.
    mine, his = (
        subject.next_logits(subject.hidden(TOKENS, torch.arange(len(TOKENS)), Layout(bounds=(0, len(TOKENS)))))
        for subject in (policy(model), policy(other))
    )
    tight = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 2e-4, "atol": 2e-5}
    torch.testing.assert_close(mine, his, **tight)
    for output in (mine, his):
        output.log_softmax(-1)[:, 7].sum().backward()
    for ours, their in pairs:
        torch.testing.assert_close(ours.grad, their.grad, **tight)


def test_dora_with_dropout_is_that_of_peft(tiny):
    model = trained_a_little(
        attached(tiny, Lora(rank=3, dora=True, dropout=0.5, targets=["q_proj"]), dtype=torch.float64)
    )
    layer = next(layer for _, layer in adapters.lora_layers(model))
    config = peft.LoraConfig(r=3, lora_alpha=32, use_dora=True, target_modules=["q_proj"], lora_dropout=0.5)
    other = peft.get_peft_model(tiny("llama", dtype=torch.float64), config, autocast_adapter_dtype=False)
    his = other.get_base_model().model.layers[0].self_attn.q_proj
    his.lora_A["default"].weight.data.copy_(layer.lora_A.data)
    his.lora_B["default"].weight.data.copy_(layer.lora_B.data)
    his.lora_magnitude_vector["default"].weight.data.copy_(layer.lora_magnitude_vector.data)
    x = torch.randn(5, 64, dtype=torch.float64)
    found = []
    for one in (layer.train(), his.train()):
        torch.manual_seed(0)
        found.append(one(x))
        found[-1].square().sum().backward()
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(layer.lora_A.grad, his.lora_A["default"].weight.grad, rtol=1e-9, atol=1e-9)
    grad = his.lora_magnitude_vector["default"].weight.grad
    torch.testing.assert_close(layer.lora_magnitude_vector.grad, grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_dora_merges(tiny, family):
    model = trained_a_little(attached(tiny, Lora(rank=4, dora=True), family))
    assert merge(policy(model), [TOKENS.tolist()]).largest < 2e-5


# LoRA+


def test_plus_moves_b_by_a_multiple_of_the_rate(tiny):
    """AdamW's first step is the rate in every entry, whatever the gradient's size."""
    model = attached(tiny, Lora(rank=2, plus=16, dora=True))
    training = Training(rate=1e-3, schedule="constant", warmup=0, clip=0)
    optimizer = adamw(adapters.trained(model), training, rate=1e-3, plus=16)
    for _, layer in adapters.lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    before = {name: p.detach().clone() for name, p in adapters.trained(model).items()}
    rows = Steps([[[sequence([5, 17, 300, 42, 99], [0, 0, 1, 1, 1])]]])
    (report,) = train(policy(model), rows, OBJECTIVES["supervised"], optimizer, training)
    assert report.rate == 1e-3
    for name, parameter in adapters.trained(model).items():
        moved = float((parameter.detach() - before[name]).abs().median())
        assert moved == pytest.approx(1.6e-2 if name.endswith("lora_B") else 1e-3, rel=0.05), name


def test_fused_parts_compute_the_layer(tiny):
    """What a fused block is told is enough to compute what the layer computes."""
    for adapter, quantise in ((Lora(rank=3), "none"), (Lora(rank=3, dora=True), "nf4"), (Lora(rank=3), "int8")):
        for family in FAMILIES:
            model = trained_a_little(attached(tiny, adapter, family, quantise=quantise))
            for _, layer in adapters.lora_layers(model):
                told = lora.parts(layer)
                weight = lora.dense_weight(told.base)
                x = torch.randn(3, weight.shape[1])
                y = x @ weight.t() + told.scale * (x @ told.A.t() @ told.B.t())
                if told.magnitude is not None:
                    y = y * lora.column_scale(weight, told.A, told.B, told.scale, told.magnitude)
                y = y if told.bias is None else y + told.bias
                torch.testing.assert_close(layer(x), y, rtol=1e-5, atol=1e-5)
                assert not told.trained


def test_parts_are_not_told_where_more_is_computed(tiny):
    model = attached(tiny, Lora(rank=2, init="pissa"))
    layer = next(layer for _, layer in adapters.lora_layers(model))
    assert lora.parts(layer) is not None
    with adapters.disabled(model):
        assert lora.parts(layer) is None, "what left the base has to be added"
    layer.register_forward_hook(lambda *_: None)
    assert lora.parts(layer) is None
    assert lora.parts(torch.nn.LayerNorm(3)) is None


def test_a_batch_of_the_chain_trains_every_start(tiny):
    batch = pack([sequence([5, 17, 300, 42], [0, 1, 1, 1])])
    for init in ("default", "pissa", "olora", "orthogonal"):
        subject = policy(attached(tiny, Lora(rank=2, init=init, dora=True)))
        OBJECTIVES["supervised"].loss(subject.listen(batch), batch).backward()
        missing = [n for n, p in adapters.trained(subject.model).items() if p.grad is None]
        assert not missing
