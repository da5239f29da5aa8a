"""Checkpoints: everything that the next step depends on, written beside and renamed, so that one exists whole or not at
all.

    checkpoints/step-000120/  weights.safetensors    trained weights by name
                              moments.safetensors    AdamW's two moments by name
                              state.json             step, best validation, SHA-256 of both files

Nothing else is state: the data of a step, its rate and its dropout are functions of the step's number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from luthier.errors import InputError
from luthier.runs.folder import storage, sync

_NAME = re.compile(r"step-(\d{6,})$")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    step: int = 0
    """Finished optimizer steps."""
    best_step: int | None = None
    """The step of the best validation so far."""
    best_loss: float | None = None
    unimproved: int = 0
    """Validations since the best."""
    done: bool = False
    """Training has ended, by its last step or early."""


def save_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, progress: Progress
) -> Path:
    """Writes `folder`/step-N and returns it.

    Raises:
        StorageError: the disk is full or read-only; earlier checkpoints stand.
    """
    final = _place(folder, progress.step)
    beside = folder / f".{final.name}.partial"
    weights = {name: p.detach().contiguous() for name, p in parameters.items()}
    moments: dict[str, Tensor] = {}
    for name, p in parameters.items():
        for key, value in optimizer.state.get(p, {}).items():
            moments[f"{name}|{key}"] = value.detach().reshape(value.shape).contiguous()
    with storage(final):
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir(parents=True)
            files = {
                name: _write(beside / name, save(tensors))
                for name, tensors in (("weights.safetensors", weights), ("moments.safetensors", moments))
            }
            state = {**asdict(progress), "files": files}
            _write(beside / "state.json", json.dumps(state, indent=2).encode())
            sync(beside)
            if final.exists():
                shutil.rmtree(final)
            os.rename(beside, final)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync(folder)
    return final


def load_checkpoint(
    folder: Path, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer | None
) -> Progress:
    """Puts one checkpoint's weights (and moments) into existing tensors.

    Raises:
        InputError: a file is damaged, or belongs to other weights.
    """
    progress = inspect(folder)
    weights = load_file(folder / "weights.safetensors")
    theirs = {(name, weight.shape) for name, weight in weights.items()}
    ours = {(name, p.shape) for name, p in parameters.items()}
    if theirs != ours:
        raise InputError(
            "this checkpoint belongs to other weights",
            where=str(folder),
            got=f"{len({name for name, _ in theirs ^ ours})} names or sizes differ",
            do="the run folder's recipe was changed; start a new run",
        )
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(weights[name])
    if optimizer is not None:
        moments = load_file(folder / "moments.safetensors")
        for key, value in moments.items():
            name, _, slot = key.rpartition("|")
            optimizer.state[parameters[name]][slot] = value.to(parameters[name].device)
    return progress


def inspect(folder: Path) -> Progress:
    """Reads a checkpoint's state and checks both files against their hashes.

    Raises:
        InputError: something is missing or damaged.
    """
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        files = state.pop("files")
        damaged = [name for name, digest in files.items() if _sha256(folder / name) != digest]
        progress = Progress(**state)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError("this checkpoint is damaged", where=str(folder), got=type(error).__name__) from None
    if damaged:
        raise InputError("this checkpoint is damaged", where=str(folder), got=f"changed: {', '.join(damaged)}")
    return progress


def usable(folder: Path) -> tuple[Path | None, list[Path]]:
    """The newest checkpoint that is whole, and the newer ones that are damaged."""
    damaged = []
    for path in reversed(listed(folder)):
        try:
            inspect(path)
        except InputError:
            damaged.append(path)
        else:
            return path, damaged
    return None, damaged


def level(folders: Sequence[Path]) -> None:
    """Takes runs that go forward together back to the newest step that all of them have: the start, a whole checkpoint,
    or a step after one's end. Newer checkpoints are removed; damaged ones stay."""
    states = [_whole(folder) for folder in folders]
    ends = [min((step for step, progress in steps.items() if progress.done), default=math.inf) for steps in states]
    common = max(
        step
        for step in {0}.union(*states)
        if all(step == 0 or step in steps or step > end for steps, end in zip(states, ends, strict=True))
    )
    for folder, steps in zip(folders, states, strict=True):
        for step in steps:
            if step > common:
                shutil.rmtree(_place(folder, step))


def _whole(folder: Path) -> dict[int, Progress]:
    """The state of each checkpoint that is not damaged, by its step."""
    found = {}
    for path in listed(folder):
        with contextlib.suppress(InputError):
            progress = inspect(path)
            found[progress.step] = progress
    return found


def listed(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    if not folder.exists():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.match(p.name)), key=lambda p: int(p.name[5:]))


def _place(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def prune(folder: Path, *, newest: int = 2) -> None:
    """Removes all but the `newest` checkpoints and the best step of each of them (should the newest turn out damaged,
    the one before it still has its best), and what a kill left half-written."""
    if not folder.exists():
        return
    kept = listed(folder)[-newest:]
    best = {_best_step(path) for path in kept}
    for path in listed(folder)[:-newest]:
        if int(path.name[5:]) not in best:
            shutil.rmtree(path)
    for path in folder.glob(".*.partial"):
        shutil.rmtree(path)


def _best_step(path: Path) -> int | None:
    try:
        step: int | None = json.loads((path / "state.json").read_text(encoding="utf-8"))["best_step"]
    except (OSError, ValueError, KeyError):
        return None
    return step


def _write(path: Path, data: bytes) -> str:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
