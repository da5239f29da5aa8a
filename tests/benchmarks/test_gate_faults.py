"""Planted private data is what it claims to be, and the dated page says what every fault came to."""

import math
from pathlib import Path

import pytest

from benchmarks import gate_faults, gate_faults_page, gate_faults_private
from benchmarks.gate_faults_page import Line
from luthier.gate.rows import Field, Row

ROWS = [
    Row(f"a:{n}", str(n), "a", n, "train", (Field("text", "text", f"How do I change card {n}? Tell me."),), "", "")
    for n in range(60)
]


def test_planted_values_are_found_and_what_looks_alike_is_not() -> None:
    pytest.importorskip("faker")
    for fault in ("iban", "uk_nhs", "it_fiscal_code/no word", "secret/service key"):
        found = gate_faults.score(fault, ROWS, 0.3)
        assert found is not None
        assert (found.planted, found.precision, found.before) == (18, 1.0, 0)
        assert found.recall >= 0.95


def test_a_seed_plants_the_same_again_and_changes_as_many_rows_more() -> None:
    pytest.importorskip("faker")
    first, again, other = (gate_faults_private.FAULTS["phone"](ROWS, 0.1, seed) for seed in (7, 7, 8))
    assert first == again
    assert first.rows != other.rows
    assert sum(a != b for a, b in zip(ROWS, first.rows, strict=True)) == 2 * len(first.touched)


def test_the_page_names_the_lowest_figures_and_leaves_out_what_is_not_aimed_at() -> None:
    lines = [
        Line("leak", "gsm8k", 0.02, 60, 1.0, 1.0, 0),
        Line("leak", "zava", 0.02, 3, 0.667, 1.0, 0),
        Line("html", "gsm8k", 0.02, 60, 0.95, 0.9, 1),
        Line("uk_nhs/no word", "gsm8k", 0.02, 60, 0.0, math.nan, 0),
    ]
    here = {"processor": "P", "cores": 2}
    text = gate_faults_page.page(lines, aimed={"leak", "html"}, here=here, busy=False, minutes=None)
    assert "| leak | 0.667 | zava, 0.02 (3 planted) | 1.000 | gsm8k, 0.02 (60 planted) | no |" in text
    assert "1 of 2 rules reach" in text
    assert "| uk_nhs/no word | 0.000 | no word, gsm8k, 0.02 (60 planted) | – |" in text
    assert "| uk_nhs/no word | gsm8k | 0.02 | 60 | 0.000 | – | 0 |" in text
    assert "Not finished" in text


@pytest.mark.shared_data
def test_a_run_leaves_one_finished_page(shared_data: Path, tmp_path: Path) -> None:
    told = ["--data", str(shared_data), "--rules", "empty_answer", "--sets", "mts-dialog", "--rates", "0.02"]
    gate_faults.main([*told, "--out", str(tmp_path)])
    (page,) = tmp_path.iterdir()
    assert page.name.endswith("-gate-faults.md")
    assert "1 of 1 rules reach" in page.read_text()
