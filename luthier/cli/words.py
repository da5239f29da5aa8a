"""What the command line says, as lines of plain text: no colour, no layout, nothing that a terminal would obey."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from luthier.masking import mask
from luthier.numbers import duration, memory, number, setting, short, signed

JSON = dict[str, Any]
SEVERITIES = {"block": "must be mended", "warn": "warning", "info": "note"}
"""Severity -> how a finding begins, gravest first."""
PLACES = 3
"""Places of a finding that are named; the rest is counted."""

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters except newline and tab, what turns the direction of writing, and lone surrogates."""


def plain(text: str) -> str:
    """A text that may hold anything, safe to show on a terminal."""
    return _OBEYED.sub("\ufffd", text)


def derived(event: JSON) -> str:
    """`training.rate = 0.0002   (LoRA's usual rate)`."""
    return plain(f"{event['key']} = {setting(event['value'])}   ({event['why']})")


def findings(found: Iterable[JSON]) -> list[str]:
    """Findings by severity, the gravest first, each with where it was seen and what to do."""
    order = list(SEVERITIES)
    lines: list[str] = []
    for one in sorted(found, key=lambda one: order.index(one["severity"])):
        lines.append(f"{SEVERITIES[one['severity']]}: {mask(one['message'])} [{one['rule']}]")
        if one["examples"]:
            more = max(one["count"], len(one["examples"])) - PLACES
            lines.append(
                f"  at: {', '.join(one['examples'][:PLACES])}" + (f" and {number(more)} more" if more > 0 else "")
            )
        if one["remedy"]:
            lines.append(f"  do: {one['remedy']}")
    return [plain(line) for line in lines]


def side(event: JSON) -> str:
    """`train: 880 rows, 123 456 tokens of which 45 678 are learnt, the longest 512`."""
    learnt = f" of which {number(event['supervised_tokens'])} are learnt" if event["side"] == "train" else ""
    if event["supervised_tokens"] in (0, event["tokens"]):
        learnt = ""
    return (
        f"{event['side']}: {counted(event['rows'], 'row')}, {counted(event['tokens'], 'token')}{learnt}, "
        f"the longest {number(event['longest'])}"
    ) + (f"; taken from {event['taken_from']}" if event.get("taken_from") and event["side"] == "train" else "")


def finished(event: JSON) -> str:
    """`finished in 3 min 20 s`, and what shared beginnings have spared."""
    line = f"finished in {duration(event['seconds'])}"
    spared = event["tokens"] - event["computed"]
    if not spared:
        return line
    percent = short(round(100 * spared / event["tokens"]))
    return f"{line}; what rows of a step begin with alike was computed once, which spared {percent} % of the tokens"


def sweep(event: JSON) -> str:
    """How the arms that are left are trained."""
    left = counted(event["left"], "arm") + (f" of {number(event['arms'])}" if event["left"] < event["arms"] else "")
    if event["together"]:
        return f"training {left} side by side over one base"
    return f"training {left} one after the other: {event['why']}"


def swept(event: JSON) -> list[str]:
    """The arms with their best validation losses, and which of them became the run."""
    rows = [("arm", "validation loss", "at step", "tokens", "seconds")]
    for arm in event["arms"]:
        loss = "failed" if arm["failed"] else number(arm["loss"])
        rows.append((arm["name"], loss, number(arm["step"]), number(arm["tokens"]), number(arm["seconds"])))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
             for row in rows]  # fmt: skip
    chosen = event["chosen"]
    last = f"chosen: {chosen}" if chosen else "no arm was chosen: they were validated on different rows"
    return [plain(line) for line in (*lines, last)]


def counted(count: int, noun: str) -> str:
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def needs(estimate: JSON, steps: int) -> str:
    """What training will take, in a line."""
    return (
        f"training: {counted(steps, 'step')}, {counted(estimate['tokens'], 'token')}; "
        f"{number(estimate['trained_weights'])} of {number(estimate['weights'])} weights are trained; "
        f"about {memory(estimate['memory_bytes'])} of memory, and this machine has "
        f"{memory(estimate['machine_memory_bytes'])}"
    )


def interval(metric: JSON, confidence: float) -> str:
    """`+0.11 to +0.15 (95 %)`, of the difference or, for one arm alone, of its value."""
    if metric["low"] is None or metric["high"] is None:
        return "too few to tell"
    write = number if metric["difference"] is None else signed
    return f"{write(metric['low'])} to {write(metric['high'])} ({short(confidence * 100)} %)"


def marked(tokens: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Neighbouring tokens of equal weight as one stretch of text."""
    stretches: list[tuple[str, float]] = []
    for text, weight in tokens:
        if stretches and stretches[-1][1] == weight:
            stretches[-1] = (stretches[-1][0] + text, weight)
        else:
            stretches.append((text, weight))
    return [(plain(text), weight) for text, weight in stretches]


def bracketed(tokens: Sequence[tuple[str, float]]) -> str:
    """The text with ⟦what is learnt⟧ in brackets; a weight other than 1 stands behind them."""
    return "".join(
        text if weight == 0 else f"⟦{text}⟧" + (f"×{weight:g}" if weight != 1 else "")
        for text, weight in marked(tokens)
    )
