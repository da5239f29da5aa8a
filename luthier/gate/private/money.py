"""Cards, accounts, securities and wallets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from luthier.gate.private import checks
from luthier.gate.private.evidence import NEAR, confidence, near, words
from luthier.gate.private.shapes import Shape
from luthier.gate.private.spans import Span, View

_CARD = words(
    "card", "credit", "debit", r"cc\b", "visa", "master ?card", "amex", r"pan\b", "kreditkarte", "karte", "carte"
)
_ACCOUNT = words("account", "acct", r"ac no\b", "konto", "compte", "cuenta", "conto", "rekening", "sort code", "bank")

SHAPES = (
    # In fours (2221 to 2720: Mastercard), or Amex's 4-6-5, it is hardly anything else; 12 digits (Maestro) are most
    # things else.
    Shape(
        "card_number",
        re.compile(r"(?:[3-6]\d|2[2-7])\d\d([ -])\d{4}\1\d{4}\1\d{4}|3[47]\d\d([ -])\d{6}\2\d{5}"),
        (15, 16),
        0.4,
        _CARD,
        checks.card,
        0.1,
    ),
    Shape(
        "card_number",
        re.compile(
            r"4\d{12}(?:\d{3}){0,2}"  # Visa
            r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
            r"|3[47]\d{13}"  # American Express
            r"|(?:3(?:0[0-5]|095|[689]\d)\d{11,16})"  # Diners Club
            r"|(?:6011|64[4-9]\d|65\d\d)\d{12,15}"  # Discover
            r"|(?:35[2-8]\d\d{12,15}|(?:2131|1800)\d{11})"  # JCB
            r"|62\d{14,17}|(?:60|81|82|508)\d{13,14}|220[0-4]\d{12,15}|9792\d{12}"  # UnionPay, RuPay, Mir, Troy
        ),
        (13, 14, 15, 16, 17, 18, 19),
        0.12,
        _CARD,
        checks.card,
        0.1,
    ),
    Shape(
        "card_number",
        re.compile(r"\d{12,19}"),  # Maestro, and issuers that are not above
        tuple(range(12, 20)),
        0.01,
        _CARD,
        checks.card,
        0.1,
    ),
    Shape(
        "card_number",
        re.compile(r"\d{4}(?:([ -])\d{4}\1\d{4}\1\d{1,7}|[ -]\d{3,6}[ -]\d{4,6})"),
        tuple(range(12, 20)),
        0.02,
        _CARD,
        checks.card,
        0.1,
    ),
    Shape(
        "iban",
        re.compile(r"[A-Z]{2}\d{2}(?:[A-Z0-9]{11,30}|(?:[ -][A-Z0-9]{4}){2,7}(?:[ -][A-Z0-9]{1,3})?)", re.I),
        tuple(range(15, 35)),
        0.5,
        words("iban", "konto", "account", "compte", "bank"),
        checks.iban,
        1 / 97,
    ),
    Shape(
        "bank_account",
        re.compile(r"\d{6,17}|\d{2,8}(?:[ -]\d{2,10}){1,4}"),
        tuple(range(6, 18)),
        0.01,
        words(
            *(
                word + r"(?:[ -]?(?:no|nr|number|num|nummer|numero)\b|:| is\b|\s?#)"
                for word in ("account", "acct", "konto", "girokonto", "compte", "cuenta", "conto", "rekening")
            ),
            "kontonummer",
            "sort code",
            "bankleitzahl",
            r"blz\b",
        ),
        before=True,
    ),
    Shape(
        "us_routing",
        re.compile(r"(?:0\d|1[0-2]|2[1-9]|3[0-2]|6[1-9]|7[0-2]|80)\d{7}"),
        (9,),
        0.005,
        words("routing", r"aba\b", r"rtn\b", "transit"),
        checks.us_routing,
        0.1,
    ),
    Shape("lei", re.compile(r"[A-Z0-9]{18}\d\d"), (20,), 0.3, words(r"lei\b", "legal entity"), checks.lei, 1 / 97),
    Shape(
        "isin",
        re.compile(r"(?:[A-Z]{2})[A-Z0-9]{9}\d"),
        (12,),
        0.05,
        words(r"isin\b", "security", "securities", "wertpapier", r"wkn\b"),
        checks.isin,
        0.1,
    ),
)
_BIC = re.compile(r"\b[A-Z]{4}[A-Z]{2}[A-Z0-9]{2}(?:[A-Z0-9]{3})?\b")
_BIC_WORDS = words(r"bic\b", "swift")
_WALLET = re.compile(r"\b(?:0x[0-9a-fA-F]{40}|(?:bc|tb)1[02-9ac-hj-np-z]{11,87}|[13][1-9A-HJ-NP-Za-km-z]{25,34})\b")
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def bics(view: View) -> Iterator[Span]:
    """Bank identifier codes (ISO 9362). Eight capitals are a word like any other: BIC or SWIFT must be near."""
    if "bic" not in view.low and "swift" not in view.low:
        return
    for found in _BIC.finditer(view.text):
        country = found.group()[4:6]
        if (country in checks.IBAN_LENGTHS or country in _OTHER_COUNTRIES) and near(view, *found.span(), _BIC_WORDS):
            yield Span("bic", *found.span(), confidence(0.1, NEAR))


def wallets(view: View) -> Iterator[Span]:
    """Addresses of Bitcoin, proved by their check, and of Ethereum, by their form."""
    for found in _WALLET.finditer(view.text):
        text = found.group()
        if text.startswith("0x"):
            yield Span("crypto_address", *found.span(), confidence(0.8))
        elif _bech32(text) if text[:3] in ("bc1", "tb1") else _base58(text):
            yield Span("crypto_address", *found.span(), confidence(0.5, 2**30), checked=True)


def _base58(text: str) -> bool:
    """The first four bytes of a doubled SHA-256 end the address."""
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    raw = number.to_bytes(26, "big")[-25:]
    return number < 1 << 200 and hashlib.sha256(hashlib.sha256(raw[:21]).digest()).digest()[:4] == raw[21:]


def _bech32(text: str) -> bool:
    """The checksum of BIP 173 and of BIP 350."""
    state = 1
    values = [ord(c) >> 5 for c in text[:2]] + [0] + [ord(c) & 31 for c in text[:2]]
    for value in values + [_BECH32.index(c) for c in text[3:]]:
        top = state >> 25
        state = (state & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            if top >> bit & 1:
                state ^= generator
    return state in (1, 0x2BC830A3)


_OTHER_COUNTRIES = {
    "US",
    "CA",
    "AU",
    "NZ",
    "JP",
    "CN",
    "HK",
    "SG",
    "IN",
    "KR",
    "TW",
    "TH",
    "MY",
    "ID",
    "PH",
    "VN",
    "ZA",
    "NG",
    "KE",
    "MA",
    "MX",
    "AR",
    "CL",
    "CO",
    "PE",
    "UY",
}
"""With banks and without IBANs."""
