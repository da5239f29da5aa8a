"""Check digits agree on examples that their issuers or the public have printed, and fail when a digit is changed."""

from __future__ import annotations

import pytest

from luthier.gate.private import checks
from luthier.masking import luhn, mod97

EXAMPLES = [
    (checks.card, "4111111111111111"),
    (checks.card, "378282246310005"),
    (checks.iban, "GB82WEST12345698765432"),
    (checks.iban, "DE89370400440532013000"),
    (checks.iban, "FR1420041010050500013M02606"),
    (checks.isin, "US0378331005"),
    (checks.isin, "DE000BAY0017"),
    (checks.lei, "5493001KJTIIGC8Y1R12"),
    (checks.us_routing, "011000015"),
    (checks.us_npi, "1234567893"),
    (checks.us_dea, "AB1234563"),
    (checks.uk_nhs, "9434765919"),
    (checks.uk_utr, "1123456789"),
    (checks.de_tax_id, "86095742719"),
    (checks.de_tax_id, "47036892816"),
    (checks.de_document, "T220001293"),
    (checks.fr_nir, "255081416802538"),
    (checks.es_dni, "12345678Z"),
    (checks.es_dni, "X1234567L"),
    (checks.it_fiscal_code, "RSSMRA85T10A562S"),
    (checks.nl_bsn, "111222333"),
    (checks.be_national, "85073003328"),
    (checks.pl_pesel, "44051401359"),
    (checks.se_personnummer, "8112189876"),
    (checks.ch_ahv, "7569217076985"),
    (checks.card, "046454286"),  # Canada's social insurance number is proved by Luhn alone
    (checks.au_tfn, "123456782"),
    (checks.in_aadhaar, "999941057058"),
    (checks.br_cpf, "11144477735"),
    (checks.vin, "1M8GDM9AXKP042788"),
]


@pytest.mark.parametrize(("check", "text"), EXAMPLES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_printed_examples_agree(check: object, text: str) -> None:
    assert callable(check)
    assert check(text)


@pytest.mark.parametrize(("check", "text"), EXAMPLES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_another_last_character_does_not(check: object, text: str) -> None:
    assert callable(check)
    last = text[-1]
    others = "0123456789" if last.isdigit() else "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert not any(check(text[:-1] + other) for other in others if other != last)


def test_one_of_ten_numbers_passes_luhn() -> None:
    assert sum(luhn(f"{number:016}") for number in range(1000)) == 100


@pytest.mark.parametrize("number", [0, 12, 34567, 99999999])
def test_the_two_digits_of_mod_97_are_decided_by_the_rest(number: int) -> None:
    assert sum(mod97(f"{number:08}{digits:02}") for digits in range(1, 98)) == 1
