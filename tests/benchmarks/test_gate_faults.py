"""The planters of private data: values that are what they claim to be, and what looks alike beside them."""

import pytest

from benchmarks import gate_faults, gate_faults_private
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
