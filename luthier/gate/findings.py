"""An audit's entries as findings of a run. Imports nothing heavy, so that a result can be taken over at once."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.masking import mask
from luthier.types import JSON, Finding


def as_findings(entries: Sequence[JSON]) -> list[Finding]:
    """The `findings` of report.json for a run's record. A waived rule no longer blocks, and says why."""
    return [
        Finding(
            rule=entry["rule"],
            severity="warn" if entry["waived"] and entry["severity"] == "block" else entry["severity"],
            message=message(entry),
            remedy=entry["remedy"],
            examples=tuple(example["place"] for example in entry["examples"] if example["place"]),
            count=entry["count"],
            share=entry["share"],
        )
        for entry in entries
    ]


def message(entry: JSON) -> str:
    """`12 rows (0.3 %): near duplicate. Why it matters.`"""
    waived = f" Waived: {mask(entry['waived'])}." if entry["waived"] else ""
    rows = "1 row" if entry["count"] == 1 else f"{entry['count']:,} rows"
    return f"{rows} ({100 * entry['share']:.2g} %): {entry['title']}. {entry['why']}{waived}"


def place(file: str, line: int) -> str:
    return f"{file}:{line}" if line else file
