"""`luthier init`: a complete, commented recipe on standard output, with what was derived from model and data."""

from __future__ import annotations

import sys

import typer

from luthier.cli import options, words
from luthier.cli.options import DataFiles, Model, Override, RecipeFile, Test, Validation, ask
from luthier.cli.progress import display


def init(
    context: typer.Context,
    recipe: RecipeFile = None,
    model: Model = None,
    data: DataFiles = None,
    validation: Validation = None,
    test: Test = None,
    override: Override = None,
) -> None:
    """Write a complete recipe with a comment on every key.

    \b
    luthier init --model MODEL --data FILE > recipe.yaml
    """
    settings: options.Settings = context.obj
    asked = ask(recipe, model=model, data=data, validation=validation, test=test, overrides=override, verb="init")
    with display(quiet=settings.quiet) as tell:
        from luthier.workflow import prepare as stage

        checked = stage.check(asked, tell=tell)
    if not settings.quiet:
        for line in words.findings(finding.as_dict() for finding in checked.findings):
            print(line, file=sys.stderr)

    from luthier.recipe.commented import commented

    print(commented(checked.recipe, checked.derived), end="")
