"""Adapters as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.

Only settings that differ from PEFT's defaults are written, lists sorted, so that equal adapters give equal files and
older versions of PEFT can read them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models import adapters
from luthier.recipe import Lora
from luthier.runs.folder import read_json, write_bytes, write_text

_PREFIX = "base_model.model."
_UNDERSTOOD = {
    "peft_type", "task_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path", "inference_mode",
    "use_rslora", "fan_in_fan_out", "modules_to_save", "layers_to_transform", "lora_dropout", "bias", "auto_mapping",
    "revision", "peft_version", "init_lora_weights", "exclude_modules", "layers_pattern",
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
    adapter: Lora,
    *,
    base: str,
    revision: str | None = None,
    head: tuple[str, ...] = (),
) -> None:
    """Writes the adapter of `model` into `folder`.

    Args:
        base: what `base_model_name_or_path` says.
        revision: the commit of a base on the hub.
        head: names of a sequence head's modules, saved whole.
    """
    tensors: dict[str, Tensor] = {}
    layers = list(adapters.lora_layers(model))
    for path, layer in layers:
        tensors[f"{_PREFIX}{path}.lora_A.weight"] = layer.lora_A.detach().contiguous()
        tensors[f"{_PREFIX}{path}.lora_B.weight"] = layer.lora_B.detach().contiguous()
    # Whole paths: PEFT takes `norm` for every module whose name ends in these letters.
    whole = sorted({path for name in (*head, *adapter.modules_to_save) for path in adapters.named(model, name)})
    for name, parameter in adapters.trained(model).items():
        if ".lora_A" not in name and ".lora_B" not in name:
            tensors[_PREFIX + name] = parameter.detach().contiguous()
    config: dict[str, Any] = {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "lora_alpha": int(adapter.alpha) if adapter.alpha == int(adapter.alpha) else adapter.alpha,
        "peft_type": "LORA",
        "r": adapter.rank,
        "target_modules": _named([path for path, _ in layers], model),
        "task_type": "SEQ_CLS" if head else "CAUSAL_LM",
    }
    if revision is not None:
        config["revision"] = revision
    if any(layer.transposed for _, layer in layers):
        config["fan_in_fan_out"] = True
    if adapter.rslora:
        config["use_rslora"] = True
    if adapter.dropout:
        config["lora_dropout"] = adapter.dropout
    if whole:
        config["modules_to_save"] = whole
    write_bytes(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
    write_text(folder / "adapter_config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _named(paths: list[str], model: nn.Module) -> list[str]:
    """The last parts of `paths` where they mean these layers and no others, else the whole paths."""
    short = {path.rpartition(".")[2] for path in paths}
    meant = [path for path, _ in model.named_modules() if path.rpartition(".")[2] in short]
    return sorted(short) if sorted(meant) == sorted(paths) else sorted(paths)


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's settings, refused where they ask for more than plain LoRA."""
    config: dict[str, Any] = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA":
        raise ModelError("only LoRA adapters can be loaded", where=str(folder), got=str(config.get("peft_type")))
    # PEFT writes every default; a key that we do not know matters only where it says something.
    unknown = {k for k, v in config.items() if k not in _UNDERSTOOD and v and _SETTINGS_WITHOUT_EFFECT.get(k) != v}
    unknown |= {k for k, allowed in _ONLY.items() if k in config and config[k] not in allowed}
    if unknown:
        raise ModelError(
            "this adapter uses what Luthier does not implement", where=str(folder), got=", ".join(sorted(unknown))
        )
    return config


def load_adapter(folder: Path, model: nn.Module) -> Lora:
    """Attaches the adapter in `folder` to a freshly loaded `model`; returns its settings.

    Raises:
        ModelError: the adapter needs what is not implemented, or does not fit the model.
    """
    config = read_config(folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    paths = sorted({k[len(_PREFIX) :].removesuffix(".lora_A.weight") for k in tensors if k.endswith(".lora_A.weight")})
    missing = [p for p in paths if p not in dict(model.named_modules())]
    if missing:
        raise ModelError(
            "this adapter belongs to another model",
            where=str(folder),
            got=f"{len(missing)} layers are not in it, such as {missing[0]}",
        )
    # PEFT lists `classifier` and `score` for every classifier; it has tensors for the one that exists.
    whole = [
        name for name in sorted(config.get("modules_to_save") or []) if any(f".{name}." in f".{k}." for k in tensors)
    ]
    # A classifier's whole modules end in scores, which stay in float32 as they were in training.
    head = tuple(whole) if config.get("task_type") == "SEQ_CLS" else ()
    adapter = Lora(
        rank=config["r"],
        alpha=config["lora_alpha"],
        targets=paths,
        rslora=bool(config.get("use_rslora")),
        dropout=config.get("lora_dropout", 0.0),
        modules_to_save=[] if head else whole,
    )
    adapters.attach(model, adapter, seed=0, head=head)
    targets = dict(adapters.lora_layers(model))
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for key, value in tensors.items():
            name = key[len(_PREFIX) :]
            for part in ("lora_A", "lora_B"):
                if name.endswith(f".{part}.weight"):
                    parameter = getattr(targets[name.removesuffix(f".{part}.weight")], part)
                    break
            else:
                if name not in parameters:
                    raise ModelError("this adapter belongs to another model", where=str(folder), got=name)
                parameter = parameters[name]
            if parameter.shape != value.shape:
                raise ModelError(
                    "this adapter belongs to another model",
                    where=str(folder),
                    got=f"{name}: {tuple(value.shape)} for {tuple(parameter.shape)}",
                )
            parameter.copy_(value)
    return adapter
