"""`luthier resume`: go on with a run that was stopped or killed."""

from __future__ import annotations

import typer

from luthier.cli import options
from luthier.cli.options import Json, RunDir, resumable
from luthier.cli.outcome import report
from luthier.cli.progress import display


def resume(context: typer.Context, run: RunDir, json: Json = False) -> None:
    """Go on with a run that was stopped, as if nothing had happened."""
    from luthier.runs.folder import RunFolder
    from luthier.runs.record import read_record

    settings: options.Settings = context.obj
    RunFolder.open(run)
    with resumable(run), display(quiet=settings.quiet) as tell:
        from luthier.cache import past
        from luthier.workflow import tune as stage

        finished = stage.resume(run, tell=tell, past=past())
    report(read_record(finished), as_object=json)
