"""`luthier show`: what a run folder says, or one of its examples exactly as it was trained on."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli import outcome, screen, words
from luthier.cli.options import Json, RunDir

if TYPE_CHECKING:
    from luthier.runs.record import RunRecord
    from luthier.workflow.show import Sampled


class Side(StrEnum):
    """Which rows."""

    train = "train"
    validation = "validation"
    test = "test"


def show(
    run: RunDir,
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="Show example N (from 0) with what is learnt.")
    ] = None,
    side: Annotated[
        Side, typer.Option(metavar="train|validation|test", help="The rows that --sample counts in.")
    ] = Side.train,
    json: Json = False,
) -> None:
    """Show a run: settings, data, verdict.

    \b
    luthier show DIR
    luthier show DIR --sample 3
    """
    if sample is not None:
        from luthier.workflow.show import sample as stage

        shown = stage(run, sample, side=side.value)
        if json:
            tokens = [{"text": token.text, "weight": token.weight} for token in shown.tokens]
            screen.print_json({**asdict(shown), "tokens": tokens})
        else:
            print_sampled(shown)
        return

    from luthier.runs.folder import RunFolder
    from luthier.runs.record import read_record

    record = read_record(RunFolder(run))
    if json:
        screen.print_json({**outcome.as_json(record), "recipe": record.recipe, "manifest": record.manifest})
    else:
        print_settings(record)
        outcome.print_outcome(record)


def print_settings(record: RunRecord) -> None:
    """What was asked and what was found before training."""
    from luthier.cli.runs import state
    from luthier.runs.wording import OBJECTIVES, adapter, part

    learnt = part(record.recipe, "objective").get("kind")
    lines = [
        f"run:    {record.name} ({state(record)})",
        f"model:  {part(record.recipe, 'model').get('source')}",
        f"data:   {', '.join(part(record.recipe, 'data').get('train') or [])}",
        f"learnt: {OBJECTIVES.get(str(learnt), learnt)}",
        f"with:   {adapter(record)}",
    ]
    sides = [words.side(event) for event in record.all("prepared")]
    derived = [words.derived(item) for item in record.derived]
    for section in (lines, sides, derived, words.findings(record.findings)):
        if section:
            screen.print_lines([*(words.plain(line) for line in section), ""])


def print_sampled(shown: Sampled) -> None:
    """An example with where it came from."""
    counts = f"{words.counted(len(shown.tokens), 'token')}, {words.counted(shown.supervised, 'token')} learnt"
    screen.print_lines([words.plain(f"{shown.file}:{shown.line}  {shown.id}"), counts, ""])
    screen.print_sample([(token.text, token.weight) for token in shown.tokens])
