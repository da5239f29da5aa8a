"""The recipe stays small, and its objectives are those that can be computed."""

from __future__ import annotations

from collections.abc import Iterator

from luthier.objectives import OBJECTIVES
from luthier.recipe import Recipe
from luthier.recipe.schema import fields, kind_of, sections
from luthier.workflow.plan import FITS, PRIMARY, TASKS

MOST_KEYS = 160


def keys() -> Iterator[str]:
    for path, part in sections(Recipe):
        yield from (f"{path}[{kind_of(part)}].{field.name}" for field in fields(part) if not field.parts)


def test_a_person_can_read_all_keys() -> None:
    assert 40 < len(set(keys())) <= MOST_KEYS


def test_every_objective_of_a_recipe_has_its_function_and_the_other_way_round() -> None:
    kinds = {kind_of(part) for path, part in sections(Recipe) if path == "objective"}
    assert kinds == set(OBJECTIVES) == set(PRIMARY) == set(TASKS) == set(FITS)


def test_a_recipe_is_frozen_and_refuses_unknown_keys() -> None:
    for path, part in sections(Recipe):
        assert part.model_config.get("frozen"), path
        assert part.model_config.get("extra") == "forbid", path
