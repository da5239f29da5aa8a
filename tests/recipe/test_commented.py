"""The commented recipe says everything and changes nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from luthier.recipe import Recipe
from luthier.recipe.commented import commented, scalar
from luthier.recipe.load import build
from luthier.recipe.schema import fields, sections


class Reason(NamedTuple):
    key: str
    why: str


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.sampled_from(
        ["null", "yes", "1e5", "- a", "#", "a: b", "~", "", " ", "\u2028", "\x85", "2001-01-01", "0o7", "é", "[", "\\"]
    ),
)
NUMBERS = st.floats(min_value=1e-12, max_value=1e12, allow_nan=False)
OBJECTIVES = st.one_of(
    st.none(),
    st.fixed_dictionaries({"kind": st.just("classify"), "labels": st.none() | st.lists(TEXTS)}),
    st.fixed_dictionaries({"kind": st.just("supervised"), "turns": st.sampled_from(["all", "last"])}),
)
ADAPTERS = st.one_of(
    st.none(),
    st.fixed_dictionaries({"kind": st.just("full"), "freeze_layers": st.integers(0, 99)}),
    st.fixed_dictionaries(
        {
            "kind": st.just("lora"),
            "alpha": NUMBERS,
            "targets": st.just("all-linear") | st.lists(TEXTS),
            "rslora": st.booleans(),
        }
    ),
)
TREES = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries({"source": TEXTS, "template": st.none() | TEXTS}),
        "data": st.fixed_dictionaries({"train": st.lists(TEXTS, min_size=1), "system": st.none() | TEXTS}),
        "objective": OBJECTIVES,
        "adapter": ADAPTERS,
        "training": st.fixed_dictionaries({"epochs": NUMBERS, "rate": st.none() | NUMBERS, "seed": st.integers(0, 99)}),
    }
)


@given(TREES, TEXTS)
def test_loads_back_to_the_same_recipe(tree: dict[str, Any], why: str) -> None:
    recipe = build(tree, where="test")
    text = commented(recipe, [Reason("training.rate", why), Reason("adapter", why)])
    assert build(YAML(typ="safe").load(text), where="test") == recipe


@given(TEXTS)
def test_a_text_stays_a_text(text: str) -> None:
    assert YAML(typ="safe").load(f"a: {scalar(text)}\n") == {"a": text}


def test_every_key_is_there_and_explained() -> None:
    tree = {"model": {"source": "m"}, "data": {"train": ["a"]}, "adapter": {"kind": "lora"}}
    text = commented(build(tree, where="test"), [Reason("training.epochs", "what three rows need")])
    lines = text.splitlines()
    for name in ("source:", "train:", "rank:", "epochs:", "primary:"):
        at = next(i for i, line in enumerate(lines) if line.strip().startswith(name))
        assert lines[at - 1].strip().startswith("#")
    assert "# Derived: what three rows need" in text
    assert "One of cosine, linear, constant." in text
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize(("path", "part"), list(sections(Recipe)))
def test_every_key_has_a_meaning(path: str, part: Any) -> None:
    for field in fields(part):
        if field.name != "kind":
            assert field.meaning or any(inner.__doc__ for inner in field.parts), f"{path}.{field.name}"
