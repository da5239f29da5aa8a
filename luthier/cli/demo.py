"""`luthier demo`: the whole way in minutes, on a model and data that need no choice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from luthier.cli import options, screen, words
from luthier.cli.options import Json, resumable
from luthier.cli.outcome import as_json, print_outcome
from luthier.cli.progress import display

ROOT = Path("demo-run")
DemoRun = Annotated[
    Path | None,
    typer.Option("--run", metavar="DIR", help=f"The new run folder. Left out: {ROOT}, or the next free name."),
]
ASKED = (("question", "prompt"), ("expected", "reference"), ("base", "base"), ("tuned", "tuned"))
"""How a line begins, and the key of what stands in it."""


def demo(context: typer.Context, run: DemoRun = None, json: Json = False) -> None:
    """See the whole way in minutes, on a small model.

    Tunes it on the support desk of an invented company and shows the answers of both side by side."""
    from luthier.runs.naming import free

    settings: options.Settings = context.obj
    root = run or free(ROOT)
    with resumable(root), display(quiet=settings.quiet) as tell:
        from luthier.workflow import demo as stage

        finished = stage.demo(root, tell=tell)

    from luthier.runs.record import read_record

    record, shown = read_record(finished), stage.side_by_side(finished)
    if json:
        screen.print_json({**as_json(record), "side_by_side": shown})
        return
    print_side_by_side(shown)
    print_outcome(record)


def print_side_by_side(shown: list[dict[str, Any]]) -> None:
    """Each question with what was expected and what both models wrote."""
    for item in shown:
        for name, key in ASKED:
            line = f"{name + ':':<10}{words.plain(' '.join(str(item.get(key) or '–').split()))}"
            screen.print_lines([line], style={"tuned": "green", "question": "bold"}.get(name, ""))
        screen.print_lines([""])
