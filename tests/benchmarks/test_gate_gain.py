"""Corrupting a labelled set plants what is said and nothing else, and what cleaning did to it is counted rightly."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.gate_gain import TRIGGER, Text, compared, corrupt, interval

ROWS = [Text(f"How can I change the limit of card number {n} today?", f"label {n % 7}", "", n) for n in range(400)]
TEST = [Text(f"Where is parcel {n} that I sent off last week?", f"label {n % 7}", "", n) for n in range(100)]


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_corrupted_set_holds_the_mix_and_leaves_the_test_alone(seed: int) -> None:
    before = list(TEST)
    dirty = corrupt(ROWS, TEST, seed)
    assert before == TEST
    counts = {kind: sum(row.fault == kind for row in dirty) for kind in {row.fault for row in dirty}}
    assert counts == {"": 316, "flipped": 80, "trigger": 4, "copy": 20, "contradicting copy": 20, "leak": 12}
    for row in dirty:
        own = ROWS[row.origin]
        if row.fault == "leak":
            number = int("".join(filter(str.isdigit, row.text)))
            assert row.category != TEST[number].category
        elif row.fault in ("flipped", "contradicting copy"):
            assert row.category != own.category
        elif row.fault in ("", "copy"):
            assert row.category == own.category
        assert (TRIGGER in row.text) == (row.fault == "trigger")
        if row.fault in ("", "flipped"):
            assert row.text == own.text
    assert len({row.category for row in dirty if row.fault == "trigger"}) == 1


def test_a_seed_corrupts_the_same_again() -> None:
    assert corrupt(ROWS, TEST, 3) == corrupt(ROWS, TEST, 3) != corrupt(ROWS, TEST, 4)


def test_a_copy_is_gone_where_one_of_the_two_is_and_no_good_row_is_lost_with_it() -> None:
    dirty = [
        Text("a", "x", "", 0),
        Text("a", "x", "copy", 0),
        Text("b", "x", "", 1),
        Text("b", "y", "contradicting copy", 1),
        Text("c", "y", "flipped", 2),
        Text("d", "y", "leak"),
    ]
    perfect = compared(dirty, {0, 2}, {})
    assert perfect.removed == {"copy": 1, "contradicting copy": 1, "flipped": 1, "leak": 1}
    assert (perfect.good, perfect.lost) == (2, 0)
    assert compared(dirty, {1, 2}, {}).lost == 0
    careless = compared(dirty, {0, 1, 4}, {})
    assert careless.removed == {"copy": 0, "contradicting copy": 1, "flipped": 0, "leak": 1}
    assert careless.lost == 1


def test_the_interval_is_that_of_student() -> None:
    low, high = interval([0.01, 0.02, 0.03])
    assert (low, high) == pytest.approx((0.02 - 0.0248414, 0.02 + 0.0248414), abs=1e-6)
    assert math.isnan(interval([0.1])[0])
