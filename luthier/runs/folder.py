"""Every path of a run, named once, and the ways its files are written: beside, then renamed.

RUN/asked.yaml         the recipe as it was given        RUN/data/             tokens and rows of each side
RUN/recipe.yaml        the resolved recipe               RUN/model/            adapter or weights, tokenizer, card
RUN/manifest.json      hashes, versions, seeds, parents  RUN/checkpoints/      what resume needs
RUN/events.jsonl       the journal                       RUN/evaluation.json   base against tuned
RUN/findings.json      what was seen in the data         RUN/predictions.jsonl one line an item and arm
RUN/derived.json       what was derived, and why         RUN/report.html       all of it on one page
RUN/gate/              what the data gate found: report.html, report.json, findings.parquet, policy.yaml
RUN/frozen/            states of frozen layers, until training ends
RUN/sweep.json         the arms of a sweep               RUN/arms/NAME/        each of them, a run by itself
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import InputError, StorageError
from luthier.types import Side


@dataclass(frozen=True)
class RunFolder:
    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def asked(self) -> Path:
        """The recipe as it was given, before anything was derived."""
        return self.root / "asked.yaml"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def findings(self) -> Path:
        return self.root / "findings.json"

    @property
    def gate(self) -> Path:
        """What the data gate found: report.html, report.json, findings.parquet, policy.yaml."""
        return self.root / "gate"

    @property
    def derived(self) -> Path:
        """Which recipe values were derived, and why: `[{key, value, why}]`."""
        return self.root / "derived.json"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def frozen(self) -> Path:
        """States of frozen layers, while training goes on."""
        return self.root / "frozen"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation.json"

    @property
    def predictions(self) -> Path:
        return self.root / "predictions.jsonl"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def card(self) -> Path:
        return self.model / "README.md"

    @property
    def sweep(self) -> Path:
        """The arms of a sweep: `{arms: [{name, values}]}`. Only a sweep has it."""
        return self.root / "sweep.json"

    @property
    def arms(self) -> Path:
        """Folders of a sweep's arms."""
        return self.root / "arms"

    def side(self, side: Side) -> Path:
        """The prepared rows and tokens of train, validation or test."""
        return self.root / "data" / side

    @classmethod
    def create(cls, root: Path) -> RunFolder:
        """A new run folder.

        Raises:
            InputError: something is there already; nothing is ever overwritten unasked.
        """
        do = f"luthier resume {root}" if cls(root).events.exists() else "choose another --run"
        refuse_filled(root, do=f"{do}, or remove it yourself")
        with storage(root):
            root.mkdir(parents=True, exist_ok=True)
        return cls(root)

    @classmethod
    def open(cls, root: Path) -> RunFolder:
        """An existing run folder.

        Raises:
            InputError: there is none.
        """
        run = cls(root)
        if not root.exists():
            raise InputError("there is no such run", where=str(root), do="luthier runs lists the runs of this folder")
        if not run.events.exists() or not run.asked.exists():
            raise InputError(
                "this folder holds no run", where=str(root), got="no asked.yaml and events.jsonl", do="luthier runs"
            )
        return run


def refuse_filled(folder: Path, *, do: str) -> None:
    """Nothing is ever overwritten unasked.

    Raises:
        InputError: something is there already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("this folder is not empty", where=str(folder), do=do)


@contextmanager
def storage(where: Path) -> Iterator[None]:
    """Turns the disk's own errors into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(where) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EFBIG):
            raise StorageError("this cannot be written", where=str(where), got=error.strerror or "") from error
        raise
    # safetensors and tokenizers are written in Rust: they raise types of their own and quote the system's error.
    except Exception as error:
        if f"(os error {errno.ENOSPC})" in str(error):
            raise _full(where) from error
        raise


def _full(where: Path) -> StorageError:
    do = "free some space, then luthier resume; nothing saved is lost"
    return StorageError("the disk is full", where=str(where), do=do)


def sync(path: Path) -> None:
    """Makes a file's content, or the renames inside a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file beside and renames it into place: a reader sees the old file or the new one."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    with storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Always the same name: what a kill leaves is written over, and does not pile up.
        beside = path.with_name(f".{path.name}.partial")
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON artefact of a run.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("this run has no such file yet", where=str(path)) from None
    except ValueError as error:
        raise InputError("this file is damaged", where=str(path), got=str(error)[:100]) from None
