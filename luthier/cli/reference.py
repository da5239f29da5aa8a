"""docs/reference, written from what the code says of itself: `python -m luthier.cli.reference [--check]`.

recipe.md   every key of a recipe      cli.md   every verb      errors.md   errors and exit codes
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from luthier import errors
from luthier.cli.app import build
from luthier.recipe import Recipe
from luthier.recipe.commented import scalar
from luthier.recipe.schema import Field, fields, kind_of, meaning, sections

FOLDER = Path(__file__).parents[2] / "docs" / "reference"
NOTE = "<!-- Written by `python -m luthier.cli.reference`; edit the code, not this page. -->\n\n"


def main(arguments: list[str]) -> int:
    """Writes the pages, or with --check says which are not up to date and returns 1."""
    stale = [name for name, text in pages().items() if not _is(FOLDER / name, text)]
    if "--check" in arguments:
        if stale:
            print(f"not up to date: {', '.join(stale)}\n  do: python -m luthier.cli.reference", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(pages()[name], encoding="utf-8")
    return 0


def _is(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def pages() -> dict[str, str]:
    """File name -> content of every generated page."""
    return {name: NOTE + "\n".join(lines) + "\n" for name, lines in _pages()}


def _pages() -> Iterator[tuple[str, list[str]]]:
    yield "recipe.md", list(_recipe())
    yield "cli.md", list(_verbs())
    yield "errors.md", list(_errors())


def _recipe() -> Iterator[str]:
    yield "# The recipe"
    yield ""
    yield (
        "A recipe is a YAML file. Only `model.source` and `data.train` are needed; what else is left out, or `null`, "
        "is derived from the model and the data, and every run says how. `luthier init` writes a complete one. A "
        "recipe may begin from another with `extends: other.yaml`; `-o KEY=VALUE` sets one key for one command. "
        "Unknown keys are refused."
    )
    for path, part in sections(Recipe):
        kind = kind_of(part)
        yield ""
        yield f"## {f'`{path}`' if path else 'Sections'}" + (f", `kind: {kind}`" if kind else "")
        yield ""
        if path:
            yield meaning(part)
            yield ""
        values = [field for field in fields(part) if path or field.parts or field.name == "version"]
        yield from _table(
            ("key", "type", "default", "meaning"), [_row(field, path) for field in values if field.name != "kind"]
        )


def _row(field: Field, path: str) -> tuple[str, str, str, str]:
    key = f"`{path}.{field.name}`" if path else f"`{field.name}`"
    if field.parts:
        kinds = [kind for part in field.parts if (kind := kind_of(part))]
        words = f"section, one of {', '.join(f'`{kind}`' for kind in kinds)}" if kinds else "section"
        needed = any(inner.required for part in field.parts for inner in fields(part)) and not kinds
        return key, words, "needed" if needed else "", field.meaning or meaning(field.parts[0])
    words = " or ".join(f"`{choice}`" for choice in field.choices) if field.choices else field.words
    if field.choices and "list" in field.words:
        words = f"{field.words.partition(' or ')[0]} or {words}"
    default = "needed" if field.required else "left out" if field.default is None else f"`{scalar(field.default)}`"
    return key, words, default, field.meaning


def _verbs() -> Iterator[str]:
    command: Any = typer.main.get_command(build())
    yield "# The command line"
    yield ""
    yield from _about(command)
    yield from _options(command)
    for name, verb in command.commands.items():
        yield from _verb(f"luthier {name}", verb)


def _verb(name: str, verb: Any) -> Iterator[str]:
    yield from ("", f"## {name}", "")
    yield from _about(verb)
    yield from _options(verb)
    for below, command in getattr(verb, "commands", {}).items():
        yield from _verb(f"{name} {below}", command)


def _about(command: Any) -> Iterator[str]:
    """A command's help: its paragraphs, and its examples as code."""
    for paragraph in (command.help or "").split("\n\n"):
        if paragraph.startswith("\b"):
            yield from ("```", *(line.strip() for line in paragraph.splitlines()[1:]), "```", "")
        else:
            yield from (" ".join(paragraph.split()), "")


def _options(command: Any) -> Iterator[str]:
    rows: list[tuple[str, ...]] = []
    for parameter in command.params:
        # Every option that takes a value names it; flags have no metavar.
        metavar = parameter.metavar or ""
        argument = parameter.param_type_name == "argument"
        names = metavar if argument else f"{', '.join(parameter.opts)} {metavar}".strip()
        needed = "needed" if parameter.required else ""
        rows.append((f"`{names}`".replace("|", "\\|"), needed, parameter.help or ""))
    if rows:
        yield from _table(("word", "", "meaning"), rows)


def _errors() -> Iterator[str]:
    yield "# Errors and exit codes"
    yield ""
    yield (
        "An error is one block on standard error: what happened, where, what was found there (`got`), and what to do. "
        "The exit code says which kind it was. 0 is success; 141 means that the reader of the output went away."
    )
    yield ""
    yield "```"
    yield from (
        line.removeprefix("    ") for line in (errors.__doc__ or "").splitlines()[2:] if line.startswith("    ")
    )
    yield "```"
    yield ""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LuthierError)]
    yield from _table(
        ("error", "exit code", "meaning"),
        [(f"`{kind.__name__}`", str(kind.exit_code), (kind.__doc__ or "").split("\n")[0]) for kind in kinds],
    )


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
