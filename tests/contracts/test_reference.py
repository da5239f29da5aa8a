"""The reference pages hold every verb, every key and every exit code."""

from __future__ import annotations

from luthier.cli.app import VERBS
from luthier.cli.reference import pages
from luthier.recipe import Recipe
from luthier.recipe.schema import fields, sections


def test_every_verb_and_key_has_its_line() -> None:
    written = pages()
    for verb in VERBS:
        assert f"## luthier {verb}\n" in written["cli.md"]
    for path, part in sections(Recipe):
        for field in fields(part):
            if field.name != "kind":
                assert f"| `{path}.{field.name}` |".replace("`.", "`") in written["recipe.md"]


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    for name, text in pages().items():
        width = 0
        for line in text.splitlines():
            cells = line.replace("\\|", "").count("|")
            width = cells if line.startswith("|") and not width else width if line.startswith("|") else 0
            assert not line.startswith("|") or cells == width, f"{name}: {line}"
