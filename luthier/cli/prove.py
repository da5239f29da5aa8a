"""`luthier prove`: the checks on one's own model and rows. Exit code 0 when none failed, else 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli import options, screen, words
from luthier.cli.options import DataFiles, Json, Model, Override, RecipeFile, Test, Validation, ask
from luthier.cli.progress import display
from luthier.numbers import number, short

if TYPE_CHECKING:
    from luthier.proof import Proof
    from luthier.workflow.prove import Proven

VERDICTS = {True: "holds", False: "FAILS", None: "left out"}
STYLES = {True: "green", False: "bold red", None: "dim"}


def prove(
    context: typer.Context,
    recipe: RecipeFile = None,
    model: Model = None,
    data: DataFiles = None,
    validation: Validation = None,
    test: Test = None,
    rows: Annotated[
        int, typer.Option(metavar="N", min=1, help="Rows that the model is given: short ones, and the longest.")
    ] = 4,
    float64: Annotated[
        bool, typer.Option("--float64", help="Compute in float64: slower, twice the memory, narrower bounds.")
    ] = False,
    override: Override = None,
    json: Json = False,
) -> int:
    """Show that training does what it says, on your model and rows.

    Trains a few steps and keeps nothing. Every check compares what training does with a slow and plain way to the same
    numbers.

    \b
    luthier prove recipe.yaml
    luthier prove --model MODEL --data FILE
    """
    settings: options.Settings = context.obj
    asked = ask(recipe, model=model, data=data, validation=validation, test=test, overrides=override, verb="prove")
    with display(quiet=settings.quiet) as tell:
        from luthier.workflow import prove as stage

        proven = stage.prove(asked, rows=rows, float64=float64, tell=tell)
    if json:
        screen.print_json(as_json(proven))
    else:
        print_proven(proven)
    return 0 if proven.ok else 1


def print_proven(proven: Proven) -> None:
    """The table, for people."""
    from rich.text import Text

    made = screen.table("check", "what was compared", "largest difference", "bound", "verdict", right=())
    for proof in proven.proofs:
        compared = words.plain(f"{proof.compared}\n{proof.detail}")
        made.add_row(
            proof.name,
            compared,
            _size(proof.largest),
            _size(proof.bound),
            Text(VERDICTS[proof.passed], style=STYLES[proof.passed]),
        )
    screen.console().print(made)
    rows = words.counted(proven.rows, "row")
    lines = [f"computed in {proven.dtype} on {rows}, the longest {words.counted(proven.longest, 'token')}"]
    if proven.left_out:
        lines.append(f"note: the longest training row has {number(proven.left_out)} tokens and was too long for this")
    screen.print_lines(["", *lines])
    failed = [proof.name for proof in proven.proofs if proof.passed is False]
    verdict = f"does not hold: {', '.join(failed)}" if failed else "everything that was checked holds"
    screen.print_lines([verdict], style="red" if failed else "green")


def _size(value: float | None) -> str:
    return "" if value is None else short(value)


def as_json(proven: Proven) -> dict[str, Any]:
    """What was shown, for programs."""
    return {
        "ok": proven.ok,
        "dtype": proven.dtype,
        "rows": proven.rows,
        "longest": proven.longest,
        "left_out": proven.left_out,
        "recipe": proven.recipe.model_dump(mode="json"),
        "checks": [_row(proof) for proof in proven.proofs],
    }


def _row(proof: Proof) -> dict[str, Any]:
    """A difference that is no finite number has no place in JSON and is `null`; `passed` says that it failed."""
    row = proof._asdict()
    if proof.largest is not None and not abs(proof.largest) < float("inf"):
        row["largest"] = None
    return row
