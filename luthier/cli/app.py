"""The verbs of the command line, in the order in which help lists them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from luthier.cli import chat, check, data, demo, evaluate, export, init, plan, prove, resume, runs, show, tune

VERBS: dict[str, Callable[..., Any]] = {
    "demo": demo.demo,
    "tune": tune.tune,
    "init": init.init,
    "check": check.check,
    "plan": plan.plan,
    "prove": prove.prove,
    "resume": resume.resume,
    "evaluate": evaluate.evaluate,
    "chat": chat.chat,
    "export": export.export,
    "runs": runs.runs,
    "show": show.show,
}


def _version(wanted: bool) -> None:
    if wanted:
        from luthier import __version__

        typer.echo(f"luthier {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress; results and errors only. Goes anywhere.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from. Goes anywhere.")] = False,
) -> None:
    """Fine-tunes language models on your own data and shows whether it helped.

    \b
    luthier demo
    luthier tune --model MODEL --data FILE
    """


def build() -> typer.Typer:
    """The typer app."""
    app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(_root)
    for name, verb in VERBS.items():
        app.command(name)(verb)
    app.add_typer(data.app, name="data")
    return app
