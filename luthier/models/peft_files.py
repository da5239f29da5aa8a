"""Adapters as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.

Only settings that differ from PEFT's defaults are written, lists sorted, so that equal adapters give equal files and
older versions of PEFT can read them.

A LoRA whose start took a part out of the base (PiSSA, OLoRA, LoftQ) is written as plain LoRA on the original base:
s B A - s B0 A0 has rank 2r. On a base that was quantised meanwhile this is near to what was trained and not equal to
it. Which base an adapter saw stands in the tensor file's metadata, which PEFT passes over.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models import adapters, peft_methods
from luthier.recipe import Lora, Peft
from luthier.runs.folder import read_json, write_bytes, write_text

_PREFIX = "base_model.model."
_QUANTISED = "luthier.base"
"""Key of the metadata: how the base's linear layers were stored, a word of `recipe.Model.quantise`."""
_UNDERSTOOD = {
    "peft_type", "task_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path", "inference_mode",
    "use_rslora", "use_dora", "fan_in_fan_out", "modules_to_save", "layers_to_transform", "lora_dropout", "bias",
    "auto_mapping", "revision", "peft_version", "init_lora_weights", "exclude_modules", "layers_pattern",
    "loftq_config", "ephemeral_gpu_offload",
}  # fmt: skip

_SETTINGS_WITHOUT_EFFECT = {"megatron_core": "megatron.core", "qalora_group_size": 16}
"""Defaults of PEFT that say something and change nothing."""
_ONLY: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    # Other ways to begin (PiSSA, OLoRA, CorDA, LoftQ) change the base, so that the adapter belongs to other weights.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


def save_adapter(
    folder: Path,
    model: nn.Module,
    adapter: Lora | Peft,
    *,
    base: str,
    revision: str | None = None,
    head: tuple[str, ...] = (),
    quantise: str = "none",
) -> None:
    """Writes the adapter of `model` into `folder`.

    Args:
        base: what `base_model_name_or_path` says.
        revision: the commit of a base on the hub.
        head: names of a sequence head's modules, saved whole.
        quantise: how the base was stored while it was trained on.
    """
    config: dict[str, Any] = {
        **(_lora_config(model, adapter, head) if isinstance(adapter, Lora) else peft_methods.config(model)),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
    }
    if revision is not None:
        config["revision"] = revision
    # Whole paths: PEFT takes `norm` for every module whose name ends in these letters.
    ours = (*head, *adapter.modules_to_save) if isinstance(adapter, Lora) else head
    if whole := sorted({path for name in ours for path in adapters.named(model, name)}):
        config["modules_to_save"] = sorted({*whole, *(config.get("modules_to_save") or ())})
    metadata = {"format": "pt"}
    if quantise != "none" and not _converted(model):
        metadata[_QUANTISED] = quantise
    file = _ordered(save(tensors(model, head=head), metadata=metadata))
    write_bytes(folder / "adapter_model.safetensors", file)
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _ordered(file: bytes) -> bytes:
    """A safetensors file with its metadata in order: safetensors writes them as they lie in a hash map, otherwise in
    every process. The file begins with the length of its header in 8 bytes, then the header as JSON."""
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
    assert len(text) == length
    return file[:8] + text + file[8 + length :]


def tensors(model: nn.Module, *, head: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """What `adapter_model.safetensors` holds for the adapter of `model`, by the names in it."""
    if peft_methods.attached(model) is not None:
        ours = {path for name in head for path in adapters.named(model, name)}
        whole = {n: p for n, p in adapters.trained(model).items() if n.rpartition(".")[0] in ours}
        return {**peft_methods.tensors(model), **{_PREFIX + n: p.detach().contiguous() for n, p in whole.items()}}
    found: dict[str, Tensor] = {}
    for path, layer in adapters.lora_layers(model):
        A, B = layer.lora_A.detach(), layer.lora_B.detach()
        if layer.start_A is not None and layer.start_B is not None:
            A, B = torch.cat([A, layer.start_A]), torch.cat([B, -layer.start_B], 1)
        found[f"{_PREFIX}{path}.lora_A.weight"] = A.contiguous()
        found[f"{_PREFIX}{path}.lora_B.weight"] = B.contiguous()
    for name, parameter in adapters.trained(model).items():
        if ".lora_A" not in name and ".lora_B" not in name:
            found[_PREFIX + name] = parameter.detach().contiguous()
    return found


def _converted(model: nn.Module) -> bool:
    """Whether the adapter is written for another base than the one in memory."""
    return any(layer.start_A is not None for _, layer in adapters.lora_layers(model))


def _lora_config(model: nn.Module, adapter: Lora, head: tuple[str, ...]) -> dict[str, Any]:
    layers = list(adapters.lora_layers(model))
    rank, alpha = adapter.rank, adapter.alpha
    if _converted(model):
        # Twice the rank under the same factor, which is then alpha / rank in either case.
        rank, alpha = 2 * adapter.rank, 2 * adapter.rank * adapters.scale_of(adapter)
    config: dict[str, Any] = {
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": _named([path for path, _ in layers], model),
    }
    if any(layer.transposed for _, layer in layers):
        config["fan_in_fan_out"] = True
    if adapter.rslora and not _converted(model):
        config["use_rslora"] = True
    if adapter.dora:
        config["use_dora"] = True
    if adapter.dropout:
        config["lora_dropout"] = adapter.dropout
    return config


def _named(paths: list[str], model: nn.Module) -> list[str]:
    """The last parts of `paths` where they mean these layers and no others, else the whole paths."""
    short = {path.rpartition(".")[2] for path in paths}
    meant = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in short]
    return sorted(short) if sorted(meant) == sorted(paths) else sorted(paths)


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's settings, refused where they ask for more than is implemented."""
    config: dict[str, Any] = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        return config
    # PEFT writes every default; a key that we do not know matters only where it says something.
    unknown = {k for k, v in config.items() if k not in _UNDERSTOOD and v and _SETTINGS_WITHOUT_EFFECT.get(k) != v}
    unknown |= {k for k, allowed in _ONLY.items() if k in config and config[k] not in allowed}
    if unknown:
        raise ModelError(
            "this adapter uses what Luthier does not implement", where=str(folder), got=", ".join(sorted(unknown))
        )
    return config


