"""Small tokenizers and chat templates in the published formats of the model families, made here and from nothing else.

Each `Family` names its special tokens and its template. Vocabularies are trained on the sentences below, so merges such
as a space with the word after it, or a double newline, happen as they do in real tokenizers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from luthier.data.templates import PLAIN_TEMPLATE

SENTENCES = [
    "The station is the second street on the left, then straight on.",
    "What is the weather like today? It is sunny, with 21 degrees and no wind.",
    "### User:\nHello there.\n\n### Assistant:\nHello! How can I help you?\n\n",
    "user\nassistant\nsystem\nmodel\ntool\n\n\n    Indented text, a list:\n- one\n- two\n- three\n",
    "First answer. Second answer. First question? Second question? You are a helpful assistant.",
    '{"name": "weather", "arguments": {"city": "Oslo"}} <think>\n\n</think>\n\n<tool_call>\n</tool_call>',
    "Grüße aus Köln, naïve café, Ελληνικά, 日本語の文章, 🙂🎻.",
]

CHATML = """{% for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"""

LLAMA3 = """{{ bos_token }}{% for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' if add_generation_prompt }}"""

GEMMA = """{{ bos_token }}{% for message in messages -%}
{%- if message.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif -%}
{%- set role = 'model' if message.role == 'assistant' else message.role -%}
{{ '<start_of_turn>' + role + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}{{ '<start_of_turn>model\\n' if add_generation_prompt }}"""

MISTRAL = """{{ bos_token }}{% for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{%- endif -%}
{%- if message.role == 'user' %}{{ '[INST] ' + message.content + '[/INST]' }}
{%- else %}{{ ' ' + message.content + eos_token }}{% endif -%}
{% endfor %}"""

ZEPHYR = """{% for message in messages -%}
{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}
{%- endfor %}{{ '<|assistant|>\\n' if add_generation_prompt }}"""

PHI3 = """{% for message in messages -%}
{{ '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
{%- endfor %}{{ '<|assistant|>\\n' if add_generation_prompt else eos_token }}"""

# Word for word the template in the metadata of SmolLM2-135M-Instruct (Apache-2.0).
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n"
    "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_QWEN_HEAD = """{%- set first = messages[0].content if messages[0].role == 'system' else default_system -%}
{%- if tools or first -%}
{{ '<|im_start|>system\\n' + first }}
{%- if tools -%}
{{ '\\n\\n# Tools\\n\\nYou may call functions.\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor -%}
{{ '\\n</tools>' }}
{%- endif -%}
{{ '<|im_end|>\\n' }}
{%- endif -%}"""

_QWEN_CALLS = """{%- for call in message.tool_calls or [] -%}
{{ '\\n' if content or not loop.first }}{{ '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor -%}"""

_QWEN_TOOL = """{{ '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' }}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != 'tool' }}"""

QWEN25 = (
    "{%- set default_system = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' -%}"
    + _QWEN_HEAD
    + """{%- for message in messages -%}{%- set content = message.content -%}
{%- if message.role == 'tool' -%}"""
    + _QWEN_TOOL
    + """{%- elif message.role == 'assistant' -%}{{ '<|im_start|>assistant' }}{{ '\\n' + content if content }}
{{- '\\n' if message.tool_calls and not content }}"""
    + _QWEN_CALLS
    + """{{ '\\n' if not content and not message.tool_calls }}{{ '<|im_end|>\\n' }}
{%- elif not (loop.first and message.role == 'system') -%}
{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endif -%}{%- endfor -%}{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"""
)

QWEN3 = (
    "{%- set default_system = '' -%}"
    + _QWEN_HEAD
    + """{%- set ns = namespace(query=0) -%}
{%- for message in messages %}{% if message.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor -%}
{%- for message in messages -%}
{%- set content = message.content -%}
{%- set reasoning = message.reasoning_content or '' -%}
{%- if message.role == 'assistant' and not reasoning and '</think>' in content -%}
{%- set reasoning = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}
{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
{%- endif -%}
{%- if message.role == 'tool' -%}"""
    + _QWEN_TOOL
    + """{%- elif message.role == 'assistant' -%}{{ '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.query and (loop.last or reasoning) -%}
{{ '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
{%- else %}{{ content }}{% endif -%}"""
    + _QWEN_CALLS
    + """{{ '<|im_end|>\\n' }}
{%- elif not (loop.first and message.role == 'system') -%}
{{ '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endif -%}{%- endfor -%}{{ '<|im_start|>assistant\\n' if add_generation_prompt }}"""
)


@dataclass(frozen=True)
class Family:
    name: str
    template: str | None
    end: str
    """Text of the end-of-turn token."""
    special: tuple[str, ...]
    eos: str
    bos: str | None = None
    """Set where the tokenizer puts it before plain text."""
    added: tuple[str, ...] = ()
    """Tokens with a place of their own that are not special."""
    metaspace: bool = False
    """SentencePiece's way with spaces, and bytes for what is unknown; else bytes throughout."""
    system: bool = True
    gpt2: bool = True
    """How text is cut into words: GPT-2's rule, or that of Llama 3 and Qwen, which keeps runs of newlines together."""
    inserts: str = ""
    """What the template puts between prompt and answer by itself."""
    every_turn: bool = True
    """Whether earlier turns stay as they are once later ones follow."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the special tokens: Phi-3's swallow the white space to their right."""


_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_ADDED = ("<tool_call>", "</tool_call>", "<think>", "</think>")
FAMILIES = {
    family.name: family
    for family in (
        Family("chatml", CHATML, "<|im_end|>", _IM, eos="<|im_end|>"),
        Family(
            "llama3",
            LLAMA3,
            "<|eot_id|>",
            ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
            eos="<|end_of_text|>",
            bos="<|begin_of_text|>",
            gpt2=False,
        ),
        Family(
            "gemma",
            GEMMA,
            "<end_of_turn>",
            ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
            eos="<eos>",
            bos="<bos>",
            metaspace=True,
            system=False,
        ),
        Family(
            "mistral",
            MISTRAL,
            "</s>",
            ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
            eos="</s>",
            bos="<s>",
            metaspace=True,
            system=False,
            inserts=" ",
        ),
        Family("zephyr", ZEPHYR, "</s>", ("<unk>", "<s>", "</s>"), eos="</s>"),
        Family(
            "phi3",
            PHI3,
            "<|end|>",
            ("<unk>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
            eos="<|endoftext|>",
            options={"rstrip": True},
        ),
        Family("smollm2", SMOLLM2, "<|im_end|>", _IM, eos="<|im_end|>"),
        Family("qwen2.5", QWEN25, "<|im_end|>", _IM, eos="<|im_end|>", added=_QWEN_ADDED, gpt2=False),
        Family(
            "qwen3",
            QWEN3,
            "<|im_end|>",
            _IM,
            eos="<|im_end|>",
            added=_QWEN_ADDED,
            gpt2=False,
            inserts="<think>\n\n</think>\n\n",
            every_turn=False,
        ),
        Family("plain", PLAIN_TEMPLATE, "<|endoftext|>", ("<|endoftext|>",), eos="<|endoftext|>"),
    )
}


def tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A fresh tokenizer of the family, with its template."""
    inner = _metaspace(family.special) if family.metaspace else _bytes(gpt2=family.gpt2)
    inner.add_special_tokens([AddedToken(text, normalized=False, **family.options) for text in family.special])
    inner.add_tokens([AddedToken(text, normalized=False, special=False) for text in family.added])
    if family.bos:
        single = f"{family.bos} $A"
        inner.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(family.bos, inner.token_to_id(family.bos))]
        )
    named = {"bos_token": family.bos} if family.bos else {}
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=family.eos, **named)
    made.chat_template = family.template
    return made


def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece with [CLS] and [SEP], as BERT has it; no chat template."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer()
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner.train_from_iterator(
        SENTENCES, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, inner.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def _bytes(*, gpt2: bool) -> Tokenizer:
    return Tokenizer.from_str(_bytes_json(gpt2))


@cache
def _bytes_json(gpt2: bool) -> str:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if gpt2
        else pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        SENTENCES * 3,
        trainers.BpeTrainer(vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    return inner.to_str()


@cache
def _metaspace_json(special: tuple[str, ...]) -> str:
    inner = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    inner.train_from_iterator(
        SENTENCES * 3, trainers.BpeTrainer(vocab_size=400, special_tokens=list(special), show_progress=False)
    )
    described = json.loads(inner.to_str())
    vocabulary = described["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    described["model"]["byte_fallback"] = True
    inner = Tokenizer.from_str(json.dumps(described))
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return inner.to_str()


def _metaspace(special: tuple[str, ...]) -> Tokenizer:
    return Tokenizer.from_str(_metaspace_json(special))
