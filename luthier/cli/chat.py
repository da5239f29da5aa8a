"""`luthier chat`: ask a tuned model, alone or beside its base."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.cli import words

if TYPE_CHECKING:
    from luthier.workflow.chat import Speaker

HELP = "Ctrl-D ends, /new begins a new conversation."


def chat(
    target: Annotated[str, typer.Argument(metavar="DIR|MODEL", help="A run folder or a model.")],
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Ask this model as well; `base` is the run's own base.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Ask this once and stop.")] = None,
) -> None:
    """Talk to a tuned model, or to it and its base at once."""
    from luthier.workflow.chat import open_chat

    speakers = open_chat(target, against=against)
    if prompt is not None:
        converse(speakers, iter([prompt]))
        return
    if sys.stdin.isatty():
        print(HELP, file=sys.stderr)
    converse(speakers, typed())


def typed() -> Iterator[str]:
    """What is typed, line by line, until Ctrl-D; from a pipe, its lines."""
    while True:
        try:
            yield input("> ") if sys.stdin.isatty() else input()
        except EOFError:
            return


def converse(speakers: list[Speaker], questions: Iterator[str]) -> None:
    """Every speaker answers every question, each with its own conversation so far."""
    histories: list[list[dict[str, Any]]] = [[] for _ in speakers]
    for question in questions:
        if not question.strip():
            continue
        if question.strip() == "/new":
            for history in histories:
                history.clear()
            continue
        for speaker, history in zip(speakers, histories, strict=True):
            if len(speakers) > 1:
                print(f"{words.plain(speaker.name)}:")
            history.append({"role": "user", "content": question})
            history.append({"role": "assistant", "content": answer(speaker, history, write=_write)})
            print("\n" if len(speakers) > 1 else "", flush=True)


def answer(speaker: Speaker, history: list[dict[str, Any]], *, write: Callable[[str], None]) -> str:
    """One answer, shown as it is written."""
    return speaker.answer(history, on_text=lambda piece: write(words.plain(piece)))


def _write(text: str) -> None:
    print(text, end="", flush=True)
