"""Every recipe in recipes/ loads, has all its keys, and runs for two steps on a tiny model."""

import json
from pathlib import Path

import pytest

from luthier.recipe import Recipe
from luthier.recipe.load import load
from luthier.runs.folder import read_json
from luthier.runs.journal import read
from luthier.workflow.tune import tune

RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = [path.name for path in sorted(RECIPES.glob("*.yaml"))]
FAMILY = {"classify.yaml": "bert"}
"""Recipes that are not for a model that writes."""
PLACES = ["front room", "attic", "stairs", "yard", "cellar", "gate"]


def conversation(i: int) -> dict[str, object]:
    asked = {"role": "user", "content": f"Where is box {i}?"}
    return {"messages": [asked, {"role": "assistant", "content": f"In the {PLACES[i % 6]}."}]}


ROWS = {
    "sft.yaml": conversation,
    "full-finetuning.yaml": conversation,
    "four-bits.yaml": conversation,
    "other-methods.yaml": conversation,
    "classify.yaml": lambda i: {"text": f"box {i} of the {PLACES[i % 6]}", "label": ["keep", "sell"][i % 2]},
    "continued-pretraining.yaml": lambda i: {"text": f"Box {i} stood in the {PLACES[i % 6]} until the {i}th of May."},
}
"""What the rows of each recipe look like."""


@pytest.fixture
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name = request.getfixturevalue("name")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(ROWS[name](i)) + "\n" for i in range(60)), encoding="utf-8")
    return path


def overrides(name: str, model: Path, rows: Path) -> list[str]:
    """Another model without the pin of the real one, other rows, and two steps; all else as the recipe says."""
    return [
        f"model.source={json.dumps(str(model))}",
        "model.sha256=null",
        f"data.train={json.dumps([str(rows)])}",
        "data.test=[]",
        "training.max_steps=2",
        "training.threads=1",
        "training.max_length=128",
        "evaluation.limit=2",
        "evaluation.max_new_tokens=" + ("null" if name in ("classify.yaml", "continued-pretraining.yaml") else "4"),
    ]


def test_there_are_rows_for_every_recipe() -> None:
    assert set(NAMES) == set(ROWS)


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_and_says_what_a_recipe_can_say(name: str) -> None:
    recipe = load(RECIPES / name)
    assert recipe.objective is not None
    assert recipe.adapter is not None
    missing = {f"{part}.{key}" for part in ("model", "training") for key in _unsaid(recipe, part)}
    assert not missing, "a recipe to learn from names every key of these sections"


def _unsaid(recipe: Recipe, part: str) -> set[str]:
    section = getattr(recipe, part)
    return set(type(section).model_fields) - section.model_fields_set


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name: str, rows: Path, saved_tiny, tmp_path: Path) -> None:
    model = saved_tiny(FAMILY.get(name, "llama"))
    run = tune(load(RECIPES / name, overrides(name, model, rows)), tmp_path / "run")
    steps = [event for event in read(run.events) if event["event"] == "step"]
    assert [step["step"] for step in steps] == [1, 2]
    asked, evaluation = load(RECIPES / name), read_json(run.evaluation)
    assert evaluation["primary"] == asked.evaluation.primary
    assert evaluation["items"] == 2
    weights = "adapter_model.safetensors" if asked.adapter and asked.adapter.kind != "full" else "model.safetensors"
    assert (run.model / weights).exists()
    assert run.report.exists()
