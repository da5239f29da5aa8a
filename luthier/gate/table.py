"""Every rule of the gate in one table. Each topic has its own; ids are stable words and never used again."""

from __future__ import annotations

from functools import cache

from luthier.gate.rules import Rule


@cache
def rules() -> dict[str, Rule]:
    """Put together when it is first asked for: the topics need policies, and policies this table."""
    from importlib import import_module
    from importlib.util import find_spec

    found: dict[str, Rule] = {}
    for topic in "intake form hidden private duplicates leakage noise poison balance fit provenance".split():
        if find_spec(f"luthier.gate.{topic}"):
            found |= getattr(import_module(f"luthier.gate.{topic}"), "RULES", {})
    return found
