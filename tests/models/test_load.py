"""What is loaded is the model in the files, whole, in the type asked for; whatever does not fit is refused by name."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from luthier.errors import ModelError
from luthier.models.load import Head, load_config, load_model, load_tokenizer, vocabulary
from luthier.models.sources import Origin, resolve
from tests.conftest import CAUSAL, ENCODERS

Saved = Callable[..., Path]
THREE = Head(3, "single_label_classification", ("no", "perhaps", "yes"))


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(saved_tiny: Saved, tmp_path: Path) -> Path:
    """A good model folder that a test may spoil."""
    return Path(shutil.copytree(saved_tiny("llama"), tmp_path / "model"))


def weights(model: Any) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([[5, 17, 300, 41, 7, 7, 99]])).logits


def load(path: Path, head: Head | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(resolve(str(path)), head=head, dtype=dtype, seed=seed)


@pytest.mark.parametrize("family", CAUSAL)
def test_a_saved_model_comes_back_bit_for_bit(family: str, saved_tiny: Saved, tiny: Callable[..., Any]) -> None:
    loaded = load(saved_tiny(family))
    assert torch.equal(logits(loaded.model), logits(tiny(family)))
    assert loaded.fresh == ()
    assert loaded.notes == ()
    assert not loaded.model.config.use_cache
    assert not loaded.model.training


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_every_weight_has_the_type_asked_for(dtype: torch.dtype, saved_tiny: Saved) -> None:
    assert {p.dtype for p in load(saved_tiny("llama"), dtype=dtype).model.parameters()} == {dtype}
    assert {p.dtype for p in load(saved_tiny("bert"), THREE, dtype=dtype).model.parameters()} == {dtype}


@pytest.mark.parametrize("family", [*CAUSAL, *ENCODERS])
def test_a_new_head_depends_on_the_seed_alone(family: str, saved_tiny: Saved) -> None:
    torch.manual_seed(1)
    first = load(saved_tiny(family), THREE)
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = load(saved_tiny(family), THREE)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(
        torch.equal(a, b) for a, b in zip(weights(first.model).values(), weights(second.model).values(), strict=True)
    )
    other = load(saved_tiny(family), THREE, seed=1)
    differs = {
        name for name, value in weights(other.model).items() if not torch.equal(value, weights(first.model)[name])
    }
    assert {name.rpartition(".")[0] for name in differs} <= set(first.fresh)
    assert any(name.endswith(("score.weight", "classifier.weight")) for name in differs)


def test_a_head_has_its_labels_in_the_configuration(saved_tiny: Saved) -> None:
    config = load(saved_tiny("llama"), THREE).model.config
    assert config.id2label == {0: "no", 1: "perhaps", 2: "yes"}
    assert config.label2id["yes"] == 2
    assert (config.num_labels, config.problem_type) == (3, "single_label_classification")
    assert load(saved_tiny("bert"), Head(1, "regression")).model.config.num_labels == 1


def test_a_pooler_that_the_weights_lack_is_fresh_and_said(saved_tiny: Saved) -> None:
    loaded = load(saved_tiny("bert"), THREE)
    assert loaded.fresh == ("bert.pooler.dense", "classifier")
    assert "bert.pooler.dense begins at random" in loaded.notes[0]


@pytest.mark.parametrize("family", ["llama", "bert", "modernbert"])
def test_a_trained_head_is_kept_for_its_own_labels_only(
    family: str, saved_tiny: Saved, tiny: Callable[..., Any]
) -> None:
    place = saved_tiny(family, THREE)
    kept = load(place, THREE)
    assert kept.fresh == ()
    assert torch.equal(logits(kept.model), logits(tiny(family, head=THREE)))
    for other in (
        Head(3, "single_label_classification", ("red", "green", "blue")),
        Head(2, "single_label_classification", ("no", "yes")),
    ):
        loaded = load(place, other)
        assert loaded.fresh == (("score",) if family == "llama" else ("classifier",))
        assert logits(loaded.model).shape[-1] == other.outputs


# Tokenizers


def test_the_tokenizer_is_the_saved_one(
    saved_tiny: Saved, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(resolve(str(saved_tiny("qwen2"))))
    text = "In 2023 the workshop sold  96 violins.<|im_end|> Ça va?"
    assert tokenizer(text).input_ids == tiny_tokenizer(text).input_ids
    chat = [{"role": "user", "content": "Hello"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == tiny_tokenizer.apply_chat_template(
        chat, tokenize=False
    )
    tokenizer.save_pretrained(tmp_path)
    assert "local_files_only" not in (tmp_path / "tokenizer_config.json").read_text()
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == tiny_tokenizer(text).input_ids


def test_reading_a_tokenizer_needs_no_torch(saved_tiny: Saved) -> None:
    code = (
        "import sys; from luthier.models.sources import resolve; from luthier.models.load import load_tokenizer\n"
        "load_tokenizer(resolve(sys.argv[1]))('x'); sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(saved_tiny("llama"))], check=False, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_tokenizer_may_come_from_another_model(model: Path, saved_tiny: Saved) -> None:
    origin = resolve(str(model))
    edit_config(model, vocab_size=100)
    with pytest.raises(ModelError, match="more tokens than the model has embeddings"):
        load_tokenizer(resolve(str(saved_tiny("gpt2"))), model=origin)
    assert load_tokenizer(resolve(str(saved_tiny("gpt2"))), model=resolve(str(saved_tiny("llama"))))


def test_a_special_token_beyond_the_embedding_is_let_through_unless_it_is_used(
    model: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    tokenizer.save_pretrained(model)
    assert len(load_tokenizer(resolve(str(model)))) == len(tiny_tokenizer) + 1
    tokenizer.chat_template = "<|image|>" + str(tokenizer.chat_template)
    tokenizer.save_pretrained(model)
    with pytest.raises(ModelError, match="more tokens"):
        load_tokenizer(resolve(str(model)))


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [("tokenizer.json", "{", "cannot be read"), ("tokenizer.json", '{"model": 1}', "cannot be read")],
)
def test_a_damaged_tokenizer_is_refused(name: str, text: str, reason: str, model: Path) -> None:
    (model / name).write_text(text)
    with pytest.raises(ModelError, match=reason):
        load_tokenizer(resolve(str(model)))


def test_a_model_without_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer") as error:
        load_tokenizer(resolve(str(model)))
    assert "model.tokenizer" in error.value.do


# Models that do not fit together


def edit_config(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def edit_weights(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = {name: value.clone() for name, value in load_file(model / "model.safetensors").items()}
    change(tensors)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


CODE = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
MALFORMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "unknown type": (lambda m: edit_config(m, model_type="no-such-model"), "cannot read this model's configuration"),
    "code of its own": (lambda m: edit_config(m, model_type="own", auto_map=CODE), "needs Python code of its own"),
    "quantised": (lambda m: edit_config(m, quantization_config={"quant_method": "gptq", "bits": 4}), "quantised"),
    "width as text": (lambda m: edit_config(m, hidden_size="wide"), "cannot read this model's configuration"),
    "no heads": (lambda m: edit_config(m, num_attention_heads=0), "cannot"),
    "unknown activation": (lambda m: edit_config(m, hidden_act="no-such"), "cannot load this model"),
    "another width": (lambda m: edit_config(m, hidden_size=96), "sizes that config.json says"),
    "another vocabulary": (lambda m: edit_config(m, vocab_size=100), "sizes that config.json says"),
    "a layer too many": (lambda m: edit_config(m, num_hidden_layers=3), "weights are missing"),
    "a weight missing": (
        lambda m: edit_weights(m, lambda w: w.pop("model.layers.1.mlp.up_proj.weight")),
        "model.layers.1.mlp.up_proj.weight",
    ),
    "all weights missing": (lambda m: edit_weights(m, lambda w: w.clear()), "weights are missing"),
    "one of another size": (
        lambda m: edit_weights(m, lambda w: w.update({"model.norm.weight": torch.zeros(31)})),
        "model.norm.weight has [31] and not [64]",
    ),
    "not for text": (lambda m: edit_config(m, model_type="vit"), "cannot load this model"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_model_that_does_not_fit_is_refused_with_its_reason(
    case: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, reason = MALFORMED[case]
    spoil(model)
    with pytest.raises(ModelError) as error:
        load(model)
    assert reason in str(error.value)
    assert str(model) in error.value.where
    assert "\n" not in error.value.got
    assert capfd.readouterr() == ("", "")


def test_code_of_a_model_is_named_and_never_run(model: Path, tmp_path: Path) -> None:
    edit_config(model, model_type="own", auto_map=CODE)
    (model / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError) as error:
        load(model)
    assert f"set model.remote_code to {model}" in error.value.do
    assert not (tmp_path / "ran").exists()


def test_weights_without_a_place_are_noted(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit_weights(model, lambda w: w.update({"model.layers.7.extra.weight": torch.zeros(2)}))
    assert "model.layers.7.extra.weight" in load(model).notes[0]
    assert capfd.readouterr() == ("", "")


def test_an_encoder_does_not_write(saved_tiny: Saved) -> None:
    with pytest.raises(ModelError, match="cannot write"):
        load(saved_tiny("bert"))


# GGUF


def test_a_gguf_file_is_the_model_that_was_written(own_cache: Path, tiny_gguf: Saved, tiny: Callable[..., Any]) -> None:
    said: list[str] = []
    origin = resolve(str(tiny_gguf()))
    loaded = load_model(origin, head=None, dtype=torch.float32, seed=0, progress=said.append)
    assert torch.allclose(logits(loaded.model), logits(tiny("llama")), atol=1e-5)
    assert len(said) == 1
    again = load_model(origin, head=None, dtype=torch.float32, seed=0, progress=lambda text: pytest.fail(text))
    assert torch.equal(logits(again.model), logits(loaded.model))
    head = load_model(origin, head=THREE, dtype=torch.float32, seed=0)
    assert head.fresh == ("score",)


def test_a_model_from_gguf_trains_and_saves_like_any_other(own_cache: Path, tiny_gguf: Saved, tmp_path: Path) -> None:
    model = load_model(resolve(str(tiny_gguf())), head=None, dtype=torch.float32, seed=0).model
    assert "quantization_config" not in model.config.to_dict()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    loss = model(torch.tensor([[1, 2, 3]])).logits.logsumexp(-1).sum()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", attn_implementation="eager")
    assert torch.equal(logits(reloaded), logits(model))


def test_splitting_that_transformers_leaves_out_of_gguf_is_put_back(
    own_cache: Path, tiny_gguf: Saved, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    apart = load_tokenizer(resolve(str(tiny_gguf("smollm"))))
    assert apart.convert_ids_to_tokens(apart("  2023").input_ids)[-4:] == ["2", "0", "2", "3"]
    assert apart.eos_token == "<|im_end|>"
    assert apart.chat_template == tiny_tokenizer.chat_template
    # This vocabulary has merged digits, so splitting as GPT-2 does gives fewer tokens.
    together = load_tokenizer(resolve(str(tiny_gguf("gpt-2"))))
    assert together("  2023").input_ids == tiny_tokenizer("  2023").input_ids
    assert len(together(" 2023").input_ids) < len(apart(" 2023").input_ids)


def test_splitting_that_nobody_knows_is_not_guessed(own_cache: Path, tiny_gguf: Saved) -> None:
    with pytest.raises(ModelError, match="how this GGUF file splits text") as error:
        load_tokenizer(resolve(str(tiny_gguf("no-such-splitting"))))
    assert "no-such-splitting" in error.value.got
    assert not list((own_cache / "models" / "gguf").iterdir())


def test_a_gguf_file_of_an_unknown_architecture_is_refused(own_cache: Path, tiny_gguf: Saved, tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    path.write_bytes(tiny_gguf().read_bytes().replace(b"llama", b"lyoma"))
    with pytest.raises(ModelError, match="cannot read this GGUF file"):
        load_model(resolve(str(path)), head=None, dtype=torch.float32, seed=0)


def test_the_vocabulary_is_read_without_loading(tiny_gguf: Saved, saved_tiny: Saved) -> None:
    assert vocabulary(resolve(str(tiny_gguf()))) == vocabulary(resolve(str(saved_tiny("llama")))) == 448


# The two real models


@pytest.mark.models
def test_smollm2_answers_and_its_second_start_is_fast(smollm2: Origin) -> None:
    load_model(smollm2, head=None, dtype=torch.float32, seed=0)
    load_tokenizer(smollm2)
    began = time.perf_counter()
    tokenizer = load_tokenizer(smollm2)
    model = load_model(smollm2, head=None, dtype=torch.float32, seed=0).model
    assert time.perf_counter() - began < 2
    assert tokenizer.convert_ids_to_tokens(tokenizer("  2023").input_ids) == ["ĠĠ", "2", "0", "2", "3"]
    assert "quantization_config" not in model.config.to_dict()
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens = torch.tensor([tokenizer(text).input_ids])
    out = model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0, tokens.shape[1] :])


@pytest.mark.models
def test_minilm_becomes_a_classifier(minilm: Origin) -> None:
    loaded = load_model(minilm, head=THREE, dtype=torch.float32, seed=0)
    assert (loaded.fresh, loaded.notes) == (("classifier",), ())
    assert load_config(minilm).hidden_size == 384
    text = "Hello, wörld  2023"
    assert load_tokenizer(minilm)(text).input_ids == AutoTokenizer.from_pretrained(minilm.path)(text).input_ids
