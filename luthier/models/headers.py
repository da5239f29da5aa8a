"""What weight files say of themselves, read without loading them: is the file whole, and what is it.

Formats: safetensors (https://github.com/huggingface/safetensors#format) and GGUF
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little endian, versions 2 and 3.
"""

from __future__ import annotations

import json
import mmap
import struct
from pathlib import Path
from typing import Any

from luthier.errors import ModelError

_LONGEST_HEADER = 100_000_000
"""The safetensors library's own limit, in bytes."""
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""GGUF's value types with the `struct` format of each."""
_STRING, _ARRAY = 8, 9
_AGAIN = "get the file again; this copy is incomplete or damaged"


def refuse_pointer(path: Path) -> None:
    """Stops at the text file that git leaves in place of a large file that was not fetched.

    Raises:
        ModelError: the file is such a pointer.
    """
    with path.open("rb") as file:
        if file.read(24).startswith(b"version https://git-lfs"):
            raise ModelError(
                "this is a Git LFS pointer and not the weights", where=str(path), do="run `git lfs pull` in its folder"
            )


def check_safetensors(path: Path) -> None:
    """Reads the header and compares it with the size of the file.

    Raises:
        ModelError: the header is no safetensors header, or the file is shorter or longer than it says.
    """
    refuse_pointer(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(_LONGEST_HEADER, size - 8):
            raise ModelError("this is no whole safetensors file", where=str(path), got=f"{size} bytes", do=_AGAIN)
        text = file.read(length)
    try:
        header = json.loads(text)
        ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise ModelError("the header of this safetensors file cannot be read", where=str(path), do=_AGAIN) from None
    expected = 8 + length + max(ends, default=0)
    if size != expected:
        raise ModelError(
            "this safetensors file does not have the size that its header says",
            where=str(path),
            got=f"{size} bytes of {expected}",
            do=_AGAIN,
        )


def gguf_metadata(path: Path) -> dict[str, Any]:
    """The single values of a GGUF file's metadata, such as `general.architecture`; arrays are passed over.

    Raises:
        ModelError: the file is not GGUF, or ends early.
    """
    refuse_pointer(path)
    if path.stat().st_size < 24:
        raise ModelError("this is no GGUF file", where=str(path), got=f"{path.stat().st_size} bytes", do=_AGAIN)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise ModelError("this is no GGUF file", where=str(path), got=f"it begins with {data[:4]!r}")
        version, tensors, values = struct.unpack_from("<IQQ", data, 4)
        if version not in (2, 3):
            raise ModelError(
                "this version of GGUF cannot be read", where=str(path), got=str(version), do="convert it again"
            )
        try:
            metadata, end = _values(data, 24, values)
            reach = _tensors(data, end, tensors)
        except (struct.error, KeyError, UnicodeDecodeError, OverflowError):
            raise ModelError("the header of this GGUF file cannot be read", where=str(path), do=_AGAIN) from None
        if reach >= len(data):
            raise ModelError(
                "this GGUF file ends before its weights", where=str(path), got=f"{len(data)} bytes", do=_AGAIN
            )
    return metadata


def _values(data: mmap.mmap, at: int, count: int) -> tuple[dict[str, Any], int]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key, at = _string(data, at)
        (kind,) = struct.unpack_from("<I", data, at)
        value, at = _value(data, at + 4, kind)
        if value is not None:
            metadata[key] = value
    return metadata, at


def _value(data: mmap.mmap, at: int, kind: int) -> tuple[Any, int]:
    """A value and where the next one begins; None for an array."""
    if kind == _STRING:
        return _string(data, at)
    if kind != _ARRAY:
        return struct.unpack_from(_SCALARS[kind], data, at)[0], at + struct.calcsize(_SCALARS[kind])
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in _SCALARS:
        return None, at + count * struct.calcsize(_SCALARS[inner])
    for _ in range(count):
        if inner == _STRING:
            at += 8 + struct.unpack_from("<Q", data, at)[0]
        else:
            _, at = _value(data, at, inner)
    return None, at


def _string(data: mmap.mmap, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, at)
    text: bytes = struct.unpack_from(f"<{length}s", data, at + 8)[0]
    return text.decode("utf-8"), at + 8 + length


def _tensors(data: mmap.mmap, at: int, count: int) -> int:
    """How far into the file the last tensor begins, at least."""
    last = 0
    for _ in range(count):
        _, at = _string(data, at)
        (dimensions,) = struct.unpack_from("<I", data, at)
        (offset,) = struct.unpack_from("<Q", data, at + 4 + 8 * dimensions + 4)
        last = max(last, offset)
        at += 4 + 8 * dimensions + 4 + 8
    return at + last
