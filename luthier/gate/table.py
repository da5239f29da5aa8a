"""Every rule of the gate in one table. Each topic has its own; ids are stable words and never used again."""

from __future__ import annotations

from luthier.gate import intake
from luthier.gate.rules import Rule

RULES: dict[str, Rule] = {**intake.RULES}
