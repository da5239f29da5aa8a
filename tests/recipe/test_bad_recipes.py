"""Malformed recipes: each is refused with the key, what was found, and where it helps, what was probably meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.errors import RecipeError
from luthier.recipe.load import load

GOOD = "model: {source: m}\ndata: {train: [a.jsonl]}\n"
CASES: list[tuple[str, str, tuple[str, ...]]] = [
    (
        "unknown key at the top, a word of another section",
        GOOD + "epochs: 3\n",
        ("epochs: unknown key", "training.epochs"),
    ),
    ("unknown key at the top, a slip", GOOD + "trainign: {}\n", ("trainign: unknown key", "Did you mean training?")),
    ("unknown key without a likely one", GOOD + "zzz: 1\n", ("zzz: unknown key", "Known here: version, model, data")),
    ("unknown key in a section", GOOD + "training: {batchtokens: 1}\n", ("training.batchtokens", "microbatch_tokens")),
    (
        "unknown key two levels down",
        "model: {source: m}\ndata: {train: [a], columns: {promt: x}}\n",
        ("data.columns.promt: unknown key", "prompt"),
    ),
    (
        "unknown key in a chosen kind",
        GOOD + "adapter: {kind: lora, ranks: 8}\n",
        ("adapter.ranks: unknown key", "Did you mean rank?"),
    ),
    (
        "key of another kind",
        GOOD + "objective: {kind: text, turns: all}\n",
        ("objective.turns", "belongs to kind supervised"),
    ),
    ("no such kind", GOOD + "adapter: {kind: qlora}\n", ("adapter.kind: is none", "'qlora'", "lora, full")),
    ("kind is missing", GOOD + "adapter: {rank: 8}\n", ("adapter.kind: is needed and missing", "lora, full")),
    ("no model", "data: {train: [a]}\n", ("model: is needed and missing",)),
    ("no data", "model: {source: m}\n", ("data: is needed and missing",)),
    ("no source", "model: {}\ndata: {train: [a]}\n", ("model.source: is needed and missing",)),
    ("no training files", "model: {source: m}\ndata: {train: []}\n", ("data.train", "at least 1")),
    (
        "one file that is no list",
        "model: {source: m}\ndata: {train: a.jsonl}\n",
        ("data.train: should be a valid list", "Write ['a.jsonl']"),
    ),
    ("a section left empty", GOOD + "training:\n", ("training: must be a section with keys",)),
    ("a value for a section", GOOD + "training: fast\n", ("training: must be a section with keys", "'fast'")),
    ("a list for a section", GOOD + "training: [1]\n", ("training: must be a section with keys",)),
    ("text for a number", GOOD + "training: {epochs: many}\n", ("training.epochs: should be a valid number", "'many'")),
    ("a fraction for a whole number", GOOD + "training: {max_steps: 1.5}\n", ("training.max_steps", "1.5")),
    ("below its range", GOOD + "training: {epochs: 0}\n", ("training.epochs: should be greater than 0",)),
    ("above its range", GOOD + "training: {warmup: 1}\n", ("training.warmup: should be less than 1",)),
    ("not finite", GOOD + "training: {rate: .inf}\n", ("training.rate", "finite")),
    (
        "a negative rank",
        GOOD + "adapter: {kind: lora, rank: -1}\n",
        ("adapter.rank: should be greater than or equal to 1",),
    ),
    (
        "neither a list nor the word",
        GOOD + "adapter: {kind: lora, targets: 3}\n",
        ("adapter.targets: should be a valid list or 'all-linear'",),
    ),
    (
        "a list with a number among its words",
        GOOD + "adapter: {kind: lora, targets: [q_proj, 1]}\n",
        ("adapter.targets.1: should be a valid string",),
    ),
    (
        "a slip in a choice",
        "model: {source: m}\ndata: {train: [a], format: message}\n",
        ("data.format", "Did you mean messages?"),
    ),
    (
        "a column named text that is no text",
        "model: {source: m}\ndata: {train: [a], columns: {text: [x]}}\n",
        ("data.columns.text: should be a valid string",),
    ),
    ("an unknown measure", GOOD + "evaluation: {primary: bleu}\n", ("evaluation.primary", "'bleu'")),
    ("another version", "version: 2\n" + GOOD, ("version: should be 1",)),
    (
        "code of another source",
        "model: {source: a/b, remote_code: a/c}\ndata: {train: [a]}\n",
        ("model: `remote_code` must repeat the source, 'a/b'",),
    ),
    (
        "split by group without a column",
        "model: {source: m}\ndata: {train: [a], split: {by: group}}\n",
        ("data.split", "needs `column`"),
    ),
    (
        "split by content with a column",
        "model: {source: m}\ndata: {train: [a], split: {by: content, column: x}}\n",
        ("data.split", "no effect"),
    ),
    (
        "nothing left to train on",
        "model: {source: m}\ndata: {train: [a], split: {validation: 0.5, test: 0.5}}\n",
        ("data.split", "no rows to train on"),
    ),
    ("several at once", GOOD + "training: {epochs: 0}\nzzz: 1\n", ("2 things", "training.epochs", "zzz: unknown key")),
    ("broken YAML", "model: {source: m\n", ("not valid YAML", ":2")),
    ("a tab", "model:\n\tsource: m\n", ("not valid YAML", ":2", "\\t")),
    ("a key twice", GOOD + "data: {train: [private words]}\n", ("not valid YAML", ":3", 'duplicate key "data"')),
    ("a Python object", GOOD + "training: !!python/object:os.system x\n", ("not valid YAML", ":3")),
    ("keys that are no words", GOOD + "1: 2\n", ("keys of a recipe are words", "1")),
    ("a list", "- a\n- b\n", ("a mapping of sections", "a list")),
    ("nothing", "", ("a mapping of sections", "nothing")),
    ("extends something else than a file", GOOD + "extends: [a]\n", ("`extends` names one recipe file",)),
    ("extends what is not there", GOOD + "extends: nowhere.yaml\n", ("there is no such recipe", "nowhere.yaml")),
    ("extends itself", GOOD + "extends: recipe.yaml\n", ("in a circle", "recipe.yaml -> recipe.yaml")),
    ("refers to itself", "a: &a [*a]\n", ("not valid YAML",)),
]
OVERRIDES: list[tuple[str, tuple[str, ...]]] = [
    ("training.epochs", ("an override is KEY=VALUE", "-o training.epochs=3")),
    ("=3", ("an override is KEY=VALUE",)),
    ("training.epochs=[1", ("not valid YAML", "-o training.epochs")),
    ("model.source.name=x", ("source: is a value, not a section",)),
    ("training.epoch=3", ("training.epoch: unknown key", "Did you mean epochs?")),
    ("adapter.rank=8", ("adapter.kind: is needed and missing",)),
]


@pytest.mark.parametrize(("text", "fragments"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_is_refused_with_its_key(text: str, fragments: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(path)
    said = str(caught.value)
    for fragment in fragments:
        assert fragment in said
    assert "private words" not in said
    assert "recipe.yaml" in said or "nowhere.yaml" in said


@pytest.mark.parametrize(("text", "fragments"), OVERRIDES, ids=[text for text, _ in OVERRIDES])
def test_overrides_are_refused_with_their_key(text: str, fragments: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(path, [text])
    for fragment in fragments:
        assert fragment in str(caught.value)


def test_secrets_are_masked(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(GOOD + "training: {epochs: sk-abcdefghijklmnopqrstuvwxyz}\n", encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load(path)
    assert "abcdefghij" not in str(caught.value)


def test_a_few_lines_that_stand_for_billions_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    path = tmp_path / "recipe.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(RecipeError, match="too many values"):
        load(path)


def test_other_files_are_recognised(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="this is a folder"):
        load(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 1_000_001)
    with pytest.raises(RecipeError, match="too large"):
        load(large)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        load(binary)
