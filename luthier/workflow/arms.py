"""A run folder, a packaged model or a model source, opened for answering: the model with its adapter, its tokenizer,
its recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data import templates
from luthier.errors import InputError
from luthier.models import sources
from luthier.models.load import load_tokenizer
from luthier.models.policy import Policy
from luthier.models.sources import Origin
from luthier.recipe import Recipe, Supervised
from luthier.recipe.load import build as build_recipe
from luthier.recipe.load import load, override
from luthier.runs.folder import RunFolder
from luthier.workflow.build import open_policy
from luthier.workflow.prepare import prepare
from luthier.workflow.tell import Tell


@dataclass(frozen=True)
class Arm:
    """A model that can be asked."""

    recipe: Recipe
    tokenizer: Any
    policy: Policy


def is_run(target: str) -> bool:
    """Whether `target` is a run folder."""
    folder = RunFolder(Path(target))
    return folder.events.exists() and folder.asked.exists()


def recipe_for(target: str, data: list[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe under which `target` is evaluated on `data`: a run's own, with the data exchanged; all rows are test
    rows."""
    if is_run(target):
        tree = load(RunFolder(Path(target)).recipe).model_dump(mode="json")
        tree["training"]["device"] = "auto"
    else:
        tree = {"model": {"source": target}, "data": {"train": data}}
    tree["data"] = {
        **tree["data"],
        "train": data,
        "validation": [],
        "test": [],
        "limit": None,
        "split": {"by": "content", "validation": 0.0, "test": 0.0},
    }
    if is_run(target) and tree["objective"]["kind"] == "supervised":
        # A question that is longer than any in training is still asked; documents are cut as they were in training.
        tree["training"]["on_over_long"] = "cut_prompt"
    return build_recipe(override(tree, overrides), where="luthier evaluate")


def open_arm(target: str, recipe: Recipe, folder: Path | None, *, tell: Tell) -> Arm:
    """Loads `target`. With `folder`, the recipe's data are prepared there and the recipe is resolved by them.

    Raises:
        InputError: the run has no model yet.
    """
    place = target
    if is_run(target):
        run = RunFolder(Path(target))
        if not run.model.exists():
            raise InputError("this run has no model yet", where=target, do=f"luthier resume {target}")
        place = str(run.model)
    origin = _resolve(place, recipe)
    if folder is not None:
        recipe = prepare(recipe, folder, tell=tell).recipe
    tokenizer = open_tokenizer(place, origin, recipe)
    # A model that was trained on a GPU is asked where it is asked.
    policy, _ = open_policy(recipe, origin, device="auto")
    return Arm(recipe, tokenizer, policy)


def _resolve(place: str, recipe: Recipe) -> Origin:
    own = place == recipe.model.source
    return sources.resolve(
        place,
        revision=recipe.model.revision if own else None,
        sha256=recipe.model.sha256 if own else None,
        remote_code=recipe.model.remote_code is not None and own,
    )


def open_tokenizer(place: str, origin: Origin, recipe: Recipe) -> Any:
    """The tokenizer that was saved beside a tuned model, or the model's own with the recipe's template."""
    beside, allowed = origin.adapter, recipe.model.remote_code is not None
    if beside is not None and (beside / "tokenizer_config.json").exists():
        kept = Origin(str(beside), "folder", beside, files={})
        tokenizer = load_tokenizer(kept, model=origin, remote_code=allowed)
    else:
        tokenizer = load_tokenizer(origin, remote_code=allowed)
    if recipe.objective is None or isinstance(recipe.objective, Supervised):
        templates.ensure_template(tokenizer, None if tokenizer.chat_template else recipe.model.template)
    return tokenizer
