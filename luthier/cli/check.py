"""`luthier check`: all that can be known before the first step. Exit code 0 when training may start, else 1."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from luthier.cli import options, screen, words
from luthier.cli.options import DataFiles, Json, Model, Override, RecipeFile, Test, Validation, ask
from luthier.cli.progress import display

if TYPE_CHECKING:
    from luthier.workflow.prepare import Checked


def check(
    context: typer.Context,
    recipe: RecipeFile = None,
    model: Model = None,
    data: DataFiles = None,
    validation: Validation = None,
    test: Test = None,
    override: Override = None,
    json: Json = False,
) -> int:
    """Look at model, data and settings first.

    Trains nothing; says what would be learnt and what that will need.

    \b
    luthier check recipe.yaml
    luthier check --model MODEL --data FILE
    """
    settings: options.Settings = context.obj
    asked = ask(recipe, model=model, data=data, validation=validation, test=test, overrides=override, verb="check")
    with display(quiet=settings.quiet) as tell:
        from luthier.workflow import prepare as stage

        checked = stage.check(asked, tell=tell)
    if json:
        screen.print_json(as_json(checked))
    else:
        print_checked(checked)
    return 0 if checked.ok else 1


def print_checked(checked: Checked) -> None:
    """What was found, for people."""
    screen.print_lines([words.derived(asdict(item)) for item in checked.derived])
    screen.print_lines([""])
    screen.print_lines([words.side(event) for event in sides(checked)])
    screen.print_lines([words.needs(checked.estimate, checked.steps)])
    found = words.findings(finding.as_dict() for finding in checked.findings)
    if found:
        screen.print_lines(["", *found])
    screen.print_lines(["", "the first training example; what is marked is learnt:", ""])
    screen.print_sample([(token.text, token.weight) for token in checked.sample], most=screen.MOST_TOKENS)
    verdict = "ready to tune" if checked.ok else "not ready: see what must be mended above"
    screen.print_lines(["", verdict], style="green" if checked.ok else "red")


def sides(checked: Checked) -> list[dict[str, Any]]:
    """Counts of each side, as the journal has them."""
    return [
        {
            "side": side,
            "rows": written.sequences,
            "tokens": written.tokens,
            "supervised_tokens": written.supervised_tokens,
            "longest": written.longest,
        }
        for side, written in checked.sides.items()
    ]


def as_json(checked: Checked) -> dict[str, Any]:
    """What was found, for programs."""
    return {
        "ok": checked.ok,
        "recipe": checked.recipe.model_dump(mode="json"),
        "derived": [asdict(item) for item in checked.derived],
        "findings": [finding.as_dict() for finding in checked.findings],
        "sides": sides(checked),
        "steps": checked.steps,
        "estimate": checked.estimate,
        "sample": [{"text": token.text, "weight": token.weight} for token in checked.sample],
    }
