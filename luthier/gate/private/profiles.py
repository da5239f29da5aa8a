"""HIPAA's Safe Harbor (45 CFR 164.514(b)(2)): its 18 identifiers, the rules that look for each, and what they miss.

Rules cannot show that a text is de-identified: names, places and any other unique code have no form, and the standard
asks besides that nobody knows of a way to recognise the person. A reader has to look.
"""

from __future__ import annotations

from typing import NamedTuple


class Identifier(NamedTuple):
    """One of the 18."""

    number: int
    name: str
    rules: tuple[str, ...]
    unseen: str
    """What these rules do not see; empty where a form leaves nothing out."""


NATIONAL = (
    "us_ssn", "us_itin", "uk_nino", "uk_nhs", "de_tax_id", "fr_nir", "es_dni", "it_fiscal_code", "nl_bsn",
    "be_national",
    "pl_pesel", "se_personnummer", "ch_ahv", "ca_sin", "au_tfn", "in_aadhaar", "in_pan", "br_cpf",
)  # fmt: skip
SAFE_HARBOR = (
    Identifier(1, "names", ("person_name",), "most names in running text, unless a recogniser or a list is given"),
    Identifier(
        2,
        "places smaller than a state",
        ("postal_address",),
        "towns and counties alone, post codes that no word announces",
    ),
    Identifier(
        3,
        "dates but the year, and ages above 89",
        ("date_of_birth", "date", "age"),
        "dates without a year, weekdays, ages in words; shifting dates is not Safe Harbor",
    ),
    Identifier(4, "telephone numbers", ("phone",), "numbers written in words, extensions alone"),
    Identifier(5, "fax numbers", ("phone",), "as telephone numbers"),
    Identifier(6, "e-mail addresses", ("email",), "addresses written out (name at example dot com)"),
    Identifier(7, "social security numbers", ("us_ssn", "us_itin"), "the last four digits alone"),
    Identifier(8, "medical record numbers", ("medical_record",), "numbers that no word announces"),
    Identifier(
        9, "health plan beneficiary numbers", ("health_plan",), "numbers that no word announces, but Medicare's"
    ),
    Identifier(
        10, "account numbers", ("bank_account", "iban", "card_number", "us_routing"), "numbers that no word announces"
    ),
    Identifier(
        11,
        "certificate and licence numbers",
        ("driving_licence", "us_dea", "us_npi", "passport"),
        "licences of professions and trades but DEA and NPI",
    ),
    Identifier(12, "vehicle identifiers and plates", ("vehicle",), "plates that no word announces"),
    Identifier(
        13, "device identifiers and serial numbers", ("device", "mac_address"), "numbers that no word announces"
    ),
    Identifier(14, "web addresses", ("url",), "addresses without http or www"),
    Identifier(15, "IP addresses", ("ip_address",), ""),
    Identifier(16, "fingerprints, voices and other biometrics", (), "all: they are no text"),
    Identifier(17, "photographs of faces", (), "all: they are no text"),
    Identifier(
        18,
        "any other number, mark or code of one person",
        (*NATIONAL, "secret", "private_key", "crypto_address"),
        "codes of the organisation's own, rare diseases, offices and events that only one person fits",
    ),
)


def covered() -> frozenset[str]:
    """The rules that Safe Harbor needs."""
    return frozenset(rule for identifier in SAFE_HARBOR for rule in identifier.rules)
