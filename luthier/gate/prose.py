"""Text without the code in it, and mends that are applied until nothing is left to mend."""

from __future__ import annotations

import re
from collections.abc import Callable

_ROUNDS = 8


def prose(text: str) -> str:
    """The text with code spans and fenced blocks blanked out: markup is an error in prose and a subject in code.

    Every character keeps its place.
    """
    if "`" not in text:
        return text
    return _CODE.sub(lambda match: " " * len(match.group()), text)


_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]+`", re.DOTALL)


def settled(step: Callable[[str], str], text: str) -> str:
    """`step` until it changes nothing; the text as it was where that takes more than 8 rounds (only text made to
    resist does). So `settled(step, settled(step, text)) == settled(step, text)`, in linear time."""
    now = text
    for _ in range(_ROUNDS):
        after = step(now)
        if after == now:
            return now
        now = after
    return text
