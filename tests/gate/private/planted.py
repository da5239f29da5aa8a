"""Identifiers made up at random with right and with wrong check digits, and the texts that they are planted in."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import NamedTuple

from luthier.gate.private import checks

DIGITS = "0123456789"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Plant(NamedTuple):
    """How an identifier looks: 9 stands for a digit, ? for a letter, X for either; the rest is as it stands."""

    kind: str
    word: str
    form: str
    check: Callable[[str], bool] | None
    draws: str = ""
    """A pattern that the letters and digits must match, where the form alone allows too much."""


PLANTS = (
    Plant("card_number", "card number", "4999 9999 9999 9999", checks.card),
    Plant("card_number", "credit card", "5199999999999999", checks.card),
    Plant("card_number", "Amex card", "3499-999999-99999", checks.card),
    Plant("iban", "IBAN", "DE99 9999 9999 9999 9999 99", checks.iban),
    Plant("iban", "IBAN", "NL99ABNA9999999999", checks.iban),
    Plant("iban", "IBAN", "FR99 9999 9999 99XX XXXX XXXX X99", checks.iban),
    Plant("lei", "LEI", "5493XXXXXXXXXXXXXX99", checks.lei),
    Plant("isin", "ISIN", "US9999999999", checks.isin),
    Plant("us_routing", "routing number", "021999999", checks.us_routing),
    Plant("us_npi", "NPI", "1999999999", checks.us_npi),
    Plant("us_dea", "DEA", "AB9999999", checks.us_dea),
    Plant("us_ssn", "SSN", "219-09-9999", None, r"\d{3}(?!00)\d\d(?!0000)\d{4}"),
    Plant("us_ssn", "social security number", "219099999", None, r"\d{3}(?!00)\d\d(?!0000)\d{4}"),
    Plant("us_itin", "ITIN", "999-70-9999", None, r"9\d\d70\d{4}"),
    Plant("us_ein", "EIN", "12-9999999", None),
    Plant("uk_nino", "national insurance number", "AB 99 99 99 C", None),
    Plant("uk_nhs", "NHS number", "999 999 9999", checks.uk_nhs, r"(?!999)\d{10}"),
    Plant("uk_nhs", "NHS no", "4999999999", checks.uk_nhs),
    Plant("uk_utr", "UTR", "99999 99999", checks.uk_utr),
    Plant("de_tax_id", "Steuer-ID", "99 999 999 999", checks.de_tax_id, r"[1-9]\d{10}"),
    Plant("de_tax_id", "steuerliche IdNr", "99999999999", checks.de_tax_id, r"[1-9]\d{10}"),
    Plant("de_id_card", "Personalausweis", "L01Z00T999", checks.de_document),
    Plant("fr_nir", "NIR", "2 55 08 14 999 999 99", checks.fr_nir),
    Plant("fr_nir", "sécurité sociale", "155081499999999", checks.fr_nir),
    Plant("es_dni", "DNI", "99999999?", checks.es_dni),
    Plant("es_dni", "NIE", "Y-9999999-?", checks.es_dni),
    Plant("it_fiscal_code", "codice fiscale", "RSSMRA85T10A999?", checks.it_fiscal_code),
    Plant("nl_bsn", "BSN", "999999999", checks.nl_bsn),
    Plant("be_national", "rijksregisternummer", "85.07.30-999.99", checks.be_national),
    Plant("pl_pesel", "PESEL", "44051499999", checks.pl_pesel),
    Plant("se_personnummer", "personnummer", "811218-9999", checks.se_personnummer),
    Plant("ch_ahv", "AHV", "756.9999.9999.99", checks.ch_ahv),
    Plant("ca_sin", "SIN", "199 999 999", checks.card),
    Plant("au_tfn", "TFN", "999 999 999", checks.au_tfn),
    Plant("in_aadhaar", "Aadhaar", "2999 9999 9999", checks.in_aadhaar),
    Plant("in_pan", "PAN", "ABCPA9999A", None),
    Plant("br_cpf", "CPF", "999.999.999-99", checks.br_cpf),
    Plant("vehicle", "VIN", "1M8GDM9AX9P999999", checks.vin, r"[A-HJ-NPR-Z0-9]{17}"),
    Plant("device", "IMEI", "35-999999-999999-9", checks.card),
)


def drawn(plant: Plant, rng: random.Random, *, right: bool = True) -> str:
    """A random identifier of this form whose check digit agrees, or does not."""
    while True:
        text = "".join(_drawn(mark, rng) for mark in plant.form)
        plain = re.sub(r"[^0-9A-Z]", "", text)
        if plant.draws and not re.fullmatch(plant.draws, plain):
            continue
        if plant.check is None or plant.check(plain) is right:
            return text


def _drawn(mark: str, rng: random.Random) -> str:
    return {"9": rng.choice(DIGITS), "?": rng.choice(LETTERS), "X": rng.choice(DIGITS + LETTERS)}.get(mark, mark)


def prose(word: str, value: str) -> str:
    return f"Hello, my {word} is {value}. Could you have a look?"


def behind(word: str, value: str) -> str:
    return f"Please note {value} ({word}), thank you."


def table(word: str, value: str) -> str:
    filler = "| somebody who has written a rather long remark here |"
    return f"| remark | {word} |\n|---|---|\n{filler} {value} |\n{filler} none |"


def in_json(word: str, value: str) -> str:
    return json.dumps({"customer": 7, word.replace(" ", "_"): value, "note": "line\none"})


def in_escaped_json(word: str, value: str) -> str:
    return json.dumps({"arguments": json.dumps({"note": f"{word}:\n{value}"})})


def split(word: str, value: str) -> str:
    """Broken behind a separator, or in the middle where there is none."""
    places = [found.end() for found in re.finditer(r"[ .-]", value)] or [len(value) // 2]
    place = places[len(places) // 2]
    return f"My {word} is {value[:place].rstrip()}\n{value[place:]} as you know."


def full_width(word: str, value: str) -> str:
    wide = "".join(chr(ord(c) + 0xFEE0) if c in DIGITS else c for c in value)
    return f"My {word} is {wide}、お願いします。"


CARRIERS = (prose, behind, table, in_json, in_escaped_json, split, full_width)
