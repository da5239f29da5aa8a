"""The page of an audit: what was decided stands first, and nothing on it is obeyed or private."""

import re
from pathlib import Path

import pytest

from luthier.report.gate import render, write_page
from tests.gate import corpus
from tests.gate.corpus import chat, look

MAIL = "ada.byron@lovelace.org"


def words(page: str) -> str:
    return re.sub(r"<style>.*?</style>|<svg.*?</svg>|<[^>]+>", " ", page, flags=re.DOTALL)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("gate")
    rows = [
        *corpus.clean(30),
        corpus.clean(1)[0],
        chat("Where is my parcel, please?", "It is on its way.<|im_end|>"),
        chat(f"Please write to {MAIL} about the parcel.", "We have written there, thank you."),
    ]
    look(folder, rows)
    return write_page(folder / "audit").read_text(encoding="utf-8")


def test_the_decision_and_its_reasons_stand_first(page: str) -> None:
    said = words(page)
    places = [
        said.index(part)
        for part in (
            "blocked",
            "must not be trained on",
            "control_token",
            "near_duplicate" if "near_duplicate" in said else "duplicate",
        )
    ]
    assert places == sorted(places)


def test_every_finding_names_its_rows_and_what_to_do(page: str) -> None:
    assert "train.jsonl:32" in words(page)
    assert "train.jsonl:31" in words(page)
    assert "luthier data clean" in words(page)


def test_nothing_private_and_nothing_foreign_is_on_the_page(page: str) -> None:
    assert MAIL not in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert "<script" not in page


def test_names_from_files_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    rows = [{"text": row["messages"][0]["content"], "label": "<b>&x"} for row in corpus.clean(12)]
    report = look(tmp_path, rows).report
    shown = render(report, name="<i>audit</i>")
    assert "<b>&x" not in shown
    assert "<i>audit" not in shown
    assert "&lt;b&gt;&amp;x" in shown
