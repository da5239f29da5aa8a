"""Splits: rows decide, not their order or number; no prompt on two sides; shares as asked; every side has rows."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.split import (
    TEST,
    TRAIN,
    VALIDATION,
    Shares,
    assign,
    group_number,
    key_number,
    leaks,
    moment,
    shares,
)
from luthier.errors import DataError
from luthier.recipe import Split

TENTHS = Shares(0.1, 0.1)


def keys(*names: object) -> np.ndarray:  # type: ignore[type-arg]
    digests = [hashlib.blake2b(str(name).encode(), digest_size=16).hexdigest() for name in names]
    return np.array([key_number(digest) for digest in digests], dtype=np.uint64)


def test_content_depends_on_the_row_alone() -> None:
    many = keys(*range(3000))
    sides = assign(many, TENTHS)
    some = np.arange(0, 3000, 7)
    np.testing.assert_array_equal(assign(many[some], TENTHS), sides[some])
    np.testing.assert_array_equal(assign(many[::-1], TENTHS), sides[::-1])
    np.testing.assert_array_equal(assign(np.concatenate([many, many]), TENTHS), np.concatenate([sides, sides]))


def test_content_comes_close_to_the_shares() -> None:
    sides = assign(keys(*range(20_000)), Shares(0.05, 0.2))
    counts = np.bincount(sides, minlength=3) / len(sides)
    np.testing.assert_allclose(counts, [0.75, 0.05, 0.2], atol=0.01)


def test_a_larger_share_of_validation_moves_nothing_in_test() -> None:
    many = keys(*range(2000))
    np.testing.assert_array_equal(assign(many, Shares(0.1, 0.1)) == TEST, assign(many, Shares(0.4, 0.1)) == TEST)


@given(st.lists(st.integers(0, 40), min_size=3, max_size=60), st.floats(0, 0.45), st.floats(0, 0.45))
def test_no_key_stands_on_two_sides_and_no_side_is_empty(names: list[int], validation: float, test: float) -> None:
    all_keys = keys(*names)
    asked = Shares(validation, test)
    if len(set(names)) < 1 + (validation > 0) + (test > 0):
        with pytest.raises(DataError, match="too few rows"):
            assign(all_keys, asked)
        return
    for sides in (assign(all_keys, asked), assign(all_keys, asked, labels_N=np.array([n % 3 for n in names]))):
        assert len({(name, side) for name, side in zip(names, sides.tolist(), strict=True)}) == len(set(names))
        assert (sides == TRAIN).any()
        assert (sides == VALIDATION).any() == (validation > 0)
        assert (sides == TEST).any() == (test > 0)


def test_a_share_of_nothing_holds_nothing_back() -> None:
    assert (assign(keys(*range(500)), Shares(0, 0)) == TRAIN).all()
    assert (assign(keys("only"), Shares(0, 0)) == TRAIN).all()


def test_given_files_take_the_place_of_shares() -> None:
    assert shares(Split(), validation_given=True) == (0.0, 0.1)
    assert shares(Split(), test_given=True) == (0.1, 0.0)


@given(st.permutations(list(range(60))))
@settings(max_examples=20)
def test_label_splits_do_not_depend_on_order_or_repetition(order: list[int]) -> None:
    all_keys, labels = keys(*range(60)), np.arange(60) % 4
    sides = assign(all_keys, Shares(0.2, 0.2), labels_N=labels)
    again = np.array([*order, *order[:30]])
    np.testing.assert_array_equal(assign(all_keys[again], Shares(0.2, 0.2), labels_N=labels[again]), sides[again])


def test_each_label_is_divided_in_the_same_shares_and_keeps_a_row_to_train_on() -> None:
    counts = {0: 100, 1: 20, 2: 5, 3: 3, 4: 1}
    labels = np.repeat(list(counts), list(counts.values()))
    sides = assign(keys(*range(len(labels))), TENTHS, labels_N=labels)
    table = {label: np.bincount(sides[labels == label], minlength=3).tolist() for label in counts}
    assert table == {0: [80, 10, 10], 1: [16, 2, 2], 2: [3, 1, 1], 3: [3, 0, 0], 4: [1, 0, 0]}
    half = assign(keys(*range(len(labels))), Shares(0.45, 0.45), labels_N=labels)
    assert all((half[labels == label] == TRAIN).any() for label in counts)


def test_a_text_with_two_labels_stays_on_one_side() -> None:
    names = [*range(50), *range(50)]
    labels = np.array([1] * 50 + [0] * 50)
    sides = assign(keys(*names), Shares(0.2, 0.2), labels_N=labels)
    np.testing.assert_array_equal(sides[:50], sides[50:])


def test_rare_labels_only_still_give_every_side_a_row() -> None:
    sides = assign(keys(*range(30)), TENTHS, labels_N=np.arange(30))
    assert np.bincount(sides, minlength=3).tolist() == [28, 1, 1]


def test_groups_stay_together() -> None:
    customers = np.array([group_number(n % 37) for n in range(800)], dtype=np.uint64)
    sides = assign(keys(*range(800)), Shares(0.2, 0.2), groups_N=customers)
    assert all(len(set(sides[customers == customer].tolist())) == 1 for customer in set(customers.tolist()))
    assert set(sides.tolist()) == {TRAIN, VALIDATION, TEST}
    assert group_number(7) == group_number("7") == group_number(7.0) == group_number(" 7 ")


def test_the_newest_rows_are_held_back_and_a_moment_is_not_divided() -> None:
    times = np.random.default_rng(0).permutation(np.repeat(np.arange(100.0), 3))
    sides = assign(keys(*range(300)), Shares(0.2, 0.1), times_N=times)
    assert sorted(set(times[sides == TEST])) == list(range(90, 100))
    assert sorted(set(times[sides == VALIDATION])) == list(range(70, 90))
    assert times[sides == TRAIN].max() == 69


def test_time_keeps_a_moment_for_every_side() -> None:
    sides = assign(keys(*range(12)), TENTHS, times_N=np.array([1.0] * 10 + [2.0, 3.0]))
    assert sides.tolist() == [TRAIN] * 10 + [VALIDATION, TEST]
    with pytest.raises(DataError, match="3 different moments"):
        assign(keys(*range(9)), TENTHS, times_N=np.array([1.0] * 5 + [2.0] * 4))


@pytest.mark.parametrize(
    ("earlier", "later"),
    [
        ("2025-01-31", "2025-02-01"),
        ("2025-01-31T10:00:00Z", "2025-01-31T10:00:01+00:00"),
        ("2025-01-31T12:00:00+02:00", "2025-01-31T10:30:00"),
        (1, 1.5),
        ("9", "10"),
    ],
)
def test_times_are_put_in_order(earlier: object, later: object) -> None:
    first, second = moment(earlier), moment(later)
    assert first is not None
    assert second is not None
    assert first < second


@pytest.mark.parametrize("value", ["", "yesterday", "31.01.2025", None, True, "nan", float("inf"), []])
def test_what_is_no_time(value: object) -> None:
    assert moment(value) is None


def test_leaks_are_rows_whose_key_is_held_back() -> None:
    assert leaks(keys("a", "b", "a", "c"), keys("a", "x")).tolist() == [True, False, True, False]
