"""The grid of a sweep: which keys may be swept, what a value is, how arms are named."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import RecipeError
from luthier.recipe.load import build
from luthier.recipe.sweep import axes, grid

BASE = build({"model": {"source": "org/model"}, "data": {"train": ["rows.jsonl"]}}, where="the test")


def test_several_axes_form_a_grid_whose_last_one_changes_fastest():
    arms = grid(BASE, axes(["training.rate=1e-4,2e-4", "adapter.rank=8,16"]))
    assert [(arm.recipe.training.rate, arm.recipe.adapter.rank) for arm in arms] == [
        (1e-4, 8), (1e-4, 16), (2e-4, 8), (2e-4, 16),
    ]  # fmt: skip
    assert [arm.name for arm in arms][:2] == ["rate-0.0001_rank-8", "rate-0.0001_rank-16"]
    assert arms[0].values == {"training.rate": 1e-4, "adapter.rank": 8}


def test_data_files_give_their_names_to_arms():
    arms = grid(BASE, axes(["data.train=legal/rows.jsonl,desk.csv,[a.jsonl, b.jsonl]"]))
    assert [arm.recipe.data.train for arm in arms] == [["legal/rows.jsonl"], ["desk.csv"], ["a.jsonl", "b.jsonl"]]
    assert [arm.name for arm in arms] == ["rows", "desk", "a-b"]


def test_lists_and_words_are_values():
    arms = grid(BASE, axes(["adapter.targets=[q_proj, v_proj],all-linear"]))
    assert [arm.recipe.adapter.targets for arm in arms] == [["q_proj", "v_proj"], "all-linear"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.source=a,b", "every arm stands on the same base"),
        ("model.precision=fp32,bf16", "every arm stands on the same base"),
        ("training.max_length=100,200", "compared on other rows"),
        ("training.threads=1,2", "time and not the model"),
        ("training.microbatch_tokens=1,2", "time and not the model"),
        ("data.validation=a,b", "one validation loss"),
        ("objective.turns=all,last", "one validation loss"),
        ("evaluation.limit=1,2", "one validation loss"),
        ("training.rate", "KEY=VALUE,VALUE"),
        ("training.rate=", "KEY=VALUE,VALUE"),
        ("training.rate=1e-4", "one value"),
        ("training.rate=1e-4,1e-4", "twice"),
        ("training.rate=[1e-4", "YAML"),
    ],
)
def test_what_cannot_be_swept_is_refused_with_its_reason(text, expected):
    with pytest.raises(RecipeError) as caught:
        axes([text])
    assert expected in str(caught.value)


@pytest.mark.parametrize("texts", [["training.rat=1,2"], ["training.rate=-1,2"], ["adapter.rank=a,b"]])
def test_an_arm_that_cannot_be_is_refused_before_anything_is_made(texts):
    with pytest.raises(RecipeError):
        grid(BASE, axes(texts))


def test_a_key_stands_once():
    with pytest.raises(RecipeError, match="twice"):
        axes(["training.rate=1,2", "training.rate=3,4"])


@given(st.lists(st.text(alphabet="ab/\\ .:é-_", min_size=1, max_size=8), min_size=2, max_size=6, unique=True))
def test_names_of_arms_are_different_and_names_of_folders(files):
    import json

    arms = grid(BASE, axes([f"data.train={', '.join(json.dumps(f) for f in files)}"]))
    names = [arm.name for arm in arms]
    assert len(set(names)) == len(files)
    assert all(re.fullmatch(r"[\w][\w.-]*", name, flags=re.ASCII) for name in names)
