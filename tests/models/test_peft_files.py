"""Adapters as PEFT writes and reads them: ours loaded by PEFT, PEFT's loaded by us, the same outputs either way."""

import json

import peft
import pytest
import torch

from luthier.errors import InputError, ModelError
from luthier.models import adapters
from luthier.models.attention import Layout
from luthier.models.load import Head
from luthier.models.peft_files import load_adapter, save_adapter
from luthier.models.policy import policy
from luthier.recipe import Lora

# PEFT asks transformers in a way that transformers gives up, and looks its base up at a model hub.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
TOKENS = torch.tensor([5, 17, 300, 42, 99, 210, 7, 8, 64, 128, 33])
LABELS = Head(3, "single_label_classification", ("a", "b", "c"))
HEADS = {"bert": ("classifier",), "llama": ("score",), "modernbert": ("classifier", "head")}


def ours(model, *, head=False):
    """Our outputs for `TOKENS`: logits of each position, or scores."""
    made = policy(model, sequence=head)
    bounds = (0, len(TOKENS))
    with made.inference():
        hidden = made.hidden(TOKENS, torch.arange(len(TOKENS)), Layout(bounds=bounds))
        return made.scores(hidden, bounds) if head else made.next_logits(hidden)


def theirs(model):
    """What a plain forward pass gives."""
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS[None], attention_mask=torch.ones(1, len(TOKENS), dtype=torch.long)).logits[
            0
        ]


