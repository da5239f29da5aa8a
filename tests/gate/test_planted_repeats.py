"""What stands twice or against itself in real data: planted, and of their own."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gate_faults import banking77, fits, found, gsm8k, mts_dialog, score
from benchmarks.gate_faults_repeats import AIMED
from luthier.gate import duplicates, leakage, noise
from luthier.gate.rows import Row
from tests.gate.stored import hits

pytestmark = pytest.mark.shared_data


@pytest.mark.parametrize("fault", [fault for fault in AIMED if fits(fault, "gsm8k")])
def test_planted_faults_are_found(fault: str, shared_data: Path) -> None:
    seen = score(fault, gsm8k(shared_data)[:1000], 0.05)
    assert seen is not None
    assert seen.recall >= 0.9
    assert seen.precision >= 0.9


def test_flipped_labels_are_found(shared_data: Path) -> None:
    rows = banking77(shared_data)
    some = sorted({row.labels for row in rows})[:20]
    seen = score("label_noise", [row for row in rows if row.labels in some], 0.04)
    assert seen is not None
    assert seen.recall >= 0.9
    assert seen.precision >= 0.9


def _plain(row: Row) -> str:
    """Without letter case and whatever is neither letter nor digit: how the data set's own repeats were counted."""
    return " ".join(re.sub(r"[^\w\s]", " ", row.prompt.lower()).split())


def test_the_leaks_and_repeats_of_banking77(shared_data: Path, tmp_path: Path) -> None:
    train = banking77(shared_data)
    test = [replace(row, id=f"t:{row.line}", side="test") for row in banking77(shared_data, "test")]
    first: dict[str, Row] = {}
    again = [row for row in train if first.setdefault(_plain(row), row) is not row]
    leaked = [row for row in test if _plain(row) in first]
    assert (len(again), len(leaked)) == (31, 25)
    seen = hits(tmp_path, [*train, *test], leakage.look)
    assert {row.id for row in leaked} <= {hit.other for hit in seen if hit.rule == "leak"}
    every = [*hits(tmp_path, train, duplicates.look), *hits(tmp_path, train, noise.look)]
    named = {row for hit in every for row in (hit.row, hit.other)}
    assert {row.id for row in again} <= named


def test_back_translated_pairs_of_mts_dialog(shared_data: Path, tmp_path: Path) -> None:
    rows = mts_dialog(shared_data)
    name = "MTS-Dialog-Augmented-TrainingSet-1-En-FR-EN-2402-Pairs.csv"
    augmented = mts_dialog(shared_data, name)[len(rows) :]
    assert len(augmented) == len(rows) == 1201
    held = [replace(row, id=f"b:{number}", side="test") for number, row in enumerate(augmented, 1)]
    named = {(hit.row, hit.other) for hit in hits(tmp_path, [*rows, *held], leakage.look)}
    assert len({row for row, _ in named}) >= 0.98 * len(rows)
    assert sum((row.id, f"b:{row.line}") in named for row in rows) >= 0.98 * len(rows)


def test_nothing_is_planted_and_nothing_found(shared_data: Path) -> None:
    rows = gsm8k(shared_data)[:500]
    assert found(rows, "near_duplicate") == found(rows, "contradiction") == set()
