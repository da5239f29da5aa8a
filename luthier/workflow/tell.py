"""How work reports on itself: every journal event, and transient progress, goes to one function."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

JSON = dict[str, Any]
Tell = Callable[[JSON], None]
T = TypeVar("T")

EVERY_SECONDS = 0.1


def silent(event: JSON) -> None:
    """Listens to nothing."""


def counted(items: Iterable[T], what: str, total: int | None, tell: Tell) -> Iterator[T]:
    """Passes items on and tells how many have passed, at most ten times a second and at the end."""
    last, done = 0.0, 0
    tell({"event": "progress", "what": what, "done": 0, "total": total})
    for item in items:
        yield item
        done += 1
        now = time.monotonic()
        if now - last >= EVERY_SECONDS:
            last = now
            tell({"event": "progress", "what": what, "done": done, "total": total})
    tell({"event": "progress", "what": what, "done": done, "total": done})
