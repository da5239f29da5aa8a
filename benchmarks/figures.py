"""Runs to figures: rates, agreement, medians. Pure functions over what a contender printed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.field import Contender, luthiers

Result = Mapping[str, Any]
GAP = 0.08
"""Largest difference of a step's mean loss from the float32 run that counts as the same work, in nats; of the run's,
where steps hold other examples. bf16 has 3 digits, and a program that rounds a layer's output before it adds the
adapter's part to it loses of that part what is below the last digit: 0.02 to 0.06 nats after one to three steps."""
SAME_START = 0.5
"""Greedy answers part where two tokens are equally likely up to rounding; below this mean share of an answer before
the parting, they are not answers of the same model."""


class Spread(NamedTuple):
    median: float
    low: float
    high: float
    runs: int


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


def rate(result: Result, kind: str) -> float:
    """Real tokens a second over the timed steps; for generation, new tokens a second."""
    if kind == "generate":
        return float(sum(len(c) for c in result["completions"]) / sum(result["seconds"]))
    return float(sum(result["tokens"][1:]) / sum(result["seconds"][1:]))


def run_loss(result: Result) -> float:
    """Mean loss over all steps, each weighted by its units."""
    pairs = list(zip(result["losses"], result["units"], strict=True))
    return float(sum(loss * units for loss, units in pairs) / sum(units for _, units in pairs))


def gap(contender: Contender, result: Result, base: Result, kind: str) -> float:
    """How far a contender is from the reference: the largest difference of a step's loss; of the run's, where steps
    hold other examples; for generation, the mean share of an answer after the place where it parts."""
    if kind == "generate":
        shares = [_common(a, b) for a, b in zip(result["completions"], base["completions"], strict=True)]
        return 1 - statistics.fmean(shares)
    if not contender.same_steps:
        return abs(run_loss(result) - run_loss(base))
    return max(abs(float(a) - float(b)) for a, b in zip(result["losses"], base["losses"], strict=True))


def agrees(contender: Contender, result: Result, base: Result | None, kind: str) -> bool:
    if base is None:
        return False
    allowed = 1 - SAME_START if kind == "generate" else GAP
    return gap(contender, result, base, kind) <= allowed


def reference(
    field: Sequence[Contender], runs: Mapping[str, Sequence[Mapping[str, Any]]], exact: Mapping[str, Any] | None
) -> Result | None:
    """The float32 run; without one, the first run of the first peer that ran."""
    if exact and exact["result"]:
        return exact["result"]  # type: ignore[no-any-return]
    for contender in field:
        if not luthiers(contender) and runs[contender.name] and runs[contender.name][0]["result"]:
            return runs[contender.name][0]["result"]  # type: ignore[no-any-return]
    return None


def rates(runs: Sequence[Mapping[str, Any]], kind: str) -> list[float]:
    return [rate(run["result"], kind) for run in runs if run["result"]]


def ratios(ours: Sequence[Mapping[str, Any]], theirs: Sequence[Mapping[str, Any]], kind: str) -> list[float]:
    """Our rate over theirs, round by round: both stood beside each other."""
    return [
        rate(a["result"], kind) / rate(b["result"], kind)
        for a, b in zip(ours, theirs, strict=False)
        if a["result"] and b["result"]
    ]


def _common(a: Sequence[int], b: Sequence[int]) -> float:
    """Share of the longer answer that both begin with."""
    longest = max(len(a), len(b))
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    return same / longest if longest else 1.0
