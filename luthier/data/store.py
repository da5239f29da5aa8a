"""Examples on disk: one JSON object a line, and where each line starts. Any example is read without the others.

FOLDER/examples.jsonl    canonical examples, readable by people and other tools
FOLDER/offsets.npy       int64, one more than there are examples: line i is bytes offsets[i] to offsets[i + 1]
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from luthier.errors import InputError
from luthier.runs.folder import storage, sync
from luthier.types import JSON, Conversation, Example, Labelled, Message, Provenance, Text

_EXAMPLES, _OFFSETS = "examples.jsonl", "offsets.npy"


class ExampleStore:
    """Reads examples by index; holds no more than one of them in memory."""

    def __init__(self, folder: Path) -> None:
        """Opens a finished store.

        Raises:
            InputError: there is none, or it is damaged.
        """
        self.folder = folder
        try:
            self._offsets = np.load(folder / _OFFSETS, mmap_mode="r", allow_pickle=False)
            self._file = os.open(folder / _EXAMPLES, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise InputError("there are no prepared examples here", where=str(folder)) from None
        except (ValueError, EOFError):
            raise InputError("the prepared examples are damaged", where=str(folder), do="prepare them again") from None
        # Closes with the store or with the process, whichever comes first; nobody has to remember it.
        self.close = weakref.finalize(self, os.close, self._file)
        if self._offsets[-1] != os.fstat(self._file).st_size:
            self.close()
            raise InputError("the prepared examples are damaged", where=str(folder), do="prepare them again")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> Example:
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        # pread, so that threads and forked workers may read at the same time.
        return decode(json.loads(os.pread(self._file, end - start, start)))

    def __iter__(self) -> Iterator[Example]:
        return (self[index] for index in range(len(self)))

    def __enter__(self) -> ExampleStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StoreWriter:
    """Takes examples one by one into a folder beside `folder`, which takes its place on `finish`.

    As a context manager it leaves nothing behind unless `finish` was called.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with storage(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            # Always the same name: what a kill leaves is written over, and no copy of the rows stays behind.
            self._beside = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(self._beside, ignore_errors=True)
            self._beside.mkdir()
            self._file = (self._beside / _EXAMPLES).open("wb")
        self._offsets = array("q", [0])

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, example: Example) -> int:
        """Adds an example and returns its index."""
        line = json.dumps(encode(example), ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
        with storage(self.folder):
            size = self._file.write(line.encode("utf-8"))
        self._offsets.append(self._offsets[-1] + size)
        return len(self) - 1

    def finish(self) -> ExampleStore:
        """Puts the store in place, instead of one that stood there, and opens it."""
        with storage(self.folder):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            np.save(self._beside / _OFFSETS, np.frombuffer(self._offsets, dtype=np.int64), allow_pickle=False)
            if (self.folder / _OFFSETS).exists():
                shutil.rmtree(self.folder)
            os.replace(self._beside, self.folder)
            sync(self.folder.parent)
        return ExampleStore(self.folder)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._beside.exists():
            shutil.rmtree(self._beside)


def encode(example: Example) -> JSON:
    """An example as a JSON object; `decode` gives back an equal one."""
    source = example.provenance
    row: JSON = {"id": example.id, "file": source.file, "line": source.line, "hash": source.hash}
    if isinstance(example, Conversation):
        row |= {"kind": "conversation", "messages": [_message(message) for message in example.messages]}
        row |= {"tools": list(example.tools)} if example.tools else {}
    elif isinstance(example, Text):
        row |= {"kind": "text", "text": example.text}
    else:
        row |= {"kind": "labelled", "text": example.text, "labels": list(example.labels), "value": example.value}
    return row | ({"columns": dict(example.columns)} if example.columns else {})


def _message(message: Message) -> JSON:
    row: JSON = {"role": message.role, "content": message.content}
    row |= {"weight": message.weight} if message.weight is not None else {}
    return row | ({"extra": dict(message.extra)} if message.extra else {})


def decode(row: Mapping[str, Any]) -> Example:
    source = Provenance(row["file"], row["line"], row["hash"])
    columns = row.get("columns", {})
    if row["kind"] == "conversation":
        messages = tuple(Message(m["role"], m["content"], m.get("weight"), m.get("extra", {})) for m in row["messages"])
        return Conversation(row["id"], messages, source, tuple(row.get("tools", ())), columns)
    if row["kind"] == "text":
        return Text(row["id"], row["text"], source, columns)
    return Labelled(row["id"], row["text"], tuple(row["labels"]), source, row["value"], columns)
