"""Private data of a known form is masked; prose, dates, prices and numbers stay as they are."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.masking import mask

PRIVATE = [
    ("jo.bloggs+shop@mail.example.co.uk", "⟨e-mail⟩"),
    ("+44 20 7946 0958", "⟨phone⟩"),
    ("(030) 1234567", "⟨phone⟩"),
    ("+49 (0)30 / 123 45 67", "⟨phone⟩"),
    ("06 12 34 56 78", "⟨phone⟩"),
    ("555-123-4567", "⟨phone⟩"),
    ("+1 (555) 123-4567", "⟨phone⟩"),
    ("5551234567", "⟨phone⟩"),
    ("4111 1111 1111 1111", "⟨card-number⟩"),
    ("5500-0000-0000-0004", "⟨card-number⟩"),
    ("DE89 3704 0044 0532 0130 00", "⟨IBAN⟩"),
    ("GB82WEST12345698765432", "⟨IBAN⟩"),
    ("192.168.10.254", "⟨IP-address⟩"),
    ("2001:db8::8a2e:370:7334", "⟨IP-address⟩"),
    ("fe80:0:0:0:202:b3ff:fe1e:8329", "⟨IP-address⟩"),
    ("sk-abcdefghijklmnopqrstuvwx", "⟨secret⟩"),
    ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "⟨secret⟩"),
    ("AKIAIOSFODNN7EXAMPLE", "⟨secret⟩"),
    ("https://jo:hunter2@db.example.com/orders", "⟨URL-with-password⟩"),
    ("https://example.com/f?x=1&api_key=abc123", "⟨URL-with-password⟩"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc=\n-----END RSA PRIVATE KEY-----", "⟨private-key⟩"),
]
ORDINARY = [
    "The meeting is on 2024-01-31 at 10:30, or on 31.01.2024, or 1/31/2024.",
    "It costs $1,250,000.00, or €12.500,99, or 1 250 000 EUR, or 1 250 000,00 in all.",
    "From 2019-2024 and in 2021, 2022 2023.",
    "Pi is 3.14159265 and e is 2,718281828.",
    "1,234,567 rows and 1.234.567 Zeilen.",
    "Rows 1 2 3 4 5 6 7 8 and 10 20 30 40.",
    "std::vector<int> a::b and 12:30:45, version 2.13.0.",
    "Ask the shop @ noon: is 5/8 > 1/2? Article §12(3) says no; see https://example.com/a?page=2.",
    "It opened in 1999. 2000 people came (1234 of them by bus).",
    "20240131 is a date as well.",
]


@pytest.mark.parametrize(("private", "kind"), PRIVATE)
def test_private_data_is_replaced_by_its_kind(private: str, kind: str) -> None:
    assert mask(private) == kind
    assert mask(f"Write to {private}, please.") == f"Write to {kind}, please."
    assert mask(f"({private})") == f"({kind})"


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert mask(text) == text


def test_a_cut_off_private_key_is_masked_to_the_end() -> None:
    assert mask("key: -----BEGIN PRIVATE KEY-----\nMIIEvQ") == "key: ⟨private-key⟩"


def test_a_long_number_that_is_no_card_is_still_masked() -> None:
    assert mask("order 4111 1111 1111 1112") == "order ⟨phone⟩"


def test_a_birth_number_is_not_taken_for_a_date() -> None:
    assert mask("19850115-1234") == "⟨phone⟩"


PIECES = st.one_of(
    st.sampled_from([private for private, _ in PRIVATE] + ORDINARY + ["⟨phone⟩", "⟨e-mail⟩"]),
    st.text(alphabet="0123456789 .,-/+()@:ab⟨⟩$€", max_size=12),
    st.text(max_size=6),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=8), st.sampled_from(["", " ", ",", "\n"]))
def test_masking_twice_changes_nothing_more(pieces: list[str], between: str) -> None:
    masked = mask(between.join(pieces))
    assert mask(masked) == masked


@given(st.lists(st.text(alphabet=st.characters(categories=("Ll",)), min_size=1, max_size=12), max_size=20))
def test_words_are_unchanged(words: list[str]) -> None:
    text = " ".join(words) + "."
    assert mask(text) == text


@given(st.dates())
def test_dates_are_unchanged(date: object) -> None:
    text = f"On {date}."
    assert mask(text) == text or int(str(date)[:4]) not in range(1500, 2100)


@given(st.integers(0, 10**9), st.integers(0, 99), st.sampled_from(["€{}", "{} EUR", "$ {}", "{} £"]))
def test_prices_are_unchanged(whole: int, cents: int, form: str) -> None:
    text = f"It costs {form.format(f'{whole:,}.{cents:02}')} today."
    assert mask(text) == text


@pytest.mark.parametrize("unit", ["a.", "1 ", "x@", "https://", "aa:", "eyJ", "12-", "AB12 ", "$1,", "-----BEGIN "])
def test_a_hostile_text_takes_no_more_than_linear_time(unit: str) -> None:
    text = unit * (400_000 // len(unit))
    began = time.perf_counter()
    mask(text)
    assert time.perf_counter() - began < 10
