"""One row with all that is known of it: its texts, masked, what the rules saw, and what cleaning did to it.

The row is read again from its file, which must be the one that was audited.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pyarrow import parquet

from luthier.errors import InputError
from luthier.gate.policy import Policy, load_policy
from luthier.gate.private import find
from luthier.gate.private.replace import redact
from luthier.gate.reading import Source, place_of, rows
from luthier.gate.rows import Field, Row
from luthier.masking import mask
from luthier.runs.folder import read_json
from luthier.types import JSON

AUDITS = Path("audits")


class Shown(NamedTuple):
    row: Row
    fields: tuple[Field, ...]
    """Masked, unless they were asked for as they are."""
    hits: list[JSON]
    named_by: list[JSON]
    """Hits of other rows that name this one."""
    ledger: list[JSON]


def show(row: str, folder: Path, *, raw: bool = False) -> Shown:
    """Args:
        folder: of an audit.

    Raises:
        InputError: the folder holds no audit, or no file of it has such a row, or that file has changed.
    """
    if not re.fullmatch(r".+:\d+(\.\d+)?", row):
        raise InputError("this is no row id", got=mask(row)[:80], do="take one from an audit: a1b2c3d4:17")
    report = read_json(folder / "report.json")
    policy = load_policy(str(folder / "policy.yaml"))
    found = [Source(s["prefix"], s["file"], s["side"], s["sha256"]) for s in report["sources"]]
    seen = _row(row, found, policy)
    fields = seen.fields if raw else tuple(field._replace(text=masked(field.text)) for field in seen.fields)
    ledger = folder.with_name(folder.name.removesuffix(".audit") + ".ledger.parquet")
    return Shown(
        seen,
        fields,
        _lines(folder / "findings.parquet", "row", row),
        _lines(folder / "findings.parquet", "other", row),
        _lines(ledger, "row", row) if folder.name.endswith(".audit") and ledger.exists() else [],
    )


def masked(text: str) -> str:
    """The text without what the recognisers find in it."""
    return mask(redact(text, find(text)))


def newest(under: Path = AUDITS) -> Path:
    """The folder of the last audit.

    Raises:
        InputError: there is none.
    """
    folders = sorted(path.parent for path in under.glob("*/report.json"))
    if not folders:
        raise InputError(
            "there is no audit here", where=str(under), do="luthier data audit FILE, or name one with --audit"
        )
    return max(folders, key=lambda folder: folder.stat().st_mtime_ns)


def _row(id: str, found: Sequence[Source], policy: Policy) -> Row:
    file, _ = place_of(id, found)
    source = next((source for source in found if source.file == file), None)
    if source is None:
        raise InputError(
            "no file of this audit has such a row", got=id, do=f"its files: {', '.join(s.file for s in found)}"
        )
    if not source.sha256:
        raise InputError("this row came over standard input, which is not kept", got=id, do="audit a file")
    from luthier.gate.reading import sources

    (now,), _ = sources({source.side: [source.file]})
    if now.sha256 != source.sha256:
        raise InputError("this file is not the one that was audited", where=source.file, do="audit it again")
    for item in rows([source], policy):
        if isinstance(item, Row) and item.id == id:
            return item
    raise InputError("there is no such row, or it cannot be read", where=source.file, got=id)


def _lines(path: Path, column: str, row: str) -> list[JSON]:
    return list(parquet.read_table(path, filters=[(column, "=", row)]).to_pylist())
