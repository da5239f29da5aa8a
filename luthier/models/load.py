"""Local files -> a transformers model and its tokenizer. Safetensors only; a model's own code runs only where allowed.

A GGUF file is read once: its weights, dequantised to float32, and its tokenizer are kept as folders in the cache.
float32, because that is what dequantising gives: what is trained, merged and compared is then the model in the file,
with nothing rounded a second time. bf16 would halve the folder and add up to 0.2 % to the error of each weight. Reading
the tokenizer needs no torch once it is in the cache. Adapters are `models.peft_files`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier import cache
from luthier.errors import LuthierError, ModelError, OutOfMemory, StorageError
from luthier.models.sources import CONFIG, Origin, Progress, read_object

if TYPE_CHECKING:
    import torch
    from torch import nn

FORMAT = 1
"""Of what is kept of a GGUF file; a change here reads every file anew."""

_DIGITS_APART = (
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
)
PRE_TOKENIZERS: dict[str, tuple[dict[str, Any], ...]] = {
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "command-r": _DIGITS_APART,
    "codeshell": _DIGITS_APART,
    "exaone": _DIGITS_APART,
    "minerva-7b": _DIGITS_APART,
}
"""`tokenizer.ggml.pre` -> the steps llama.cpp (src/llama-vocab.cpp) takes for it and transformers leaves out."""
_LIKE_GPT2 = frozenset(
    {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "mellum"}
)
"""Names that mean GPT-2's own splitting there; transformers gives that to every name it does not know."""

_SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
"""transformers' name of a special token -> GGUF's."""


@dataclass(frozen=True, slots=True)
class Head:
    """Outputs over a whole document, in place of the prediction of tokens."""

    outputs: int
    problem: Literal["single_label_classification", "multi_label_classification", "regression"]
    labels: tuple[str, ...] = ()
    """A name for each output; empty for regression."""

    def __post_init__(self) -> None:
        assert self.outputs > 0
        assert len(self.labels) in (0, self.outputs)


@dataclass(frozen=True, slots=True)
class Loaded:
    model: nn.Module
    """A transformers model in eval mode, every weight of one type, `config.use_cache` off."""
    fresh: tuple[str, ...]
    """Paths of modules that begin at random because the weights had nothing for them, such as `classifier`."""
    notes: tuple[str, ...]


