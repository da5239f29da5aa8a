"""The dated page of `gate_faults`: which rules find nearly all that was planted, and every row of the table."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import date
from typing import Any, NamedTuple

RECALL, PRECISION = 0.95, 0.9
"""What a rule should reach on every data set at every rate."""


class Line(NamedTuple):
    """One fault in one data set at one rate."""

    fault: str
    data: str
    rate: float
    planted: int
    recall: float
    precision: float
    """Not a number where nothing is found."""
    before: int

    def __str__(self) -> str:
        return (
            f"| {self.fault} | {self.data} | {self.rate:g} | {self.planted} | {_share(self.recall)} "
            f"| {_share(self.precision)} | {self.before} |"
        )


HEAD = "| fault | data | rate | planted | recall | precision | before |\n|---|---|---:|---:|---:|---:|---:|"


def page(
    lines: Sequence[Line], *, aimed: Collection[str], here: Mapping[str, Any], busy: bool, minutes: float | None
) -> str:
    """Args:
    aimed: faults that a rule should find; the others are shown and not counted.
    minutes: how long it took; None while it has not finished.
    """
    rules: dict[str, list[Line]] = {}
    for line in lines:
        if line.fault in aimed:
            rules.setdefault(line.fault.split("/")[0], []).append(line)
    met = [rule for rule, those in rules.items() if _meets(those)]
    apart: dict[str, list[Line]] = {}
    for line in lines:
        if line.fault not in aimed:
            apart.setdefault(line.fault, []).append(line)
    took = "**Not finished.**" if minutes is None else f"It took {minutes:.0f} minutes."
    parts = [
        f"# Faults planted in real data, {date.today().isoformat()}",
        f"`python -m benchmarks.gate_faults` on {here['processor']}, {here['cores']} cores. {took}"
        + (" Other work ran beside it, which changes no figure here." if busy else ""),
        _METHOD,
        f"## By rule\n\nThe lowest recall and precision of a rule over all of its faults, data sets and rates. "
        f"{len(met)} of {len(rules)} rules reach {RECALL} and {PRECISION} everywhere.",
        "| rule | lowest recall | where | lowest precision | where | both reached |\n|---|---:|---|---:|---|---|\n"
        + "\n".join(_summary(rule, those) for rule, those in rules.items()),
    ]
    if apart:
        parts += [
            "Shown and not aimed at:",
            "| fault | lowest recall | where | lowest precision | where |\n|---|---:|---|---:|---|\n"
            + "\n".join(_summary(fault, those).rsplit(" | ", 1)[0] + " |" for fault, those in apart.items()),
        ]
    parts += ["## How far these figures go", _CAVEATS, "## Every row", f"{HEAD}\n" + "\n".join(map(str, lines))]
    return "\n\n".join(parts) + "\n"


def _meets(lines: Sequence[Line]) -> bool:
    return all(line.recall >= RECALL and line.precision >= PRECISION for line in lines)


def _summary(name: str, lines: Sequence[Line]) -> str:
    least = min(lines, key=lambda line: line.recall)
    loosest = min(lines, key=lambda line: math.inf if math.isnan(line.precision) else line.precision)
    return (
        f"| {name} | {_share(least.recall)} | {_where(least)} | {_share(loosest.precision)} | {_where(loosest)} "
        f"| {'yes' if _meets(lines) else 'no'} |"
    )


def _where(line: Line) -> str:
    kind = line.fault.partition("/")[2]
    return f"{f'{kind}, ' if kind else ''}{line.data}, {line.rate:g} ({line.planted} planted)"


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}"


_METHOD = """Each fault is planted by itself into each data set that can carry it, at each rate (share of its rows;
at least three, the first, middle and last row that can carry it among them). A planted row is found where a finding
of the rule names it, or names it as the other of two. Precision is the share of rows with a finding that were
planted. Rows with a finding before anything was planted count for neither, since real data have faults of their own:
the last column says how many. Seed 7; thresholds as they come."""
_CAVEATS = """\
- Those who wrote the rules wrote the planters too, and mended rules after such runs, those for private data after
  reading what was missed among Faker's values. Expect less on your own faults.
- Values of private data are Faker's, or follow the issuers' algorithms and not the rules. The forms of services' keys,
  the sentences around values, and what looks alike and is not private, are ours. Faker's streets, towns and post codes
  are invented, and some of its addresses have no house number.
- Precision of the rules that look at one row by itself counts only rows that were changed here; on private data as
  many rows as were planted hold what looks alike. Elsewhere it is near 1 by construction.
- One word of 8 to 19 changed can be another question, so those copies are not aimed at. Nor are private numbers that
  no word announces and whose form is any number's.
- Few rows are planted in the small sets: one missed row of three is a recall of 0.667."""