def filled(model):
    """Every trained tensor moved away from its start, so that each of them shows in the outputs."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def by_peft(base, folder):
    return peft.PeftModel.from_pretrained(base, folder)


CASES = {
    "llama": ("llama", Lora(rank=4), False),
    "llama, alpha that is no whole number": ("llama", Lora(rank=4, alpha=2.5), False),
    "llama, rsLoRA": ("llama", Lora(rank=4, rslora=True), False),
    "llama, some targets": ("llama", Lora(rank=4, targets=["q_proj", "down_proj"]), False),
    "llama, one layer": ("llama", Lora(rank=4, layers=[1]), False),
    "llama, a whole path": ("llama", Lora(rank=4, targets=["model.layers.0.self_attn.v_proj"]), False),
    "llama, norm saved": ("llama", Lora(rank=4, modules_to_save=["norm"]), False),
    "llama, output saved": ("llama-untied", Lora(rank=4, modules_to_save=["lm_head"]), False),
    "llama, a target that is also saved whole": ("llama", Lora(rank=4, modules_to_save=["down_proj"]), False),
    "llama, DoRA": ("llama", Lora(rank=4, dora=True), False),
    "llama, DoRA and rsLoRA": ("llama", Lora(rank=4, dora=True, rslora=True), False),
    "llama, orthogonal": ("llama", Lora(rank=4, init="orthogonal"), False),
    "llama, Gaussian": ("llama", Lora(rank=4, init="gaussian"), False),
    "gpt2, DoRA": ("gpt2", Lora(rank=4, dora=True), False),
    "qwen2": ("qwen2", Lora(rank=4), False),
    "gemma3": ("gemma3", Lora(rank=4), False),
    "gpt2": ("gpt2", Lora(rank=4), False),
    "gpt2, rsLoRA": ("gpt2", Lora(rank=4, targets=["c_attn"], rslora=True), False),
    "bert, classes": ("bert", Lora(rank=4), True),
    "bert, classes, one layer": ("bert", Lora(rank=4, layers=[0]), True),
    "modernbert, classes": ("modernbert", Lora(rank=4), True),
    "llama, classes": ("llama", Lora(rank=4), True),
}


def made(tiny, case):
    """A model with a filled adapter, and a fresh base of the same weights."""
    family, adapter, labels = CASES[case]
    head = LABELS if labels else None
    model = tiny(family, head=head)
    adapters.attach(model, adapter, seed=0, head=HEADS[family] if labels else ())
    return filled(model), tiny(family, head=head), adapter, HEADS[family] if labels else ()


@pytest.mark.parametrize("case", CASES)
def test_peft_computes_the_same_with_our_folder(tiny, tmp_path, case):
    model, base, adapter, head = made(tiny, case)
    save_adapter(tmp_path, model, adapter, base="a base", head=head)
    untouched = theirs(base)
    expected = ours(model, head=bool(head))
    assert (expected - untouched).abs().max() > 1e-2
    # float32 sums in another order; in float64 the same is held to 1e-11 (tests/proof/test_files.py).
    torch.testing.assert_close(theirs(by_peft(base, tmp_path)).reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_we_compute_the_same_with_our_folder(tiny, tmp_path, case):
    model, base, adapter, head = made(tiny, case)
    save_adapter(tmp_path, model, adapter, base="a base", head=head)
    load_adapter(tmp_path, base)
    assert torch.equal(ours(base, head=bool(head)), ours(model, head=bool(head)))


@pytest.mark.parametrize("case", CASES)
def test_equal_adapters_give_equal_files(tiny, tmp_path, case):
    for name in ("a", "b"):
        model, _, adapter, head = made(tiny, case)
        save_adapter(tmp_path / name, model, adapter, base="a base", head=head)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


THEIRS = {
    "llama, a list": ("llama", {"target_modules": ["q_proj", "v_proj"]}, False),
    "llama, all-linear": ("llama", {"target_modules": "all-linear"}, False),
    "llama, rsLoRA": ("llama", {"target_modules": ["o_proj"], "use_rslora": True, "lora_alpha": 3}, False),
    "llama, a pattern": ("llama", {"target_modules": r".*\.1\..*(up|down)_proj"}, False),
    "llama, one layer": ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [1]}, False),
    "llama, norm saved": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, False),
    "llama, output saved": ("llama-untied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
    "llama, dropout": ("llama", {"target_modules": ["q_proj"], "lora_dropout": 0.5}, False),
    "llama, DoRA": ("llama", {"target_modules": "all-linear", "use_dora": True}, False),
    "gpt2, DoRA": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "use_dora": True, "fan_in_fan_out": True}, False),
    "llama, Gaussian": ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "gaussian"}, False),
    "qwen2": ("qwen2", {"target_modules": "all-linear"}, False),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}, False),
    "bert, classes": ("bert", {"target_modules": ["query", "value"], "task_type": "SEQ_CLS"}, True),
    "llama, classes": ("llama", {"target_modules": "all-linear", "task_type": "SEQ_CLS"}, True),
}


@pytest.mark.parametrize("case", THEIRS)
def test_we_compute_what_peft_computes_with_its_folder(tiny, tmp_path, case):
    family, settings, labels = THEIRS[case]
    head = LABELS if labels else None
    config = peft.LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", **settings})
    model = filled(peft.get_peft_model(tiny(family, head=head), config))
    model.save_pretrained(tmp_path)
    base = tiny(family, head=head)
    before = theirs(base)
    load_adapter(tmp_path, base)
    expected = theirs(model)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(ours(base, head=labels).reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)


REFUSED = {
    "bias": {"bias": "all"},
    "rank_pattern": {"rank_pattern": {"q_proj": 2}},
    "alpha_pattern": {"alpha_pattern": {"q_proj": 2}},
    "lora_bias": {"lora_bias": True},
    "init_lora_weights": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(tiny, tmp_path, name):
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", **REFUSED[name])
    peft.get_peft_model(tiny("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="does not implement") as caught:
        load_adapter(tmp_path, tiny("llama"))
    assert name in caught.value.got


def test_a_setting_of_a_version_to_come_is_refused_by_name(tiny, tmp_path):
    model, base, adapter, _ = made(tiny, "llama")
    save_adapter(tmp_path, model, adapter, base="a base")
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_something_new": True, "nothing_new": False}))
    with pytest.raises(ModelError) as caught:
        load_adapter(tmp_path, base)
    assert caught.value.got == "use_something_new"


def test_a_method_that_is_not_here_is_refused_by_name(tiny, tmp_path):
    config = peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10, task_type="CAUSAL_LM")
    peft.get_peft_model(tiny("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="adapters of this method") as caught:
        load_adapter(tmp_path, tiny("llama"))
    assert caught.value.got == "ADALORA"


def test_an_adapter_of_another_model_is_refused(tiny, tmp_path):
    model, _, adapter, _ = made(tiny, "llama")
    save_adapter(tmp_path, model, adapter, base="a base")
    with pytest.raises(ModelError, match="another model"):
        load_adapter(tmp_path, tiny("gpt2"))


def test_a_target_that_peft_may_adapt_and_we_may_not_is_refused(tiny, tmp_path):
    config = peft.LoraConfig(r=4, target_modules=["lm_head"], task_type="CAUSAL_LM")
    peft.get_peft_model(tiny("llama-untied"), config).save_pretrained(tmp_path)
    with pytest.raises(InputError) as caught:
        load_adapter(tmp_path, tiny("llama-untied"))
    assert "lm_head" in str(caught.value)
