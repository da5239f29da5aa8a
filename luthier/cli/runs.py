"""`luthier runs`: the runs of a folder, the one that was last at work first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli import screen, words
from luthier.cli.options import Json
from luthier.errors import InputError
from luthier.numbers import number

if TYPE_CHECKING:
    from luthier.runs.record import RunRecord


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the runs are.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List runs with their state and verdict."""
    if not folder.is_dir():
        raise InputError("there is no such folder", where=str(folder), do="luthier tune makes the first run")
    journals = sorted(folder.glob("*/events.jsonl"), key=lambda journal: journal.stat().st_mtime_ns, reverse=True)
    found = [described(journal.parent) for journal in journals]
    if json:
        screen.print_json({"folder": str(folder), "runs": found})
        return
    if not found:
        screen.print_lines([f"no runs in {folder}"])
        return
    made = screen.table("run", "state", "model", "verdict")
    for run in found:
        made.add_row(*(words.plain(str(run[key] or "–")) for key in ("run", "state", "model", "verdict")))
    screen.console().print(made)


def described(root: Path) -> dict[str, Any]:
    """A run in a line. One that cannot be read says why and hides no other."""
    from luthier.runs.folder import RunFolder
    from luthier.runs.record import read_record

    try:
        record = read_record(RunFolder(root))
    except InputError as error:
        return {"run": str(root), "state": f"cannot be read: {error.what}", "model": None, "verdict": None}
    return {
        "run": str(root),
        "state": state(record),
        "model": (record.recipe.get("model") or {}).get("source"),
        "verdict": ((record.evaluation or {}).get("verdict") or {}).get("word"),
    }


def state(record: RunRecord) -> str:
    """finished, or how far it has got."""
    if record.last("finished"):
        return "finished"
    begun = record.last("resumed") or record.last("started")
    if begun is None:
        return "not yet training"
    steps = record.last("step")
    return f"unfinished, step {number(steps['step'] if steps else 0)} of {number(begun['steps'])}"