def load_tokenizer(
    origin: Origin, *, model: Origin | None = None, remote_code: bool = False, progress: Progress | None = None
) -> Any:
    """The tokenizer of `origin`, for the model of `model` (its own, where left out).

    A `tokenizer.json` is used as it stands. Special tokens beyond the embedding are let through where nothing writes
    them (Gemma 3 1B has one for images); text that spells one out is for whoever renders it to refuse.

    Raises:
        ModelError: there is no tokenizer, it cannot be read, or it has tokens that the embedding has no row for.
    """
    place = _tokenizer_folder(origin, progress=progress)
    if not any(
        (place / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt")
    ):
        raise ModelError("this model has no tokenizer", where=str(place), do="name another source: model.tokenizer")
    with _reading(origin, "the tokenizer cannot be read"):
        if (place / "tokenizer.json").exists() and not remote_code:
            from transformers import PreTrainedTokenizerFast as Tokenizer
        else:
            from transformers import AutoTokenizer as Tokenizer
        tokenizer = Tokenizer.from_pretrained(place, trust_remote_code=remote_code, local_files_only=True)
    # How it was read would be saved with it.
    for name in ("local_files_only", "trust_remote_code", "is_local"):
        tokenizer.init_kwargs.pop(name, None)
    rows = vocabulary(model or origin)
    if rows is not None:
        _refuse_unknown_tokens(tokenizer, rows, origin)
    return tokenizer


def vocabulary(origin: Origin) -> int | None:
    """Rows of the embedding as the configuration says it, read without torch; None where it does not."""
    if origin.path.is_file():
        rows = origin.gguf.get(f"{origin.gguf['general.architecture']}.vocab_size")
    else:
        config = read_object(origin.path / CONFIG)
        text = config.get("text_config")
        rows = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return rows if isinstance(rows, int) else None


def load_config(origin: Origin, *, remote_code: bool = False, progress: Progress | None = None) -> Any:
    """The transformers configuration.

    Raises:
        ModelError: transformers does not know it, it needs code that is not allowed, or the weights are quantised.
    """
    from transformers import AutoConfig

    place = _weights_folder(origin, progress=progress)
    raw = read_object(place / CONFIG)
    with _reading(origin, "transformers cannot read this model's configuration"):
        config = AutoConfig.from_pretrained(place, trust_remote_code=remote_code, local_files_only=True)
    if getattr(config, "quantization_config", None) is not None:
        method = raw.get("quantization_config", {}).get("quant_method", "unknown")
        raise ModelError(
            "the weights of this model are quantised and cannot be trained", where=origin.source, got=str(method),
            do="name the model that it was made from, or a GGUF file of it",
        )  # fmt: skip
    return config


def load_model(
    origin: Origin,
    *,
    head: Head | None,
    dtype: torch.dtype,
    seed: int,
    remote_code: bool = False,
    progress: Progress | None = None,
) -> Loaded:
    """The model of `origin`: one that predicts tokens, or with a sequence head.

    A head that the weights hold is kept where its labels are the same in the same order, and begins anew otherwise.

    Args:
        seed: of what begins at random.

    Raises:
        ModelError: the weights do not fit the configuration, or the family cannot do what is asked.
        OutOfMemory: they do not fit this machine.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from luthier.models.families import ENCODERS

    config = load_config(origin, remote_code=remote_code, progress=progress)
    same_head = head is not None and _labels(config) == _labels_of(head)
    if head is None and config.model_type in ENCODERS:
        raise ModelError(
            "this model reads text and cannot write it", where=origin.source, got=config.model_type,
            do="use it for classification or regression, or name a model that generates text",
        )  # fmt: skip
    if head is not None:
        config.id2label = dict(enumerate(_labels_of(head)))
        config.label2id = {label: i for i, label in config.id2label.items()}
        config.problem_type = head.problem
    config.use_cache = False
    family = AutoModelForCausalLM if head is None else AutoModelForSequenceClassification
    with _reading(origin, "transformers cannot load this model"), torch.random.fork_rng(devices=[]):
        model, info = family.from_pretrained(
            _weights_folder(origin, progress=progress),
            config=config,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=remote_code,
            local_files_only=True,
            # Wrong sizes are refused below, by name; transformers would print a table and name none in its error.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    missing = set(info["missing_keys"]) | _check_sizes(origin, model, info["mismatched_keys"], head)
    if head is not None and not same_head:
        missing |= {f"{path}.weight" for path in _output_layers(model, head)}
    fresh = _check_missing(origin, model, missing, head)
    _own(model)
    _begin(model, fresh, seed=seed)
    return Loaded(model, fresh, _notes(origin, model, fresh, info["unexpected_keys"], head))


def _labels(config: Any) -> list[str]:
    return [str(config.id2label[i]) for i in sorted(config.id2label)] if config.id2label else []


def _labels_of(head: Head) -> list[str]:
    # transformers' own names, so that a regression's head is found again.
    return list(head.labels) or [f"LABEL_{i}" for i in range(head.outputs)]


def _outside_base(model: Any, name: str) -> bool:
    return not name.startswith(f"{model.base_model_prefix}.")


def _output_layers(model: Any, head: Head) -> list[str]:
    from torch import nn

    linear = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [path for path, module in linear if _outside_base(model, path) and module.out_features == head.outputs]


def _check_sizes(origin: Origin, model: Any, mismatched: Any, head: Head | None) -> set[str]:
    """Names of head weights of another size, which begin anew; any other size that differs is refused."""
    wrong = [(name, tuple(kept), tuple(wanted)) for name, kept, wanted in sorted(mismatched)]
    refused = [row for row in wrong if head is None or not _outside_base(model, row[0])]
    if refused:
        name, kept, wanted = refused[0]
        raise ModelError(
            "weights of this model do not have the sizes that config.json says",
            where=origin.source,
            got=f"{name} has {list(kept)} and not {list(wanted)}"
            + (f", and {len(refused) - 1} more" if refused[1:] else ""),
            do="use the config.json that belongs to these weights",
        )
    return {name for name, _, _ in wrong}


def _check_missing(origin: Origin, model: Any, missing: set[str], head: Head | None) -> tuple[str, ...]:
    """Modules that may begin at random: the head, and BERT's pooler, which a model trained on masked words has not."""
    allowed = {name for name in missing if head is not None and (_outside_base(model, name) or ".pooler." in name)}
    if lost := sorted(missing - allowed):
        raise ModelError(
            "weights are missing from this model",
            where=origin.source,
            got=", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if lost[5:] else ""),
            do="use the config.json that belongs to these weights, or fetch them again",
        )
    return tuple(sorted({name.rpartition(".")[0] for name in allowed}))


def _begin(model: Any, fresh: tuple[str, ...], *, seed: int) -> None:
    """Draws fresh layers as BERT and GPT-2 do, N(0, initializer_range), from a generator of their own: equal seeds give
    equal heads in every version of transformers and whatever was drawn before."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    spread = float(getattr(model.config, "initializer_range", 0.02))
    with torch.no_grad():
        for path in fresh:
            module = model.get_submodule(path)
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias":
                    parameter.zero_()
                elif parameter.ndim > 1:
                    drawn = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, spread, generator=generator)
                    parameter.copy_(drawn)
                else:
                    parameter.fill_(1.0)


def _own(model: Any) -> None:
    """Copies weights that still lie in the mapped file, where they begin at any multiple of 4 bytes.

    Vector code takes another path there and rounds differently: the same weights gave logits that differed by 1e-7. The
    copy makes results depend on the values alone, and a file that is changed meanwhile cannot reach the model.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


def _notes(origin: Origin, model: Any, fresh: tuple[str, ...], unexpected: Any, head: Head | None) -> tuple[str, ...]:
    notes = []
    # A sequence head takes the place of the head that predicted tokens; that one is left out on purpose.
    # position_ids is a buffer that older versions saved: it counts from 0 and is made anew.
    unused = sorted(
        name
        for name in unexpected
        if not name.endswith("embeddings.position_ids") and (head is None or not _head_of_another_task(name))
    )
    if unused:
        more = f" and {len(unused) - 5} more" if unused[5:] else ""
        notes.append(
            f"{origin.source}: weights that config.json has no place for were left out: {', '.join(unused[:5])}{more}"
        )
    if inside := [path for path in fresh if not _outside_base(model, path)]:
        notes.append(f"{origin.source}: besides the head, {', '.join(inside)} begins at random: the weights had none")
    return tuple(notes)


def _head_of_another_task(name: str) -> bool:
    return name.startswith(("lm_head.", "cls.", "decoder.", "head.", "classifier.", "score."))


def _refuse_unknown_tokens(tokenizer: Any, rows: int, origin: Origin) -> None:
    beyond = {token: index for token, index in tokenizer.get_vocab().items() if index >= rows}
    special = set(tokenizer.all_special_tokens)
    special |= {added.content for added in tokenizer.added_tokens_decoder.values() if added.special}
    template = json.dumps(tokenizer.chat_template or "", ensure_ascii=False)
    written = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token} | {
        token for token in beyond if token in template
    }
    if used := sorted(token for token in beyond if token not in special or token in written):
        raise ModelError(
            "the tokenizer has more tokens than the model has embeddings for",
            where=origin.source,
            got=f"{max(beyond.values()) + 1} tokens for {rows} rows, among them {', '.join(used[:5])}",
            do="use the tokenizer that belongs to these weights",
        )