def load_adapter(folder: Path, model: nn.Module) -> Lora | Peft:
    """Attaches the adapter in `folder` to a freshly loaded `model` and returns its settings. The model's linear layers
    are quantised first where the adapter was trained on such.

    Raises:
        ModelError: the adapter needs what is not implemented, or does not fit the model.
    """
    config = read_config(folder)
    file = folder / "adapter_model.safetensors"
    saved = load_file(file)
    with safe_open(file, framework="pt") as opened:
        quantise: str = (opened.metadata() or {}).get(_QUANTISED, "none")
    # A classifier's whole modules end in scores, which stay in float32 as they were in training. PEFT lists
    # `classifier` and `score` for every classifier; it has tensors for the one that exists.
    whole = [
        name for name in sorted(config.get("modules_to_save") or []) if any(f".{name}." in f".{k}." for k in saved)
    ]
    head = tuple(whole) if config.get("task_type") == "SEQ_CLS" else ()
    if config["peft_type"] != "LORA":
        return _load_method(folder, model, config, saved, head=head, quantise=quantise)
    paths = sorted({k[len(_PREFIX) :].removesuffix(".lora_A.weight") for k in saved if k.endswith(".lora_A.weight")})
    missing = [p for p in paths if p not in dict(model.named_modules())]
    if missing:
        raise ModelError(
            "this adapter belongs to another model",
            where=str(folder),
            got=f"{len(missing)} layers are not in it, such as {missing[0]}",
        )
    adapter = Lora(
        rank=config["r"],
        alpha=config["lora_alpha"],
        targets=paths,
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        dropout=config.get("lora_dropout", 0.0),
        modules_to_save=[] if head else whole,
    )
    adapters.attach(model, adapter, seed=0, head=head, quantise=quantise)
    parameters = dict(model.named_parameters())
    for key, value in saved.items():
        name = key[len(_PREFIX) :]
        if name.endswith((".lora_A.weight", ".lora_B.weight")):
            name = name.removesuffix(".weight")
        _fill(parameters, name, value, where=str(folder))
    return adapter


def _fill(parameters: dict[str, nn.Parameter], name: str, value: Tensor, *, where: str) -> None:
    got = name
    if name in parameters:
        if parameters[name].shape == value.shape:
            with torch.no_grad():
                parameters[name].copy_(value)
            return
        got = f"{name}: {tuple(value.shape)} for {tuple(parameters[name].shape)}"
    raise ModelError("this adapter belongs to another model", where=where, got=got)


def _load_method(
    folder: Path,
    model: nn.Module,
    config: dict[str, Any],
    saved: dict[str, Tensor],
    *,
    head: tuple[str, ...],
    quantise: str,
) -> Peft:
    """Attaches an adapter of another method than LoRA."""
    method = str(config["peft_type"]).lower()
    if method not in get_args(Peft.model_fields["method"].annotation):
        raise ModelError("adapters of this method cannot be loaded", where=str(folder), got=config["peft_type"])
    known = peft_methods.known_settings(method)
    bookkeeping = {"peft_type", "task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping",
                   "peft_version"}  # fmt: skip
    if unknown := sorted(k for k, v in config.items() if k not in known and k not in bookkeeping and v):
        raise ModelError("this adapter uses what PEFT here does not have", where=str(folder), got=", ".join(unknown))
    settings = {key: value for key, value in config.items() if key in known}
    if head:
        settings.pop("modules_to_save")
    adapter = Peft(method=method, settings=settings)  # type: ignore[arg-type]
    if quantise != "none":
        adapters.quantise_rest(model, quantise, whole=head)
    ours = {path for name in head for path in adapters.named(model, name)}
    theirs = {k: v for k, v in saved.items() if k.removeprefix(_PREFIX).rpartition(".")[0] not in ours}
    peft_methods.load(model, adapter, theirs, where=str(folder))
    for name in head:
        adapters.train_whole(model, name, leave_in=None)
    parameters = dict(model.named_parameters())
    for key in sorted(set(saved) - set(theirs)):
        _fill(parameters, key.removeprefix(_PREFIX), saved[key], where=str(folder))
    return adapter
