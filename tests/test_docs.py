"""What README and docs say is so: commands have such options, links lead somewhere, YAML loads, named tests exist."""

import csv
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from ruamel.yaml import YAML

from luthier.cli.app import build as build_app
from luthier.data.detect import detect
from luthier.data.load import load_examples
from luthier.gate.policy import load_policy
from luthier.recipe import Columns, Format
from luthier.recipe.load import build, load, override

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += [page for page in [ROOT / "CONTRIBUTING.md"] if page.exists()]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EVERYWHERE = frozenset({"--quiet", "--debug"})


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str) -> list[Any]:
    """Every fenced block of a language, named by its page and line."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in FENCE.finditer(text):
            if match[1] == language:
                line = text.count("\n", 0, match.start()) + 1
                found.append(pytest.param(match[2], id=f"{name_of(page)}:{line}"))
    return found


def commands() -> list[Any]:
    """Every line of a plain block that begins with `luthier`, and every command in a recipe's comments."""
    found = []
    for page in PAGES:
        for match in FENCE.finditer(page.read_text(encoding="utf-8")):
            lines = match[2].splitlines() if match[1] in ("", "sh", "bash") else []
            found += [(page, line) for line in lines if line.startswith("luthier ")]
    for page in sorted((ROOT / "recipes").glob("*.yaml")):
        comments = re.findall(r"^#\s+(luthier .*?)(?:\s{3,}.*)?$", page.read_text(encoding="utf-8"), re.MULTILINE)
        found += [(page, line) for line in comments]
    return [pytest.param(line, id=f"{name_of(page)}: {line}") for page, line in found]


@pytest.mark.parametrize("line", commands())
def test_a_command_has_only_options_that_exist(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])[1:]
    words = [word for word in words if word not in EVERYWHERE]
    group = typer.main.get_command(build_app())
    context = group.make_context("luthier", list(words), resilient_parsing=True)
    while hasattr(group, "get_command"):
        name, *words = words
        group = group.get_command(context, name)
        assert group is not None, f"there is no verb {name}"
        context = group.make_context(name, list(words), parent=context, resilient_parsing=hasattr(group, "get_command"))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    relative = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
    assert not [target for target in relative if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tests_that_a_page_names_exist(page: Path) -> None:
    for file, name in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", page.read_text(encoding="utf-8")):
        assert (ROOT / file).exists(), file
        assert not name or f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), f"{file}::{name}"


@pytest.mark.parametrize("text", blocks("yaml"))
def test_yaml_is_a_recipe_or_a_part_of_one_or_a_policy(text: str, tmp_path: Path) -> None:
    if {"rules", "groups", "extends"} & set(YAML(typ="safe").load(text)):
        (tmp_path / "policy.yaml").write_text(text, encoding="utf-8")
        load_policy(str(tmp_path / "policy.yaml"))
        return
    whole = {"model": {"source": "somewhere"}, "data": {"train": ["rows.jsonl"]}}
    for section, value in YAML(typ="safe").load(text).items():
        whole[section] = {**whole.get(section, {}), **value} if isinstance(value, dict) else value
    build(whole, where="a page")


@pytest.mark.parametrize("code", blocks("python"))
def test_python_compiles(code: str) -> None:
    compile(code, "a page", "exec")


def test_the_formats_of_the_data_guide_are_detected_from_their_rows() -> None:
    text = (ROOT / "docs/guides/data.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\{.*?\})` \|", text, re.MULTILINE)
    assert {name for name, _ in rows} == set(Format.__args__)  # type: ignore[attr-defined]
    for name, row in rows:
        assert detect([json.loads(row)], Columns()).format == name


def test_the_tutorials_file_is_what_the_tutorial_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/tutorials/own-data.md").read_text(encoding="utf-8")
    script = next(match[2] for match in FENCE.finditer(text) if match[1] == "python" and "tickets.csv" in match[2])
    exec(compile(script, "tutorial", "exec"), {})
    with Path("tickets.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 31
    tree = override(
        {"model": {"source": "any"}, "data": {"train": ["tickets.csv"]}},
        ["data.columns.prompt=Customer wrote", "data.columns.completion=We replied", "data.on_bad_row=drop"],
    )
    loaded = load_examples(build(tree, where="tutorial").data, tmp_path / "data")
    assert [int((loaded.sides == side).sum()) for side in range(3)] == [22, 3, 5]
    assert [finding.examples for finding in loaded.findings if finding.rule == "bad_row"] == [("tickets.csv:32",)]


def test_recipes_that_a_page_links_load() -> None:
    linked = {m for page in PAGES for m in re.findall(r"recipes/([\w-]+\.yaml)", page.read_text(encoding="utf-8"))}
    assert linked >= {path.name for path in (ROOT / "recipes").glob("*.yaml")}, "README names every recipe"
    for name in linked:
        load(ROOT / "recipes" / name)
