"""`luthier tune`: recipe, or model and data -> a run folder with the tuned model and its comparison with the base."""

from __future__ import annotations

import typer

from luthier.cli import options
from luthier.cli.options import (
    DataFiles,
    Json,
    Model,
    Override,
    RecipeFile,
    Run,
    Sweep,
    Test,
    Validation,
    ask,
    resumable,
)
from luthier.cli.outcome import report
from luthier.cli.progress import display


def tune(
    context: typer.Context,
    recipe: RecipeFile = None,
    model: Model = None,
    data: DataFiles = None,
    validation: Validation = None,
    test: Test = None,
    override: Override = None,
    sweep: Sweep = None,
    run: Run = None,
    json: Json = False,
) -> None:
    """Tune a model and compare it with what it was.

    \b
    luthier tune --model MODEL --data FILE
    luthier tune recipe.yaml -o training.epochs=3
    luthier tune recipe.yaml --sweep training.rate=1e-4,2e-4,4e-4
    """
    settings: options.Settings = context.obj
    asked = ask(recipe, model=model, data=data, validation=validation, test=test, overrides=override, verb="tune")

    from luthier.recipe.sweep import axes, grid
    from luthier.runs.naming import new_root

    swept = axes(sweep or ())
    grid(asked, swept)
    root = run or new_root(asked)
    with resumable(root), display(quiet=settings.quiet) as tell:
        # The engine takes seconds to load, so that what is wrong with the recipe has been said before.
        from luthier.cache import past
        from luthier.workflow import sweep as sweeping
        from luthier.workflow import tune as stage

        if swept:
            finished = sweeping.sweep(asked, swept, root, tell=tell, past=past())
        else:
            finished = stage.tune(asked, root, tell=tell, past=past())

    from luthier.runs.record import read_record

    report(read_record(finished), as_object=json)
