"""`luthier export`: a run's model as a folder of its own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import options, screen
from luthier.cli.options import Json, RunDir
from luthier.cli.progress import display
from luthier.numbers import memory


class Form(StrEnum):
    """What is exported."""

    merged = "merged"
    adapter = "adapter"


def export(
    context: typer.Context,
    run: RunDir,
    to: Annotated[
        Form,
        typer.Option(
            metavar="merged|adapter", help="merged: one model, ready to serve. adapter: what was learnt, by itself."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="The new folder.")],
    json: Json = False,
) -> None:
    """Write a tuned model as a folder that other programs load."""
    settings: options.Settings = context.obj
    with display(quiet=settings.quiet) as tell:
        from luthier.workflow import export as stage

        result = stage.export(run, to=to.value, out=out, tell=tell)
    if json:
        screen.print_json(result)
        return
    lines = [f"{name:<32}{memory(size)}" for name, size in result.get("files", {}).items()]
    screen.print_lines([*lines, "", f"exported: {out}"])
