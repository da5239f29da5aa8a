"""`luthier evaluate`: measure a run or any model on a file of rows, alone or against another model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import options, screen
from luthier.cli.options import Json, Override
from luthier.cli.progress import display


def evaluate(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="DIR|MODEL", help="A run folder or a model.")],
    data: Annotated[list[str], typer.Option("--data", metavar="FILE", help="Rows to measure on. May be repeated.")],
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Compare with this model; `base` is the run's own base.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep evaluation.json and every answer in this new folder.")
    ] = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Measure a tuned model, or any other, on rows of your own.

    \b
    luthier evaluate DIR --data FILE --against base
    """
    settings: options.Settings = context.obj
    with display(quiet=settings.quiet) as tell:
        from luthier.workflow import evaluate as stage

        result = stage.evaluate(target, data, against=against, out=out, overrides=override or (), tell=tell)
    if json:
        screen.print_json(result)
        return
    screen.print_evaluation(result)
    if out is not None:
        screen.print_lines(["", f"every answer: {out / 'predictions.jsonl'}"])
