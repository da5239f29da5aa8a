"""`luthier plan`: memory, time and tokens of a run before it starts. Exit code 0 when it fits, else 1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli import options, screen, words
from luthier.cli.options import DataFiles, Json, Model, Override, RecipeFile, Test, Validation, ask
from luthier.cli.progress import display
from luthier.numbers import duration, memory, number, setting, short, signed

if TYPE_CHECKING:
    from luthier.workflow.recommend import Planned

PHASES = {
    "load": "load the model",
    "train": "train",
    "save": "save checkpoints",
    "evaluate": "compare with the base",
}


def plan(
    context: typer.Context,
    recipe: RecipeFile = None,
    model: Model = None,
    data: DataFiles = None,
    validation: Validation = None,
    test: Test = None,
    price: Annotated[
        float | None,
        typer.Option("--price-per-hour", metavar="PRICE", min=0, help="Of this machine; says what the run costs."),
    ] = None,
    override: Override = None,
    json: Json = False,
) -> int:
    """Say what a run will take: memory, time, tokens.

    Measures this machine for a few seconds, for which torch is loaded; trains nothing. Says what other settings would
    change, and what would fit where this does not.

    \b
    luthier plan recipe.yaml
    luthier plan --model MODEL --data FILE
    """
    settings: options.Settings = context.obj
    asked = ask(recipe, model=model, data=data, validation=validation, test=test, overrides=override, verb="plan")
    with display(quiet=settings.quiet) as tell:
        from luthier.workflow import recommend as stage

        planned = stage.plan(asked, tell=tell)
    if json:
        screen.print_json(as_json(planned, price))
    else:
        print_planned(planned, price)
    return 0 if planned.fits else 1


def print_planned(planned: Planned, price: float | None) -> None:
    """The forecast for people: phases, the whole, what else could be set."""
    expected = planned.forecast
    work, time = expected.work, expected.seconds
    assert time is not None
    table = screen.table("phase", "tokens", "time", "memory", right=("tokens", "time", "memory"))
    tokens: dict[str, float | None] = {"train": work.train.tokens, "evaluate": 2 * work.test.tokens}
    taken = {"load": time.start, "train": time.train + time.validate, "save": time.save, "evaluate": time.evaluate}
    for phase, size in expected.memory.phases.items():
        computed = tokens.get(phase)
        cells = ("" if computed is None else number(round(computed)), duration(taken[phase]), memory(size))
        table.add_row(PHASES[phase], *cells)
    screen.console().print(table)
    screen.print_lines(["", *_lines(planned, price)])
    if planned.options:
        others = screen.table("instead", "training", "memory", "", right=("training", "memory"))
        for option in planned.options:
            others.add_row(
                f"{option.key}: {setting(option.value)}",
                f"{duration(option.seconds)} ({_share(option.seconds, time.train)})",
                f"{memory(option.memory_bytes)} ({_share(option.memory_bytes, expected.memory.peak)})",
                "" if option.fits == planned.fits else "fits" if option.fits else "does not fit",
            )
        screen.print_lines([""])
        screen.console().print(others)
    screen.print_lines(["", *words.findings(finding.as_dict() for finding in planned.findings)])


def _lines(planned: Planned, price: float | None) -> list[str]:
    expected, time = planned.forecast, planned.forecast.seconds
    assert time is not None
    low, high = (duration(time.total * (1 + sign * time.spread)) for sign in (-1, 1))
    recompute = "on" if planned.recipe.training.recompute is True else "off"
    lines = [
        f"{words.counted(expected.work.steps, 'step')}, {words.counted(expected.work.tokens, 'token')} of examples, "
        f"{number(round(expected.work.train.tokens))} of them computed; "
        f"{number(expected.sizes.trained)} weights are trained",
        f"about {duration(time.total)} in all ({low} to {high})",
        f"at most {memory(expected.memory.peak)} of memory; {memory(planned.free_bytes)} are free "
        f"(microbatch_tokens {number(planned.recipe.training.budget)}, recompute {recompute})",
    ]
    if price is not None:
        lines.append(f"about {short(price * time.total / 3600)} at {short(price)} an hour")
    if not planned.fits:
        fitting = [f"{o.key}: {setting(o.value)}" for o in planned.options if o.fits]
        lines.append(f"this does not fit; what would: {', '.join(fitting) or 'a smaller model, or a quantised base'}")
    return lines


def _share(value: float, of: float) -> str:
    percent = round(100 * (value / of - 1)) if of else 0
    return f"{signed(percent, 0)} %" if percent else "the same"


def as_json(planned: Planned, price: float | None) -> dict[str, Any]:
    """The forecast for programs."""
    from dataclasses import asdict

    expected = planned.forecast
    assert expected.seconds is not None
    cost = None if price is None else price * expected.seconds.total / 3600
    return {
        "fits": planned.fits,
        "recipe": planned.recipe.model_dump(mode="json"),
        "estimate": expected.as_dict(),
        "phases_seconds": asdict(expected.seconds),
        "options": [asdict(option) for option in planned.options],
        "findings": [finding.as_dict() for finding in planned.findings],
        "cost": cost,
    }
