"""Redaction and pseudonyms: nothing private is left, twice is once, JSON stays JSON, one person stays one person."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import InputError
from luthier.gate.private import RULES, checks, find
from luthier.gate.private.profiles import SAFE_HARBOR, covered
from luthier.gate.private.replace import load_key, pseudonym, pseudonymise, redact
from luthier.gate.private.reserved import pseudonyms
from luthier.masking import luhn

from .planted import PLANTS, Plant, drawn, prose

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
VALUES = [drawn(plant, random.Random(5)) for plant in PLANTS] + [
    "jo@mail.org", "+44 20 7946 0958", "Mr. John Smith", "93.184.216.34", "2a00:1450:4001:81b::200e",
    "3c:22:fb:9a:01:7e",
    "12 Main Street, Springfield, IL 62704", "born on 4 March 1956", "password=hunter2x", "https://jo-bloggs.org/cv",
]  # fmt: skip
PIECES = st.one_of(
    st.sampled_from(VALUES),
    st.sampled_from([plant.word for plant in PLANTS]),
    st.text(max_size=8),
    st.text('0123 -."\\{}:', max_size=8),
)
TEXTS = st.builds(
    lambda pieces, between: between.join(pieces), st.lists(PIECES, max_size=8), st.sampled_from([" ", ", ", "\n"])
)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_replacing_twice_changes_nothing_more(text: str) -> None:
    once = redact(text, find(text))
    assert redact(once, find(once)) == once
    once = pseudonymise(text, find(text), key=KEY)
    assert pseudonymise(once, find(once), key=KEY) == once


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.kind} {plant.form}")
def test_what_was_replaced_is_gone_and_the_rest_is_clean(plant: Plant) -> None:
    value = drawn(plant, random.Random(6))
    text = prose(plant.word, value)
    for new in (redact(text, find(text)), pseudonymise(text, find(text), key=KEY)):
        assert value not in new
        assert find(new) == []
        assert new.startswith(f"Hello, my {plant.word} is ")
        assert new.endswith(". Could you have a look?")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.sampled_from([4111111111111111, -5500000000000004])
    | st.sampled_from([prose("card", value) for value in VALUES]) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["card", "phone", "ssn", "note"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.lists(JSON, max_size=3) | st.dictionaries(st.text(max_size=6), JSON, max_size=3),
    st.booleans(),
    st.sampled_from([None, 2]),
)
def test_json_stays_json(value: object, ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent)
    spans = find(text)
    json.loads(redact(text, spans))
    json.loads(pseudonymise(text, spans, key=KEY))


def test_numbers_of_json_become_strings_where_they_must() -> None:
    text = '{"card": -4111111111111111, "list": [5500000000000004]}'
    assert json.loads(redact(text, find(text))) == {"card": "⟨card-number⟩", "list": ["⟨card-number⟩"]}


def test_one_value_has_one_pseudonym_however_it_is_written() -> None:
    for kind, first, second in (
        ("card_number", "4111 1111 1111 1111", "4111-1111-1111-1111"),
        ("iban", "DE89 3704 0044 0532 0130 00", "de89370400440532013000"),
        ("email", "Jo@Mail.org", "jo@mail.org"),
        ("phone", "+44 (0)20 7946 0958", "0044 20 79460958"),
        ("us_ssn", "219-09-9999", "219099999"),
        ("card_number", "4111111111111111", "４１１１１１１１１１１１１１１１"),
    ):
        assert pseudonym(kind, first, key=KEY) == pseudonym(kind, second, key=KEY)
        assert pseudonym(kind, first, key=KEY) != pseudonym(kind, first, key=OTHER_KEY)


def test_a_surname_alone_is_the_same_person() -> None:
    text = "My name is Jane Austen. Mrs. Austen wrote to Mr. Jane. Dear Jane AUSTEN,"
    words = pseudonymise(text, find(text), key=KEY).split()
    first, last = words[3], words[4].strip(".")
    assert words == f"My name is {first} {last}. Mrs. {last} wrote to Mr. {first}. Dear {first} {last},".split()
    assert pseudonyms(f"{first} {last}")


def test_pseudonyms_are_of_their_kind_and_of_nobody() -> None:
    card = pseudonym("card_number", "4111111111111111", key=KEY)
    assert luhn(card)
    assert len(card) == 16
    assert checks.iban(pseudonym("iban", "DE89370400440532013000", key=KEY))
    assert pseudonym("iban", "DE89370400440532013000", key=KEY).startswith("DE")
    assert pseudonym("email", "jo@mail.org", key=KEY).endswith("@example.com")
    assert "-555-01" in pseudonym("phone", "+44 20 7946 0958", key=KEY)
    assert pseudonym("us_ssn", "219-09-9999", key=KEY).startswith("9")


@given(st.integers(0, 10**12))
def test_different_values_seldom_meet(number: int) -> None:
    names = {pseudonym("person_name", f"Ann{chr(97 + i)} {number}x", key=KEY) for i in range(20)}
    assert len(names) == 20


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    path = tmp_path / "keys" / "pseudonyms"
    key = load_key(path, outside=run)
    assert len(key) == 32
    assert load_key(path, outside=run) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_key_beside_the_data_or_no_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="beside the data"):
        load_key(tmp_path / "run" / "key", outside=tmp_path / "run")
    path = tmp_path / "key"
    path.write_text("hunter2")
    with pytest.raises(InputError, match="no key") as error:
        load_key(path, outside=tmp_path / "run")
    assert "hunter2" not in str(error.value)


def test_safe_harbor_lists_18_and_names_rules_that_exist() -> None:
    assert [identifier.number for identifier in SAFE_HARBOR] == list(range(1, 19))
    assert covered() <= set(RULES)
    assert all(identifier.unseen for identifier in SAFE_HARBOR if identifier.name != "IP addresses")
