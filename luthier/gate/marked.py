"""Text with a mark that forbids its use: privileged, under seal, material non-public. The policy names the marks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from luthier.gate.rows import Hit, Row
from luthier.gate.rules import Rule

if TYPE_CHECKING:
    from luthier.gate.policy import Policy

RULES: dict[str, Rule] = {
    "marked": Rule(
        title="text with a mark that forbids its use",
        why="Whoever wrote the mark did not agree to have the text learnt and repeated.",
        remedy="Leave the row out, or have the mark lifted by who may.",
        severity="block",
        mend="drop",
        about="Phrases of the policy's `markers`, in any letter case and spacing, as whole words.",
    )
}


def look(row: Row, policy: Policy) -> Iterator[Hit]:
    if not policy.markers:
        return
    pattern = _pattern(policy.markers)
    for field in row.fields:
        for match in pattern.finditer(field.text):
            said = " ".join(match.group().lower().split())
            yield Hit("marked", row.id, f"it says {said}", field.path, match.start(), match.end())


@lru_cache(8)
def _pattern(markers: tuple[str, ...]) -> re.Pattern[str]:
    phrases = (r"[\s-]+".join(map(re.escape, re.split(r"[\s-]+", marker.strip()))) for marker in markers)
    return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE)
