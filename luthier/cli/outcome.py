"""How a run ended, for `tune`, `resume`, `demo` and `show`: the verdict, the figures, the report, what comes next."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from luthier.cli import screen, words

if TYPE_CHECKING:
    from luthier.runs.record import RunRecord

JSON = dict[str, Any]


def print_outcome(record: RunRecord) -> None:
    """A run's result for people."""
    from luthier.runs.wording import expectation, headline

    out = screen.console()
    screen.print_lines([words.plain(headline(record))], style="bold")
    if record.evaluation:
        screen.print_evaluation(record.evaluation)
    out.print()
    run = record.run
    if run.report.exists():
        screen.print_lines([f"report: {run.report}"])
    if run.model.exists():
        screen.print_lines([f"model:  {run.model}"])
    screen.print_lines([f"{what}: {told}" for what, told in expectation(record.last("finished") or {})])
    screen.print_lines([f"next:   {following(record)}"])


def following(record: RunRecord) -> str:
    """The command to type next."""
    from luthier.runs.wording import is_head

    root = shlex.quote(str(record.run.root))
    if record.last("finished") is None:
        return f"luthier resume {root}"
    return f"luthier evaluate {root} --data FILE" if is_head(record) else f"luthier chat {root} --against base"


def as_json(record: RunRecord) -> JSON:
    """A run's result for programs."""
    from luthier.runs.wording import headline

    run = record.run
    return {
        "run": str(run.root),
        "headline": headline(record),
        "verdict": (record.evaluation or {}).get("verdict"),
        "evaluation": record.evaluation,
        "finished": record.last("finished"),
        "stopped": record.last("stopped"),
        "steps": len(record.all("step")),
        "findings": record.findings,
        "derived": record.derived,
        "report": str(run.report) if run.report.exists() else None,
        "model": str(run.model) if run.model.exists() else None,
    }


def report(record: RunRecord, *, as_object: bool) -> None:
    """A run's result in the form that was asked for."""
    if as_object:
        screen.print_json(as_json(record))
    else:
        print_outcome(record)
