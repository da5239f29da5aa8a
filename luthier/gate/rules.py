"""What a rule says of itself: why it matters, what to do, and the thresholds that a policy may set.

Each topic has a table `RULES` of its own; `luthier.gate.table` puts them together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

from luthier.types import Severity

Mend = Literal["none", "drop", "redact", "pseudonym", "repair"]
"""What `luthier data clean` does to a row: nothing, leave it out, replace what was found, or write it anew (line ends,
broken encodings, hidden characters)."""


class Rule(NamedTuple):
    """A rule, as a policy and a report need it."""

    title: str
    """A few words for people: "near duplicate"."""
    why: str
    """One sentence: what harm it does to a fine-tuned model or to people."""
    remedy: str
    """One sentence: what to do."""
    severity: Severity
    mend: Mend = "none"
    thresholds: Mapping[str, float] = {}
    """Name -> default. A policy sets them by these names; each is explained in `about`."""
    about: str = ""
    """How it is computed, with its paper where it has one, and where it errs."""