def _weights_folder(origin: Origin, *, progress: Progress | None) -> Path:
    """The folder to load weights from."""
    return _kept(origin, "weights", _convert_weights, progress) if origin.path.is_file() else origin.path


def _tokenizer_folder(origin: Origin, *, progress: Progress | None) -> Path:
    """The folder to load a tokenizer from."""
    return _kept(origin, "tokenizer", _convert_tokenizer, progress) if origin.path.is_file() else origin.path


def _kept(origin: Origin, part: str, convert: Callable[[Origin, Path], None], progress: Progress | None) -> Path:
    """A part of a GGUF file as a folder in the cache."""
    target = cache.models() / "gguf" / f"{origin.sha256}-{FORMAT}-{part}"
    if not target.exists():
        if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
            raise ModelError(
                "packages for reading GGUF are missing", where=origin.source, got=", ".join(missing),
                do="pip install 'luthier[gguf]'",
            )  # fmt: skip
        if progress is not None:
            progress(f"reading the {part} of {origin.path.name}; the next start takes them from {target}")
        with cache.fill(target) as folder:
            convert(origin, folder)
    return target


def _convert_weights(origin: Origin, folder: Path) -> None:
    import torch
    import transformers

    # Versions that have this class keep the blocks unless asked not to: such a model trains and then cannot be saved.
    options = (
        {"quantization_config": transformers.GgufConfig(dequantize=True)} if hasattr(transformers, "GgufConfig") else {}
    )
    with _reading(origin, "transformers cannot read this GGUF file"):
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            origin.path.parent,
            gguf_file=origin.path.name,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
        _check_missing(origin, model, set(info["missing_keys"]), None)
        model.save_pretrained(folder)


