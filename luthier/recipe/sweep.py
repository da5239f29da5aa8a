"""A grid of recipes: `training.rate=1e-4,2e-4` times `adapter.rank=8,16` is four arms. Free of torch."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import PurePath
from typing import Any, NamedTuple

from luthier.errors import RecipeError
from luthier.masking import mask
from luthier.recipe import Lora, Recipe
from luthier.recipe.load import build, override, value_of

MAY_BE_SWEPT = ("training.", "adapter.", "data.train", "data.limit")
"""Beginnings of keys whose arms stand on one base and are judged by one measure."""
NOT_AMONG_THEM = {
    **dict.fromkeys(
        ("training.threads", "training.device", "training.recompute", "training.microbatch_tokens"),
        "it changes the time and not the model",
    ),
    **dict.fromkeys(("training.max_length", "training.on_over_long"), "arms would be compared on other rows"),
    "model": "every arm stands on the same base",
}
"""Key or section -> why it is not swept."""


class Axis(NamedTuple):
    """A key and the values that it takes."""

    key: str
    values: tuple[Any, ...]


class Asked(NamedTuple):
    """One arm of a sweep before anything is derived."""

    name: str
    """A folder's name, told from its values."""
    values: dict[str, Any]
    """Key -> what it has in this arm."""
    recipe: Recipe


def axes(texts: Iterable[str]) -> list[Axis]:
    """Reads `KEY=VALUE,VALUE` texts; values are YAML, so that `[a, b]` is one value.

    Raises:
        RecipeError: a text has another form, or a key cannot be swept.
    """
    found: list[Axis] = []
    for text in texts:
        key, equals, rest = (part.strip() for part in text.partition("="))
        if not equals or not key or not rest:
            raise RecipeError(
                "a sweep is KEY=VALUE,VALUE",
                where="--sweep",
                got=repr(mask(text))[:120],
                do="for example --sweep training.rate=1e-4,2e-4,4e-4",
            )
        _refuse(key)
        values = value_of(f"[{rest}]", where=f"--sweep {key}")
        if key == "data.train":
            values = [[value] if isinstance(value, str) else value for value in values]
        if len({json.dumps(value) for value in values}) < max(2, len(values)):
            what = "has one value, which -o gives" if len(values) < 2 else "has a value twice"
            raise RecipeError(f"--sweep {key}: {what}", got=rest[:120], do="give each value once, two or more")
        if any(axis.key == key for axis in found):
            raise RecipeError(f"--sweep {key}: is there twice", do=f"--sweep {key}=VALUE,VALUE,VALUE")
        found.append(Axis(key, tuple(values)))
    return found


def _refuse(key: str) -> None:
    if key.startswith(MAY_BE_SWEPT) and key not in NOT_AMONG_THEM:
        return
    section = key.partition(".")[0]
    why = NOT_AMONG_THEM.get(key) or NOT_AMONG_THEM.get(section) or "arms could not be compared by one validation loss"
    raise RecipeError(
        f"--sweep {key}: cannot be swept, because {why}",
        do="sweep keys of training or adapter, data.train or data.limit; for others, start a run for each value",
    )


def grid(recipe: Recipe, found: Sequence[Axis]) -> list[Asked]:
    """One recipe for each combination of values, the last axis changing fastest.

    Raises:
        RecipeError: a value is not possible.
    """
    arms: list[Asked] = []
    for values in product(*(axis.values for axis in found)):
        given = {axis.key: value for axis, value in zip(found, values, strict=True)}
        name = _free("_".join(_named(key, value) for key, value in given.items()), {arm.name for arm in arms})
        tree = recipe.model_dump(mode="json")
        if tree["adapter"] is None and any(key.removeprefix("adapter.") in Lora.model_fields for key in given):
            tree["adapter"] = {"kind": "lora"}
        texts = [f"{key}={json.dumps(value)}" for key, value in given.items()]
        arms.append(Asked(name, given, build(override(tree, texts), where=f"--sweep, arm {name}")))
    return arms


def _named(key: str, value: Any) -> str:
    """`rate-0.0001`; a data file's own name."""
    if key == "data.train":
        text = "-".join(PurePath(file).name.partition(".")[0] for file in value)
    else:
        text = f"{key.rpartition('.')[2]}-{value if isinstance(value, (str, int, float)) else json.dumps(value)}"
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.")[:60] or "arm"


def _free(name: str, taken: set[str]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}-{number}"
    return candidate
