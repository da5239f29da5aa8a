"""Every rule of the gate in one table. Each topic has its own; ids are stable words and never used again."""

from __future__ import annotations

from functools import cache

from luthier.gate.rules import Rule


@cache
def rules() -> dict[str, Rule]:
    """Put together when it is first asked for: the topics need policies, and policies this table."""
    from luthier.gate import (
        balance,
        duplicates,
        fit,
        form,
        hidden,
        intake,
        leakage,
        marked,
        noise,
        poison,
        private,
        provenance,
        times,
    )

    rows, sets = (intake, form, hidden, marked, private), (duplicates, leakage, times, noise, poison, balance, fit)
    topics = (*rows, *sets, provenance)
    found: dict[str, Rule] = {}
    for topic in topics:
        assert not found.keys() & topic.RULES.keys(), "two topics have a rule of the same name"
        found |= topic.RULES
    return found
