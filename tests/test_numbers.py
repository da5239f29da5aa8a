"""Numbers for people: three digits, thin spaces, and never more precision than there is."""

import pytest

from luthier.numbers import decimals, duration, fixed, memory, number, probability, short, signed


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1234567, "1 234 567"),
        (999, "999"),
        (1234.5, "1 234"),
        (0.04567, "0.0457"),
        (12.345, "12.3"),
        (0.9999, "1.00"),
        (0, "0"),
        (0.0, "0"),
        (-3.14159, "−3.14"),
        (0.0000123, "1.23 × 10⁻⁵"),
        (None, "–"),
        (float("nan"), "no number"),
    ],
)
def test_number(value: float | None, written: str) -> None:
    assert number(value).replace("\u202f", " ") == written


def test_settings_have_no_zeros_at_the_end() -> None:
    assert [short(2e-4), short(3.0), short(0.05), short(100)] == ["0.0002", "3", "0.05", "100"]


def test_gains_have_a_sign() -> None:
    assert [signed(0.5), signed(-0.5), signed(0.0), signed(0.0001, 2)] == ["+0.500", "−0.500", "0", "0.00"]


def test_a_row_of_numbers_has_two_digits_of_its_uncertainty() -> None:
    digits = decimals(0.21345, 0.41111, half=0.0384)
    assert digits == 3
    assert fixed(0.21345, digits) == "0.213"
    assert decimals(1843.0, 1700.0, half=120.0) == 0
    assert decimals(0.5, None, half=None) == 3


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.42, "0.420 s"), (42, "42 s"), (59.7, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (None, "–")],
)
def test_duration(seconds: float | None, written: str) -> None:
    assert duration(seconds).replace("\u202f", " ") == written


def test_memory_and_p() -> None:
    assert memory(3_221_225_472).replace("\u202f", " ") == "3.22 GB"
    assert [probability(0.0), probability(0.04), probability(None)] == ["< 0.001", "0.0400", "–"]
