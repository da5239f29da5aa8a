"""Planted identifiers are found wherever they stand; wrong check digits are never called right; prose is left alone."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.gate.policy import Policy
from luthier.gate.private import LEAST, RULES, find, look
from luthier.gate.rows import Field, Row

from .planted import CARRIERS, PLANTS, Plant, drawn, prose, split

SAMPLES = 40


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier.__name__)
@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.kind} {plant.form}")
def test_planted_identifiers_are_found(plant: Plant, carrier: Callable[[str, str], str]) -> None:
    if carrier is split and plant.check is None and plant.form.isalnum():
        pytest.skip("what has neither a check nor a separator is not put together again")
    rng = random.Random(0)
    missed = 0
    for _ in range(SAMPLES):
        text = carrier(plant.word, drawn(plant, rng))
        spans = [span for span in find(text) if span.kind == plant.kind]
        missed += not any(span.checked or plant.check is None for span in spans)
    assert missed == 0


@pytest.mark.parametrize("carrier", CARRIERS, ids=lambda carrier: carrier.__name__)
@pytest.mark.parametrize(
    "plant", [plant for plant in PLANTS if plant.check], ids=lambda plant: f"{plant.kind} {plant.form}"
)
def test_a_wrong_check_digit_is_never_called_right(plant: Plant, carrier: Callable[[str, str], str]) -> None:
    rng = random.Random(1)
    for _ in range(SAMPLES):
        text = carrier(plant.word, drawn(plant, rng, right=False))
        assert not [span for span in find(text) if span.kind == plant.kind and span.checked]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.kind} {plant.form}")
def test_the_span_holds_the_identifier_and_nothing_else(plant: Plant) -> None:
    value = drawn(plant, random.Random(2))
    text = prose(plant.word, value)
    assert value in [text[span.start : span.end] for span in find(text) if span.kind == plant.kind]


BARE = ("us_npi", "us_routing", "uk_nhs", "nl_bsn", "ca_sin", "au_tfn", "de_tax_id", "pl_pesel", "uk_utr")


@pytest.mark.parametrize("kind", BARE)
def test_a_check_digit_alone_decides_nothing(kind: str) -> None:
    plant = next(plant for plant in PLANTS if plant.kind == kind)
    value = drawn(plant, random.Random(3)).replace(" ", "")
    assert kind not in [span.kind for span in find(f"The parcel {value} left yesterday.")]
    assert kind in [span.kind for span in find(prose(plant.word, value))]


ORDINARY = [
    "The meeting is on 2024-01-31 at 10:30, or on 31.01.2024, or 1/31/2024.",
    "It costs $1,250,000.00, or €12.500,99, or 1 250 000 EUR.",
    "Order 4471993 and ticket #20481 were sent on March 3, tracking 1Z999AA10123456784.",
    "Rows 1 2 3 4 5 6 7 8 and 10 20 30 40; pi is 3.14159265, version 2.13.0.",
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May. 48+24 = <<48+24=72>>72 altogether.",
    "I am 34 years old and have waited for 90 minutes, 100 days and 95 years.",
    "Spring 2024, Chapter 3, Unit 4, Room 12: see Figure 7 and Table 2.",
    "std::vector<int> a::b at 12:30:45; commit 3f9a2c7d and issue 10234.",
    "The token is passed to the function, the key is under the mat and the password is required.",
    "password: ********, api_key = YOUR_API_KEY, secret = ${SECRET}, token: <token>",
    "This is Great. I am Happy. Dear Customer, Hi there, Hello World. Thanks, The Support Team",
    "See https://example.com/a?page=2 or http://localhost:8000.",
    "Born to run, the album, came out in 1975.",
    "The address changed. Order 1234 of Monday 12 is late.",
    "Update to version 4.18.22.1, firmware: 9.30.2.11; section 3.2.14.4 and Kapitel 3.2.14.5 say why.",
    "Windows 11, Main 12 and iPhone 14 Pro; the 2019 US Open, Spring 22.",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_holds_nothing(text: str) -> None:
    kinds = {kind: least for kind, least in LEAST.items() if kind != "date"}
    assert [(span.kind, text[span.start : span.end]) for span in find(text, least=kinds)] == []


PRIVATE = [
    ("email", "Write to {} today.", "jo.bloggs+shop@mail.example.co.uk"),
    ("email", "<{}>", "müller@firma.de"),
    ("phone", "Call {} today.", "+44 20 7946 0958"),
    ("phone", "Call {} today.", "(030) 1234567"),
    ("phone", "My number: {}", "+49 (0)30 / 123 45 67"),
    ("phone", "Ring me on {}.", "06 12 34 56 78"),
    ("phone", "Fax {}, please", "345-899-3560x4587"),
    ("phone", "{} office", "416 60 039"),
    ("phone", "Mijn telefoonnummer is {}.", "0592064277"),
    ("phone", "Meine Telefonnummer ist {}.", "(02472) 01986"),
    ("uk_nhs", "The patient, NHS {}, was seen.", "943 476 5919"),
    ("nl_bsn", "BSN {}.", "111 222 333"),
    ("card_number", "Use {} for it.", "2223-0000-4841-0010"),
    ("url", "It is at {}.", "https://jo-bloggs.org/cv?x=1"),
    ("ip_address", "It came from {}.", "93.184.216.34"),
    ("ip_address", "It came from {}.", "2a00:1450:4001:81b::200e"),
    ("mac_address", "The card is {}.", "3c:22:fb:9a:01:7e"),
    ("postal_address", "I live at {} now.", "12 Main Street, Springfield, IL 62704"),
    ("postal_address", "Meine Anschrift: {}", "Hauptstraße 12, 10115 Berlin"),
    ("postal_address", "Adresse: {}.", "14 rue de la Paix, 75002 Paris"),
    ("postal_address", "Send it to {}.", "P.O. Box 255"),
    ("postal_address", "Use {} from now on.", "14, rue Marc Leblanc\n65725 Caron"),
    ("postal_address", "Use {} from now on.", "Plaza Salomé Adadia 33\nGirona, 21555"),
    ("postal_address", "It is {}.", "Olivia-Stroh-Straße 35/98, 35741 Eilenburg"),
    ("postal_address", "It is {}.", "Winckelpad 904\n5847 XS Loosdrecht"),
    ("postal_address", "It is {}.", "South Michelleberg, MP 16887"),
    ("postal_address", "It is {}.", "SW1A 1AA"),
    ("bic", "The BIC is {}.", "DEUTDEFF500"),
    ("bank_account", "Account number {}, please.", "12345678"),
    ("crypto_address", "Send it to {}.", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
    ("crypto_address", "Send it to {}.", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
    ("passport", "My passport number is {}.", "C01X00T47"),
    ("driving_licence", "My driver's license number is {}.", "F162823540116"),
    ("date_of_birth", "Patient, DOB {}, was seen.", "03/04/1956"),
    ("date_of_birth", "She was born on {}.", "March 4th, 1956"),
    ("date_of_birth", "Geboren am {} in Ulm.", "4. März 1956"),
    ("age", "She is a {} year old woman.", "93"),
    ("age", "He was seen, aged {}.", "101"),
    ("medical_record", "MRN: {}", "00123456"),
    ("health_plan", "Medicare {}.", "1EG4-TE5-MK73"),
    ("health_plan", "Member ID: {}", "W123456789"),
    ("vehicle", "License plate {}.", "ABC 1234"),
    ("device", "Serial number: {}", "C02XL0GTJGH5"),
    ("person_name", "My name is {}.", "Zsófia Kovács"),
    ("person_name", "Mr. {} called.", "O'Brien"),
    ("person_name", "From: {} <x@mail.org>", "Ann van der Berg"),
    ("person_name", "Dear {},", "Ngozi"),
    ("person_name", "All the best.\n\nKind regards,\n{}", "Ngozi Okafor"),
    ("person_name", "We spoke with {} about it.", "Emily Stone"),
]


@pytest.mark.parametrize(("kind", "text", "value"), PRIVATE, ids=lambda value: value)
def test_what_has_no_check_digit_is_found_by_its_form_and_words(kind: str, text: str, value: str) -> None:
    text = text.format(value)
    assert (kind, value) in [(span.kind, text[span.start : span.end]) for span in find(text)]


def test_a_longer_validated_span_wins() -> None:
    text = "My card is 4111 1111 1111 1111, call me."
    assert [span.kind for span in find(text)] == ["card_number"]


@pytest.mark.parametrize(
    "text", ["4111\u200b1111\u00ad1111\u20601111", "4111\u00a01111\u00a01111\u00a01111", "٤١١١١١١١١١١١١١١١"]
)
def test_odd_spaces_and_digits_change_nothing(text: str) -> None:
    (span,) = find(f"My card: {text}.")
    assert span.kind == "card_number"
    assert f"My card: {text}."[span.start : span.end] == text


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet=st.characters(codec="utf-8"), max_size=80)
    | st.text(alphabet='\\u0041n"@.:-/ 0123456789AZaz', max_size=60)
)
def test_spans_lie_in_the_text_in_order_and_apart(text: str) -> None:
    at = 0
    for span in find(text):
        assert at <= span.start < span.end <= len(text)
        assert span.kind in RULES
        assert LEAST[span.kind] <= span.confidence <= 1
        at = span.end


HOSTILE = [
    "4",
    "4 ",
    "1-",
    "a@",
    "@a.",
    "a.",
    "1.",
    ":",
    "Mr. ",
    "Ann ",
    "12 Main St ",
    "\\u0041",
    "\\n1",
    "DE89 ",
    "https://",
    "key=",
    "eyJ",
]


@pytest.mark.parametrize("unit", HOSTILE)
def test_a_hostile_text_takes_linear_time(unit: str) -> None:
    # Quadratic work on 300,000 characters would outlast the time limit of the test.
    find(unit * (300_000 // len(unit)))


def test_hits_name_the_field_and_hold_nothing_private() -> None:
    fields = (
        Field("prompt", "user", "My card is 4111 1111 1111 1111."),
        Field("answer", "assistant", "Thanks, jo@mail.org!"),
    )
    row = Row("0a1b2c3d:7", "", "a.jsonl", 7, "train", fields, fields[0].text, fields[1].text)
    policy = Policy()
    hits = list(look(row, policy))
    assert [(hit.rule, hit.path, hit.row) for hit in hits] == [
        ("card_number", "prompt", row.id),
        ("email", "answer", row.id),
    ]
    assert fields[0].text[hits[0].start : hits[0].end] == "4111 1111 1111 1111"
    assert not any("4111" in hit.seen or "mail.org" in hit.seen for hit in hits)


def test_a_policy_decides_what_is_looked_for() -> None:
    fields = (Field("text", "text", "Card 4111 1111 1111 1111, jo@mail.org, aged 71."),)
    row = Row("0a1b2c3d:7", "", "a.jsonl", 7, "train", fields, fields[0].text, "")
    policy = Policy.model_validate({"rules": {"email": "off", "age": {"above": 65}}})
    assert [hit.rule for hit in look(row, policy)] == ["card_number", "age"]
