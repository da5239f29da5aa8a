"""One command from its words to its exit code: global flags, usage errors, and every error as one block on stderr."""

from __future__ import annotations

import io
import os
import sys
import traceback
from typing import Any, cast

import typer

from luthier.cli.options import Settings
from luthier.cli.words import plain
from luthier.errors import Interrupted, LuthierError, OutOfMemory

USAGE = 2
BROKEN_PIPE = 141
"""128 + SIGPIPE, as shells report a program whose reader went away."""
UsageError = cast(type[Exception], typer.BadParameter.__bases__[0])
"""The class of all usage errors, which typer does not name in public."""
GLOBAL = ("--quiet", "--debug")


def run(arguments: list[str]) -> int:
    """Runs `luthier` with these arguments; errors go to stderr and come back as exit codes."""
    from luthier.cli.app import build

    _write_any_text()
    given, words = global_flags(arguments)
    settings = Settings(quiet="--quiet" in given)
    command = typer.main.get_command(build())
    try:
        code = command.main(words, prog_name="luthier", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except BaseException as error:
        return _end(error, debug="--debug" in given)
    return code if isinstance(code, int) else 0


def _write_any_text() -> None:
    """Files and pipes get UTF-8 wherever they are written; a terminal that lacks a character shows a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")


def global_flags(arguments: list[str]) -> tuple[set[str], list[str]]:
    """The flags that may stand anywhere before `--`, and the words that remain."""
    stop = arguments.index("--") if "--" in arguments else len(arguments)
    head, tail = arguments[:stop], arguments[stop:]
    return {word for word in head if word in GLOBAL}, [word for word in head if word not in GLOBAL] + tail


def _end(error: BaseException, *, debug: bool) -> int:
    if isinstance(error, BrokenPipeError) or (isinstance(error, SystemExit) and _pipe_is_broken(error)):
        # What is still buffered has no reader either: without this, Python complains about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    if debug and not isinstance(error, UsageError):
        traceback.print_exception(error)
    text, code = told(error)
    if text:
        print(text, file=sys.stderr)
    return code


def _pipe_is_broken(error: SystemExit) -> bool:
    # click and typer turn a broken pipe into an exit of their own.
    return isinstance(error.__context__, OSError)


def told(error: BaseException) -> tuple[str, int]:
    """What is said of an error, and the exit code it ends the command with."""
    if isinstance(error, LuthierError):
        return block(error), error.exit_code
    if isinstance(error, UsageError):
        return _usage(error), USAGE
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return block(Interrupted("stopped")), Interrupted.exit_code
    if out_of_memory(error):
        return block(
            OutOfMemory(
                "this machine has not enough memory for this",
                do="lower training.microbatch_tokens (the result stays the same), or take a smaller model",
            )
        ), OutOfMemory.exit_code
    name = type(error).__name__
    return f"error: this is a fault of Luthier: {name}\n  do: run it again with --debug to see where, and report it", 1


def block(error: LuthierError) -> str:
    """`error: what`, then where, got and do, each on its line."""
    return plain(f"error: {error}")


def out_of_memory(error: BaseException) -> bool:
    """Python's own, and torch's on any device, which on a CPU has no class of its own."""
    said = str(error).lower()
    words = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(word in said for word in words))


def _usage(error: Any) -> str:
    context = error.ctx
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if not message:
        # A command without its arguments: its help is the answer.
        return str(context.get_help()) if context else ""
    path = context.command_path if context else "luthier"
    return plain(f"error: {message}\n  do: {path} --help shows what goes there")
