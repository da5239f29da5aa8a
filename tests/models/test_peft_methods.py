"""PEFT's other methods on packed rows: the numbers of PEFT's own forward pass, gradients, and files either way."""

import copy
import os

import peft
import pytest
import torch

from luthier.errors import ModelError, RecipeError
from luthier.export.merge import merge
from luthier.models import adapters, lora, peft_methods
from luthier.models.attention import Layout
from luthier.models.load import Head
from luthier.models.peft_files import load_adapter, save_adapter, tensors
from luthier.models.policy import policy
from luthier.recipe import Lora, Peft
from luthier.recipe.model import PROMPTS as PROMPT_METHODS
from luthier.sampling.local import Decoding, generate

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

ON = {"target_modules": ["q_proj", "v_proj", "down_proj"]}
METHODS = {
    "beft": ON,
    "boft": {**ON, "boft_block_size": 8},
    "c3a": {**ON, "block_size": 8},
    "deft": ON,
    "delora": ON,
    "fourierft": {**ON, "n_frequency": 20},
    "frod": ON,
    "glora": ON,
    "gralora": ON,
    "hira": ON,
    "hra": ON,
    "ia3": {**ON, "feedforward_modules": ["down_proj"]},
    "ln_tuning": {"target_modules": ["input_layernorm", "norm"]},
    "loha": ON,
    "lokr": ON,
    "miss": {**ON, "r": 4},
    "oft": {**ON, "oft_block_size": 8},
    "osf": ON,
    "p_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "peanut": ON,
    "prefix_tuning": {"num_virtual_tokens": 3},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "psoft": {**ON, "r": 4},
    "pvera": ON,
    "randlora": ON,
    "road": {**ON, "group_size": 8},
    "shira": {**ON, "r": 2, "random_seed": 1},
    "supertuning": ON,
    "tinylora": ON,
    "trainable_tokens": {"token_indices": [5, 17]},
    "unilora": ON,
    "vblora": {**ON, "num_vectors": 8, "vector_length": 8},
    "vera": ON,
    "waveft": {**ON, "n_frequency": 20},
}
"""Every method of a recipe, with settings that suit layers of 64."""
NOT_MERGED = {"p_tuning", "prefix_tuning", "prompt_tuning", "beft"}
FAMILY = {"trainable_tokens": "llama-untied"}
"""Where a method does not go on the tied model."""
DOCUMENTS = [[5, 17, 300, 42, 99], [210, 7, 8, 64, 128, 33, 17, 2], [9, 5]]


def adapter(method):
    return Peft(method=method, settings=copy.deepcopy(METHODS[method]))