def _convert_tokenizer(origin: Origin, folder: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    with _reading(origin, "transformers cannot read the tokenizer of this GGUF file"):
        tokenizer = AutoTokenizer.from_pretrained(
            origin.path.parent, gguf_file=origin.path.name, local_files_only=True, trust_remote_code=False
        )
        # transformers 5.0 takes the beginning of a turn for the end of the text; the file says which token is which.
        for role, key in _SPECIAL.items():
            if (index := origin.gguf.get(f"tokenizer.ggml.{key}_token_id")) is not None:
                setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(index))
        tokenizer.save_pretrained(folder)
    path = folder / "tokenizer.json"
    state = read_object(path)
    named = origin.gguf.get("tokenizer.ggml.pre")
    if named in PRE_TOKENIZERS:
        state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(PRE_TOKENIZERS[named])}
        path.write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        Tokenizer.from_file(str(path))
        return
    splitting = state.get("pre_tokenizer") or {}
    if splitting.get("type") == "ByteLevel" and splitting.get("use_regex") and named not in _LIKE_GPT2:
        raise ModelError(
            "how this GGUF file splits text before tokenizing is not known here, and a guess would mistrain the model",
            where=origin.source,
            got=f"tokenizer.ggml.pre is {named or 'not there'}",
            do="name the original tokenizer: model.tokenizer, a folder or a hub id",
        )


@contextmanager
def _reading(origin: Origin, what: str) -> Iterator[None]:
    """Keeps transformers from printing what is checked here, and turns what it raises into a `ModelError`."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except LuthierError:
        raise
    except MemoryError:
        raise OutOfMemory("the model does not fit this machine's memory", where=origin.source) from None
    # A malformed model makes transformers raise what its code runs into: KeyError, ZeroDivisionError, its own types.
    except Exception as error:
        said = [line.strip() for line in str(error).splitlines() if line.strip()]
        if "allocate memory" in str(error):
            raise OutOfMemory(
                "the model does not fit this machine's memory", where=origin.source, got=said[0][:200]
            ) from error
        if "No space left" in str(error):
            do = "free some space, or set LUTHIER_CACHE to a larger disk"
            raise StorageError("the disk is full", where=str(cache.root()), do=do) from error
        do = ""
        if "trust_remote_code" in str(error):
            what, said = "this model needs Python code of its own to load", []
            do = f"read that code; to run it, set model.remote_code to {origin.source}"
        got = f"{type(error).__name__}: {' '.join(said)[:300]}" if said else ""
        raise ModelError(what, where=origin.source, got=got, do=do) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
