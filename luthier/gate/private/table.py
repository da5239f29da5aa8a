"""The rules for private data: what each kind is called, why it matters and what is done with it."""

from __future__ import annotations

from luthier.gate.rules import Mend, Rule
from luthier.types import Severity

_LEARNT = "a model can repeat what it was trained on, word for word, to anyone who asks"
_PERSON = f"It leads to a person, and {_LEARNT}."
_MONEY = f"It pays or is paid with, and {_LEARNT}."
_HEALTH = f"It ties a person to their health record, and {_LEARNT}."
_REMEDY = "Let `luthier data clean` replace it, or leave the row out; keep it only where the model must know it."
_ABOUT = (
    "Confidence is the probability that follows from the form, a check digit where there is one, and words within 40 "
    "characters (or at the head of the table's column); below `confidence` nothing is reported."
)


def _rule(
    title: str,
    why: str = _PERSON,
    *,
    mend: Mend = "redact",
    severity: Severity = "warn",
    least: float = 0.5,
    remedy: str = _REMEDY,
    about: str = "",
    **more: float,
) -> Rule:
    return Rule(title, why, remedy, severity, mend, {"confidence": least, **more}, f"{about} {_ABOUT}".strip())


_SECRET = "Whoever can ask the model may get a working credential out of it."
_ROTATE = "Revoke it and issue a new one: it has been copied into a data set. Then let `luthier data clean` remove it."
_NO_CHECK = "It has no check digit: a word before it must say what it is."

RULES: dict[str, Rule] = {
    "private_key": _rule("private key", _SECRET, severity="block", remedy=_ROTATE, about="The PEM block."),
    "secret": _rule(
        "password, key or token",
        _SECRET,
        severity="block",
        remedy=_ROTATE,
        about="Prefixes of services, JSON web tokens, passwords in addresses, what is assigned to a word such as "
        "password, and beside such words what looks drawn at random: at least 4.5 bits per character in 20 or more "
        "characters of base64, or 3 in 32 or more of hexadecimal.",
    ),
    "email": _rule("e-mail address", mend="pseudonym"),
    "phone": _rule("phone or fax number", mend="pseudonym", about="7 to 15 digits as countries write them."),
    "postal_address": _rule("postal address", about="Street, box, flat and post code where they stand together."),
    "url": _rule("web address", severity="info", mend="none", about="Without example.com and its like."),
    "ip_address": _rule("IP address", mend="pseudonym", about="Without those reserved for documents and tests."),
    "mac_address": _rule("MAC address", mend="pseudonym"),
    "person_name": _rule(
        "name of a person",
        mend="pseudonym",
        about="Behind titles, salutations, heads of e-mails and the like, frequent given names with a surname, and "
        "names on a list. Most names in running text need a recogniser.",
    ),
    "card_number": _rule("payment card number", _MONEY, about="Issuer's prefix and length, Luhn."),
    "iban": _rule("IBAN", _MONEY, about="Length by country, mod 97."),
    "bank_account": _rule("bank account number", _MONEY, about=_NO_CHECK),
    "us_routing": _rule("US routing number", _MONEY, about="Weights 3, 7, 1."),
    "bic": _rule("bank identifier code", _MONEY, severity="info", mend="none", about=_NO_CHECK),
    "lei": _rule("legal entity identifier", _MONEY, severity="info", mend="none", about="Mod 97."),
    "isin": _rule("securities number (ISIN)", _MONEY, severity="info", mend="none", about="Luhn."),
    "crypto_address": _rule("wallet address", _MONEY, about="Base58Check, Bech32; Ethereum by its form."),
    "us_ssn": _rule("US social security number", about="3-2-4 digits without the areas and groups never issued."),
    "us_itin": _rule("US taxpayer number (ITIN)", about="9xx with the groups in use."),
    "us_ein": _rule("US employer number (EIN)", about="The prefixes in use."),
    "us_npi": _rule("US provider number (NPI)", about="Luhn behind 80840."),
    "us_dea": _rule("US DEA number", about="Its check digit."),
    "uk_nino": _rule("UK national insurance number", about="The prefixes in use."),
    "uk_nhs": _rule("UK NHS number", _HEALTH, about="Mod 11."),
    "uk_utr": _rule("UK taxpayer reference", about="Mod 11."),
    "de_tax_id": _rule("German tax id", about="ISO 7064 mod 11, 10, and its rule of repeated digits."),
    "de_id_card": _rule("German identity card or passport", about="Weights 7, 3, 1."),
    "fr_nir": _rule("French social security number", about="97 less the remainder."),
    "es_dni": _rule("Spanish DNI or NIE", about="The letter modulo 23."),
    "it_fiscal_code": _rule("Italian fiscal code", about="The letter modulo 26."),
    "nl_bsn": _rule("Dutch BSN", about="The eleven test."),
    "be_national": _rule("Belgian national number", about="97 less the remainder."),
    "pl_pesel": _rule("Polish PESEL", about="A date and a check digit."),
    "se_personnummer": _rule("Swedish personal number", about="A date and Luhn."),
    "ch_ahv": _rule("Swiss AHV number", about="756 and EAN-13."),
    "ca_sin": _rule("Canadian social insurance number", about="Luhn."),
    "au_tfn": _rule("Australian tax file number", about="Mod 11."),
    "in_aadhaar": _rule("Indian Aadhaar number", about="Verhoeff."),
    "in_pan": _rule("Indian PAN", about="Its form."),
    "br_cpf": _rule("Brazilian CPF", about="Two check digits."),
    "passport": _rule("passport number", about=_NO_CHECK),
    "driving_licence": _rule("driving licence number", about=_NO_CHECK),
    "date_of_birth": _rule("date of birth", about="A date that the calendar has, behind a word such as born."),
    "date": _rule("date", _HEALTH, severity="info", mend="none", about="Every date with a day and a month."),
    "age": _rule("age above 89", _HEALTH, above=89, about="`above`: years up to which an age says little."),
    "medical_record": _rule("medical record number", _HEALTH, about=_NO_CHECK),
    "health_plan": _rule("health plan number", _HEALTH, about=f"Medicare's by its form. {_NO_CHECK}"),
    "device": _rule("device or serial number", about=f"IMEI: Luhn. {_NO_CHECK}"),
    "vehicle": _rule("vehicle number or plate", about=f"VIN: its check digit. {_NO_CHECK}"),
}
