"""Identifiers that a state gives to a person, by country, with the check digits that each has.

Nine, ten or eleven bare digits are most often something else, whatever their check digit says: such a number is
reported where a word near it says what it is.
"""

from __future__ import annotations

import re

from luthier.gate.private import checks
from luthier.gate.private.evidence import words
from luthier.gate.private.shapes import Shape

_TENTH, _ELEVENTH = 0.1, 1 / 11
_NAMED = 0.02
"""Prior of a bare number that only a word near it can name."""

SHAPES = (
    # United States
    Shape(
        "us_ssn",
        re.compile(r"(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4}"),
        (9,),
        0.6,
        words("ssn", "social"),
    ),
    Shape(
        "us_ssn",
        re.compile(r"(?!000|666|9)\d{3} ?(?!00)\d\d ?(?!0000)\d{4}"),
        (9,),
        _NAMED,
        words("ssn", r"social(?: |_)?sec", r"ss ?#"),
    ),
    Shape(
        "us_itin",
        re.compile(r"9\d\d([ -]?)(?:5\d|6[0-5]|7\d|8[0-8]|9[0-24-9])\1\d{4}"),
        (9,),
        _NAMED,
        words("itin", "taxpayer", r"tax(?:payer)? id", r"tin\b"),
    ),
    Shape(
        "us_ein",
        re.compile(r"(?:0[1-6]|1[0-6]|2[0-7]|3\d|4[0-8]|5\d|6[0-8]|7[1-7]|8[0-8]|9[0-58-9])-\d{7}"),
        (9,),
        0.05,
        words(r"ein\b", r"fein\b", r"employer id", r"tax id", r"federal (?:tax|id)"),
    ),
    Shape(
        "us_npi",
        re.compile(r"[12]\d{9}"),
        (10,),
        0.005,
        words(r"npi\b", "national provider", "provider id"),
        checks.us_npi,
        _TENTH,
    ),
    Shape(
        "us_dea",
        re.compile(r"[ABCDEFGHJKLMPRSTUX][A-Z9]\d{7}"),
        (9,),
        0.1,
        words(r"dea\b", "prescriber"),
        checks.us_dea,
        _TENTH,
    ),
    # United Kingdom
    Shape(
        "uk_nino",
        re.compile(r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]([ -]?)\d\d\1\d\d\1\d\d\1[A-D]", re.I),
        (9,),
        0.6,
        words("national insurance", r"nino?\b", r"ni (?:no|number)"),
    ),
    Shape(
        "uk_nhs",
        re.compile(r"\d{3}([ -]?)\d{3}\1\d{4}"),
        (10,),
        0.01,
        words(r"nhs\b", "health service"),
        checks.uk_nhs,
        _ELEVENTH,
    ),
    Shape(
        "uk_utr",
        re.compile(r"\d{5} ?\d{5}"),
        (10,),
        0.005,
        words(r"utr\b", "unique taxpayer", "self[ -]assessment", "hmrc"),
        checks.uk_utr,
        _ELEVENTH,
    ),
    # Germany
    Shape(
        "de_tax_id",
        re.compile(r"[1-9]\d( ?)\d{3}\1\d{3}\1\d{3}"),
        (11,),
        0.01,
        words("steuer", r"id-?nr", r"tin\b", "tax"),
        checks.de_tax_id,
        0.03,
    ),
    Shape(
        "de_id_card",
        re.compile(r"[CFGHJKLMNPRTVWXYZ][CFGHJKLMNPRTVWXYZ0-9]{8} ?\d"),
        (10,),
        0.05,
        words("ausweis", "personalausweis", "reisepass", "pass", r"id(?:entity)? ?(?:card|document)"),
        checks.de_document,
        _TENTH,
    ),
    # France, Spain, Italy, the Netherlands, Belgium
    Shape(
        "fr_nir",
        re.compile(r"[12]( ?)\d\d\1(?:0[1-9]|1[0-2]|[2-9]\d)\1(?:\d\d|2[AB])\1\d{3}\1\d{3}[ -]?\d\d"),
        (15,),
        0.3,
        words("nir", "sécurité sociale", "securite sociale", "sécu", "insee", "vitale"),
        checks.fr_nir,
        1 / 97,
    ),
    Shape(
        "es_dni",
        re.compile(r"(?:\d{8}|\d{2}\.\d{3}\.\d{3}|[XYZ][ -]?\d{7})[ -]?[A-HJ-NP-TV-Z]", re.I),
        (9,),
        0.15,
        words(r"dni\b", r"nie\b", r"nif\b", "documento nacional", "extranjero"),
        checks.es_dni,
        1 / 23,
    ),
    Shape(
        "it_fiscal_code",
        re.compile(
            r"[A-Z]{6}[0-9]{2}[A-EHLMPRST][0-9]{2}[A-Z][0-9]{3}[A-Z]"
            r"|[A-Z]{3} [A-Z]{3} [0-9]{2}[A-EHLMPRST][0-9]{2} [A-Z][0-9]{3}[A-Z]",
            re.I,
        ),
        (16,),
        0.6,
        words("fiscale", r"cf\b"),
        checks.it_fiscal_code,
        1 / 26,
    ),
    Shape(
        "nl_bsn",
        re.compile(r"\d{9}|\d{4}[. ]\d\d[. ]\d{3}|\d{3}[. ]\d{3}[. ]\d{3}"),
        (9,),
        0.005,
        words(r"bsn\b", "burgerservice", r"sofi"),
        checks.nl_bsn,
        _ELEVENTH,
    ),
    Shape(
        "be_national",
        re.compile(r"\d\d([. ]?)\d\d\1\d\d[- ]?\d{3}[. ]?\d\d"),
        (11,),
        0.02,
        words("rijksregister", "registre national", r"insz\b", r"niss\b", "national number"),
        checks.be_national,
        1 / 97,
    ),
    # Poland, Sweden, Switzerland
    Shape(
        "pl_pesel",
        re.compile(r"\d\d(?:0[1-9]|1[0-2]|2[1-9]|3[0-2])[0-3]\d{6}"),
        (11,),
        0.02,
        words("pesel"),
        checks.pl_pesel,
        _TENTH,
    ),
    Shape(
        "se_personnummer",
        re.compile(r"(?:19|20)?\d{6}-\d{4}"),
        (10, 12),
        0.15,
        words("personn", r"person(?:al)? ?(?:id|number)", "samordningsn"),
        checks.se_personnummer,
        _TENTH,
    ),
    Shape(
        "se_personnummer",
        re.compile(r"(?:19|20)?\d{10}"),
        (10, 12),
        0.005,
        words("personn", "samordningsn"),
        checks.se_personnummer,
        _TENTH,
    ),
    Shape(
        "ch_ahv",
        re.compile(r"756([. ]?)\d{4}\1\d{4}\1\d\d"),
        (13,),
        0.3,
        words(r"ahv", r"avs\b", "svnr"),
        checks.ch_ahv,
        _TENTH,
    ),
    # Canada, Australia, India, Brazil
    Shape(
        "ca_sin",
        re.compile(r"[1-79]\d\d([ -]?)\d{3}\1\d{3}"),
        (9,),
        0.01,
        words(r"sin\b", "social insurance", "assurance sociale", r"nas\b"),
        checks.card,
        _TENTH,
    ),
    Shape(
        "au_tfn",
        re.compile(r"\d{3}([ -]?)\d{3}\1\d{3}"),
        (9,),
        0.005,
        words(r"tfn\b", "tax file"),
        checks.au_tfn,
        _ELEVENTH,
    ),
    Shape(
        "in_aadhaar",
        re.compile(r"[2-9]\d{3}([ -]?)\d{4}\1\d{4}"),
        (12,),
        0.02,
        words("aadha+r", "uidai"),
        checks.in_aadhaar,
        _TENTH,
    ),
    Shape("in_pan", re.compile(r"[A-Z]{3}[ABCFGHLJPT][A-Z]\d{4}[A-Z]"), (10,), 0.6, words(r"pan\b", "income tax")),
    Shape(
        "br_cpf",
        re.compile(r"\d{3}\.?\d{3}\.?\d{3}-?\d\d"),
        (11,),
        0.02,
        words(r"cpf\b", "cadastro"),
        checks.br_cpf,
        0.01,
    ),
    # What has no check digit, and a form that differs by country or state: the word before it decides.
    Shape(
        "passport",
        re.compile(r"[A-Z]{0,3} ?\d[A-Z0-9]{5,9}|[CFGHJK][A-Z0-9]{8}", re.I),
        tuple(range(6, 13)),
        _NAMED,
        words("passport", "reisepass", "passeport", "pasaporte", "passaporto", "paspoort"),
        before=True,
    ),
    Shape(
        "driving_licence",
        re.compile(r"(?=(?:[A-Z -]*\d){4})[A-Z0-9]{1,16}(?:[ -][A-Z0-9]{1,8}){0,4}", re.I),
        tuple(range(5, 21)),
        _NAMED,
        words(
            r"driv(?:er'?s?|ing) ?lic",
            r"licen[cs]e (?:no|nr|number|id|#)",
            "licencia de conduc",
            "führerschein",
            "permis de conduire",
            "patente di",
            "rijbewijs",
            r"dl ?(?:no|#|number)",
        ),
        before=True,
    ),
)
