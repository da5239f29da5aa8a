"""What a Python program calls: `tune`, `evaluate` and `load`, with plain arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import RecipeError
from luthier.recipe import Recipe
from luthier.recipe.load import build, override
from luthier.recipe.load import load as load_recipe
from luthier.runs.naming import new_root

if TYPE_CHECKING:
    from luthier.runs.folder import RunFolder
    from luthier.types import JSON
    from luthier.workflow.chat import Speaker
    from luthier.workflow.tell import Tell

Files = str | Path | Iterable[str | Path]


def tune(
    recipe: Recipe | str | Path | Mapping[str, Any] | None = None,
    *,
    model: str | Path | None = None,
    data: Files = (),
    validation: Files = (),
    test: Files = (),
    overrides: Iterable[str] = (),
    sweep: Iterable[str] = (),
    run: str | Path | None = None,
    tell: Tell | None = None,
) -> RunFolder:
    """Tunes a model, compares it with its base, and returns the run: `.report`, `.model` and `.evaluation` are files.

    Args:
        recipe: a `Recipe`, the path of a recipe file, or its content as a mapping; or else `model` and `data`.
        overrides: `KEY=VALUE` with dotted keys, such as `training.epochs=3`.
        sweep: `KEY=VALUE,VALUE`, such as `training.rate=1e-4,2e-4`: an arm for each value (several: for each
            combination), of which the best by validation loss becomes the run.
        run: the new run folder. Left out: one under `runs/`, named by time, model and data.
        tell: called with every event (a dictionary) as it happens; see `luthier.runs.journal`.

    Raises:
        LuthierError: what stopped it; the folder holds what was done.
    """
    from luthier.cache import past
    from luthier.recipe.sweep import axes
    from luthier.workflow import sweep as sweeping
    from luthier.workflow import tune as stage
    from luthier.workflow.tell import silent

    chosen = _recipe(recipe, model, data, validation, test, tuple(overrides))
    root = Path(run) if run is not None else new_root(chosen)
    if found := axes(sweep):
        return sweeping.sweep(chosen, found, root, tell=tell or silent, past=past())
    return stage.tune(chosen, root, tell=tell or silent, past=past())


def _recipe(
    recipe: Recipe | str | Path | Mapping[str, Any] | None,
    model: str | Path | None,
    data: Files,
    validation: Files,
    test: Files,
    overrides: tuple[str, ...],
) -> Recipe:
    sides = {"train": names(data), "validation": names(validation), "test": names(test)}
    if (recipe is None) == (model is None and not any(sides.values())):
        raise RecipeError("give a recipe, or `model` and `data`, and not both", where="luthier.tune")
    if isinstance(recipe, (str, Path)):
        return load_recipe(recipe, overrides)
    if isinstance(recipe, Recipe):
        tree: Mapping[str, Any] = recipe.model_dump(mode="json")
    elif recipe is not None:
        tree = recipe
    elif model is None or not sides["train"]:
        raise RecipeError("both `model` and `data` are needed", where="luthier.tune")
    else:
        tree = {"model": {"source": str(model)}, "data": sides}
    return build(override(tree, overrides), where="luthier.tune")


def evaluate(
    target: RunFolder | str | Path,
    data: Files,
    *,
    against: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Iterable[str] = (),
    tell: Tell | None = None,
) -> JSON:
    """Measures a run or a model on a file of rows, and with `against` compares the two.

    Args:
        target: a run, its folder, a packaged model, or what `model.source` takes.
        against: the other model; `base` is the one that the run began with.
        out: a new folder for evaluation.json and predictions.jsonl.

    Returns:
        The content of evaluation.json: `verdict`, `metrics` with intervals, `notes`.

    Raises:
        LuthierError: something cannot be read, loaded or compared.
    """
    from luthier.workflow import evaluate as stage
    from luthier.workflow.tell import silent

    return stage.evaluate(
        place(target),
        names(data),
        against=None if against is None else str(against),
        out=None if out is None else Path(out),
        overrides=tuple(overrides),
        tell=tell or silent,
    )


def load(target: RunFolder | str | Path) -> Speaker:
    """Opens a run, a packaged model or a model source: `.answer("a question")`, `.model`, `.tokenizer`.

    Raises:
        LuthierError: the model cannot be loaded.
    """
    from luthier.workflow.chat import load as stage

    return stage(place(target))


def place(target: RunFolder | str | Path) -> str:
    """The path or source that stands for a run or model."""
    return str(target) if isinstance(target, (str, Path)) else str(target.root)


def names(files: Files) -> list[str]:
    """One file or several, as a list."""
    return [str(files)] if isinstance(files, (str, Path)) else [str(file) for file in files]
