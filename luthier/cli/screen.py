"""Results on standard output: tables, and colour where a terminal shows it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from luthier.cli import words
from luthier.numbers import number, signed

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

JSON = dict[str, Any]
WIDE = 200
"""Columns where no terminal says how many there are."""
MOST_TOKENS = 600
"""Tokens of an example that are shown; of a longer one its start and its end."""
COLOURS = {"better": "green", "worse": "red", "not worse": "green", "inconclusive": "yellow"}


def console(stream: TextIO | None = None) -> Console:
    """A console that takes every text literally."""
    from rich.console import Console

    stream = stream or sys.stdout
    return Console(
        file=stream,
        markup=False,
        highlight=False,
        emoji=False,
        width=None if stream.isatty() else WIDE,
        soft_wrap=False,
    )


def print_json(value: Any) -> None:
    """One JSON object on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def table(*heads: str, right: Sequence[str] = ()) -> Table:
    """A table without lines; the columns named in `right` hold numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for head in heads:
        made.add_column(head, justify="right" if head in right else "left", overflow="fold")
    return made


def print_lines(lines: Sequence[str], *, style: str = "") -> None:
    for line in lines:
        console().print(line, style=style or None, soft_wrap=True)


def print_evaluation(evaluation: JSON) -> None:
    """The verdict in a sentence, every measure with its interval, and what to know beside them."""
    metrics = evaluation["metrics"]
    primary = next(metric for metric in metrics if metric["name"] == evaluation["primary"])
    print_lines([words.plain(primary["sentence"])], style=colour(primary["word"] or ""))
    alone = evaluation["arms"]["base"] is None
    numbers = ("value",) if alone else ("base", "tuned", "difference")
    made = table("measure", *numbers, "interval", *(() if alone else ("verdict",)), right=numbers)
    for metric in metrics:
        cells = [metric["label"], number(metric["tuned"]), words.interval(metric, evaluation["confidence"])]
        if not alone:
            cells[1:2] = [number(metric["base"]), number(metric["tuned"]), signed(metric["difference"])]
            cells.append(metric["word"])
        made.add_row(*map(words.plain, cells))
    out = console()
    out.print()
    out.print(made)
    if evaluation["notes"]:
        out.print()
        print_lines([f"note: {words.plain(note)}" for note in evaluation["notes"]])


def colour(word: str) -> str:
    """Green, red or yellow for the word of a verdict."""
    return next((style for start, style in COLOURS.items() if word.startswith(start)), "")


def print_sample(tokens: Sequence[tuple[str, float]], *, most: int | None = None) -> None:
    """An example with what is learnt marked: in colour, or in brackets where there is none."""
    from rich.text import Text

    out = console()
    parts = [tokens]
    if most is not None and len(tokens) > most:
        parts = [tokens[: most // 2], [], tokens[-(most - most // 2) :]]
    text = Text()
    for part in parts:
        if not part:
            text.append(f"\n… {number(len(tokens) - (most or 0))} tokens are not shown …\n")
        elif out.color_system is None:
            text.append(words.bracketed(part))
        else:
            for stretch, weight in words.marked(part):
                text.append(stretch, style="bold green" if weight else "dim")
    out.print(text, soft_wrap=True)