def filled(tiny, method, family=None, dtype=torch.float32, spread=0.05):
    """A model whose adapter has moved away from its start."""
    model = tiny(family or FAMILY.get(method, "llama"), dtype=dtype)
    subject = policy(model)
    adapters.attach(model, adapter(method), seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.trained(model).values():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return subject


def test_no_method_leaves_a_compiler_in_the_environment(tiny, monkeypatch):
    """BOFT would: what is compiled in child processes is then made with another compiler, and rounds otherwise."""
    monkeypatch.setenv("CC", "mine")
    monkeypatch.delenv("CXX", raising=False)
    filled(tiny, "boft")
    assert (os.environ["CC"], os.environ.get("CXX")) == ("mine", None)


def states(subject, documents=DOCUMENTS):
    """The last hidden states of all documents, packed into one row."""
    bounds = [0]
    for ids in documents:
        bounds.append(bounds[-1] + len(ids))
    tokens = torch.tensor([token for ids in documents for token in ids])
    positions = torch.cat([torch.arange(len(ids)) for ids in documents])
    hidden = subject.hidden(tokens, positions, Layout(bounds=tuple(bounds)))
    assert hidden.shape[0] == len(tokens), "nobody outside sees a virtual token"
    return hidden


def packed(subject, documents=DOCUMENTS):
    """Our logits of each document, packed into one row."""
    return list(torch.split(subject.next_logits(states(subject, documents)), [len(ids) for ids in documents]))


def logprobs(subject):
    """Log-probabilities of token 3 behind every position, with gradients."""
    hidden = states(subject)
    return subject.logprobs(hidden, torch.full((len(hidden),), 3))


def theirs(wrapper, ids):
    """The logits of one document by PEFT's own forward pass."""
    with torch.no_grad():
        tokens = torch.tensor([ids])
        return wrapper.eval()(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0, -len(ids) :]


def test_every_method_of_a_recipe_is_tried_here():
    from typing import get_args

    assert set(METHODS) == set(get_args(Peft.model_fields["method"].annotation))


@pytest.mark.parametrize("method", METHODS)
def test_peft_computes_the_same_with_our_folder_and_so_do_we(tiny, tmp_path, method):
    subject = filled(tiny, method)
    with subject.inference():
        expected = packed(subject)
        with adapters.disabled(subject.model):
            off = packed(subject)
    save_adapter(tmp_path, subject.model, adapter(method), base="a base")
    family = FAMILY.get(method, "llama")
    wrapper = peft.PeftModel.from_pretrained(tiny(family), tmp_path)
    plain = policy(tiny(family))
    with plain.inference():
        untouched = packed(plain)
    model = tiny(family)
    assert load_adapter(tmp_path, model).method == method
    reread = policy(model)
    with reread.inference():
        again = packed(reread)
    for ids, logits, base, without, ours in zip(DOCUMENTS, expected, untouched, off, again, strict=True):
        torch.testing.assert_close(theirs(wrapper, ids), logits, rtol=1e-4, atol=2e-5)
        assert torch.equal(ours, logits) or method == "p_tuning"
        torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(without, base, rtol=1e-5, atol=1e-5)
        assert (logits - base).abs().max() > 1e-3 or (method == "trainable_tokens" and ids[0] != 5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_every_trained_tensor_gets_a_gradient_and_nothing_else_does(tiny, method, dtype):
    if method == "oft" and dtype == torch.bfloat16:
        pytest.skip("torch has no Cayley solve in bf16")
    subject = filled(tiny, method, dtype=dtype)
    before = set(adapters.trained(subject.model))
    with subject.inference(base=True):
        packed(subject)
    assert set(adapters.trained(subject.model)) == before, "switching off and on leaves what is trained"
    subject.model.train()
    logprobs(subject).sum().backward()
    got = {name for name, p in subject.model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert got == before


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_give_equal_starts_and_equal_files(tiny, tmp_path, method):
    for name in ("a", "b"):
        torch.rand(hash(name) % 7)
        save_adapter(tmp_path / name, filled(tiny, method).model, adapter(method), base="a base")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_a_merged_model_computes_what_base_and_adapter_compute(tiny, method):
    subject = filled(tiny, method)
    if method in NOT_MERGED:
        with pytest.raises(ModelError, match="cannot be merged"):
            merge(subject, DOCUMENTS)
        return
    assert merge(subject, DOCUMENTS).largest < 2e-5
    assert peft_methods.attached(subject.model) is None


PROMPTS = sorted(PROMPT_METHODS)


@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gemma3"])
def test_a_prompt_is_the_same_in_every_family(tiny, tmp_path, method, family):
    if (method, family) == ("prefix_tuning", "gemma3"):
        with pytest.raises(ModelError, match="sliding windows"):
            filled(tiny, method, family)
        return
    subject = filled(tiny, method, family)
    save_adapter(tmp_path, subject.model, adapter(method), base="a base")
    wrapper = peft.PeftModel.from_pretrained(tiny(family), tmp_path)
    with subject.inference():
        for ids, logits in zip(DOCUMENTS, packed(subject), strict=True):
            torch.testing.assert_close(theirs(wrapper, ids), logits, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("method", PROMPTS)
def test_answers_go_on_from_the_prompt(tiny, method):
    subject = filled(tiny, method, spread=0.5)
    written = {c.index: list(c.tokens) for c in generate(subject, DOCUMENTS, Decoding(6, frozenset()), batch=2)}
    for i, ids in enumerate(DOCUMENTS):
        for token in written[i]:
            with subject.inference():
                assert int(packed(subject, [ids])[0][-1].argmax()) == token
            ids = [*ids, token]


@pytest.mark.parametrize("method", PROMPTS)
def test_a_shared_beginning_has_one_prompt(tiny, method):
    subject = filled(tiny, method, dtype=torch.float64)
    first, ends = [5, 17, 300], [[42, 99], [7, 8, 64]]
    with subject.inference():
        apart = packed(subject, [[*first, *end] for end in ends])
        tokens = torch.tensor([*first, *ends[0], *ends[1]])
        layout = Layout(bounds=(0, 3, 5, 8), parents=(-1, 0, 0))
        forest = subject.next_logits(subject.hidden(tokens, torch.tensor([0, 1, 2, 3, 4, 3, 4, 5]), layout))
    torch.testing.assert_close(forest[:5], apart[0], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(forest[5:], apart[1][3:], rtol=1e-10, atol=1e-10)


def test_an_example_that_leaves_no_room_for_the_prompt_is_refused(tiny):
    subject = filled(tiny, "prompt_tuning", "gpt2")
    with subject.inference(), pytest.raises(ModelError, match="longer than the model's positions") as caught:
        packed(subject, [[5] * 511])
    assert "at most 509" in caught.value.do


def test_a_classifier_takes_no_prompt_and_other_methods_with_its_head(tiny, tmp_path):
    head = Head(3, "single_label_classification", ("a", "b", "c"))
    with pytest.raises(ModelError, match="for models that write"):
        adapters.attach(tiny("bert", head=head), adapter("prompt_tuning"), seed=0, head=("classifier",))
    for family, modules in {"bert": ("classifier",), "llama": ("score",)}.items():
        on = ["query", "value"] if family == "bert" else ["q_proj", "v_proj"]
        chosen = Peft(method="vera", settings={"target_modules": on})
        subject = policy(tiny(family, head=head), sequence=True)
        adapters.attach(subject.model, chosen, seed=0, head=modules)
        for parameter in adapters.trained(subject.model).values():
            parameter.data += 0.1
        save_adapter(tmp_path / family, subject.model, chosen, base="a base", head=modules)
        assert any("classifier" in name or "score" in name for name in tensors(subject.model, head=modules))
        reread = policy(tiny(family, head=head), sequence=True)
        load_adapter(tmp_path / family, reread.model)
        ids = DOCUMENTS[1]
        bounds = (0, len(ids))
        scores = []
        for one in (subject, reread):
            with one.inference():
                hidden = one.hidden(torch.tensor(ids), torch.arange(len(ids)), Layout(bounds=bounds))
                scores.append(one.scores(hidden, bounds)[0])
        assert torch.equal(*scores)
        wrapper = peft.PeftModel.from_pretrained(tiny(family, head=head), tmp_path / family).eval()
        with torch.no_grad():
            found = wrapper(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))
        torch.testing.assert_close(found.logits[0], scores[0], rtol=1e-5, atol=1e-5)


def test_an_unknown_setting_is_refused_with_those_that_are_known(tiny):
    with pytest.raises(RecipeError, match="no such key") as caught:
        adapters.attach(tiny("llama"), Peft(method="ia3", settings={"rank": 4, **ON}), seed=0)
    assert caught.value.got == "rank"
    assert "feedforward_modules" in caught.value.do


def test_a_value_that_peft_refuses_is_told_in_its_words(tiny):
    with pytest.raises(RecipeError, match="cannot adapt this model") as caught:
        adapters.attach(tiny("llama"), Peft(method="vera", settings={"target_modules": ["nothing"]}), seed=0)
    assert "target_modules" in caught.value.got


def test_a_method_that_changes_the_output_layer_is_refused(tiny):
    with pytest.raises(ModelError, match="output layer"):
        adapters.attach(tiny("llama"), adapter("trainable_tokens"), seed=0)
    with pytest.raises(ModelError, match="output layer"):
        adapters.attach(tiny("llama"), Peft(method="loha", settings={"target_modules": ["lm_head"]}), seed=0)


def test_a_layer_of_pefts_is_not_taken_apart(tiny):
    model = tiny("llama")
    adapters.attach(model, adapter("ia3"), seed=0)
    layer = adapters.layer_list(model)[0]
    assert lora.parts(layer.self_attn.q_proj) is None
    assert lora.parts(layer.self_attn.k_proj) is not None
    adapters.attach(other := tiny("llama"), Lora(rank=2), seed=0)
    assert lora.parts(adapters.layer_list(other)[0].self_attn.q_proj).A.shape == (2, 64)


def test_peft_reads_a_folder_whose_settings_are_all_defaults(tiny, tmp_path):
    model = tiny("llama")
    adapters.attach(model, Peft(method="oft"), seed=3)
    written = peft_methods.config(model)
    assert peft.OFTConfig(**peft.OFTConfig.from_peft_type(**written).to_dict()).oft_block_size == 32
    assert written["oft_block_size"] == 32


NOISE = {
    "loha": {"rank_dropout": 0.3},
    "lokr": {"module_dropout": 0.3},
    "oft": {"module_dropout": 0.3, "oft_block_size": 8},
    "boft": {"boft_dropout": 0.3, "boft_block_size": 8},
    "pvera": {},
}


@pytest.mark.parametrize("method", NOISE)
def test_beginnings_are_not_shared_where_a_method_draws_noise(tiny, method):
    made = {}
    for noise in (False, True):
        made[noise] = policy(tiny("llama"))
        settings = NOISE[method] if noise else {}
        adapters.attach(made[noise].model, Peft(method=method, settings={**METHODS[method], **settings}), seed=0)
    assert not made[True].shares
    assert made[False].shares or method == "pvera"
