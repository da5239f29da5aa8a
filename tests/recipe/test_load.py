"""Recipes that are right: what `extends` and overrides make of them."""

from __future__ import annotations

from pathlib import Path

from luthier.recipe import Full, Lora
from luthier.recipe.load import dump, load


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_recipe_extends_another_key_by_key(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "model: {source: m}\ndata: {train: [a]}\ntraining: {epochs: 2, seed: 7}\n")
    recipe = load(write(tmp_path / "own.yaml", "extends: base.yaml\ntraining: {epochs: 5}\n"))
    assert (recipe.training.epochs, recipe.training.seed, recipe.model.source) == (5, 7, "m")


def test_another_kind_replaces_the_whole_section(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", "model: {source: m}\ndata: {train: [a]}\nadapter: {kind: lora, rank: 4}\n")
    extended = load(write(tmp_path / "own.yaml", "extends: base.yaml\nadapter: {kind: full}\n"))
    overridden = load(base, ["adapter.kind=full"])
    assert extended.adapter == overridden.adapter == Full()
    assert load(base, ["adapter.kind=lora", "adapter.alpha=8"]).adapter == Lora(rank=4, alpha=8)


def test_overrides_are_yaml(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "model: {source: m}\ndata: {train: [a]}\n")
    recipe = load(
        path, ["data.train=[b, c]", "training.patience=null", "evaluation.enabled=false", "training.rate=1e-4"]
    )
    assert recipe.data.train == ["b", "c"]
    assert recipe.training.patience is None
    assert recipe.evaluation.enabled is False
    assert recipe.training.rate == 1e-4


def test_a_value_may_hold_an_equals_sign(tmp_path: Path) -> None:
    path = write(tmp_path / "r.yaml", "model: {source: m}\ndata: {train: [a]}\n")
    assert load(path, ["model.source=wheel:name==1.0"]).model.source == "wheel:name==1.0"


def test_what_is_dumped_loads_back(tmp_path: Path) -> None:
    recipe = load(
        write(
            tmp_path / "r.yaml",
            "model: {source: m}\ndata: {train: [a]}\nobjective: {kind: classify, labels: [no, '1']}\n",
        )
    )
    assert load(write(tmp_path / "again.yaml", dump(recipe))) == recipe
