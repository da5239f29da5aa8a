"""Check digits of identifiers, by the rule of whoever issues them. All take capitals and digits without separators.

Luhn and mod 97 stand in `masking`, which uses them too.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from luthier.masking import luhn, mod97

_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"


def weighted(digits: str, weights: Sequence[int]) -> int:
    """The digits times their weights, summed; letters count from A = 10."""
    return sum(int(c, 36) * weight for c, weight in zip(digits, weights, strict=False))


def day(year: int, month: int, day_: int) -> bool:
    """Whether the calendar has this day."""
    try:
        date(year, month, day_)
    except ValueError:
        return False
    return True


def card(text: str) -> bool:
    """Luhn, and not one digit repeated."""
    return luhn(text) and len(set(text)) > 1


def iban(text: str) -> bool:
    return IBAN_LENGTHS.get(text[:2]) == len(text) and mod97(text[4:] + text[:4])


def isin(text: str) -> bool:
    """ISO 6166: Luhn over the digits that the letters stand for."""
    return luhn("".join(str(int(c, 36)) for c in text))


def us_routing(text: str) -> bool:
    """The weights 3, 7, 1 of the American Bankers Association."""
    return weighted(text, (3, 7, 1) * 3) % 10 == 0


def us_npi(text: str) -> bool:
    """Luhn behind the prefix of the United States' health applications, 80840."""
    return luhn("80840" + text)


def us_dea(text: str) -> bool:
    digits = [int(c) for c in text[2:]]
    return (sum(digits[0:6:2]) + 2 * sum(digits[1:6:2])) % 10 == digits[6]


def uk_nhs(text: str) -> bool:
    """Weights 10 to 2, modulo 11."""
    rest = 11 - weighted(text[:9], range(10, 1, -1)) % 11
    return rest != 10 and rest % 11 == int(text[9]) and len(set(text)) > 1


def uk_utr(text: str) -> bool:
    """The check digit stands in front."""
    return "21987654321"[weighted(text[1:], (6, 7, 8, 9, 10, 5, 4, 3, 2)) % 11] == text[0]


def de_tax_id(text: str) -> bool:
    """ISO 7064 mod 11, 10, and exactly one digit twice or three times in the first ten."""
    counts = sorted((text[:10].count(digit) for digit in set(text[:10])), reverse=True)
    if counts[0] not in (2, 3) or (len(counts) > 1 and counts[1] > 1):
        return False
    product = 10
    for digit in text[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(text[10])


def de_document(text: str) -> bool:
    """Weights 7, 3, 1 of ICAO 9303, over the serial number; the tenth character is the check digit."""
    return weighted(text[:9], (7, 3, 1) * 3) % 10 == int(text[9])


def fr_nir(text: str) -> bool:
    """97 less the remainder; Corsica's departments 2A and 2B count as 19 and 18."""
    number = int(text[:13].replace("2A", "19").replace("2B", "18"))
    return 97 - number % 97 == int(text[13:])


def es_dni(text: str) -> bool:
    """The letter of the remainder modulo 23; X, Y and Z of foreigners count as 0, 1 and 2."""
    digits = str("XYZ".index(text[0])) + text[1:-1] if text[0] in "XYZ" else text[:-1]
    return _DNI[int(digits) % 23] == text[-1]


def it_fiscal_code(text: str) -> bool:
    """Characters at odd places count by a table, at even places by their rank, modulo 26."""
    odd = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
    ranks = [int(c, 36) - 10 if c.isalpha() else int(c) for c in text[:15]]
    total = sum(odd[rank] for rank in ranks[0::2]) + sum(ranks[1::2])
    return chr(total % 26 + ord("A")) == text[15]


def nl_bsn(text: str) -> bool:
    """The eleven test with -1 for the last digit."""
    return weighted(text, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0 and len(set(text)) > 1


def be_national(text: str) -> bool:
    """97 less the remainder; a 2 stands in front for those born from 2000."""
    return any(97 - int(century + text[:9]) % 97 == int(text[9:]) for century in ("", "2"))


def pl_pesel(text: str) -> bool:
    century = {0: 1900, 1: 2000, 2: 2100, 3: 2200, 4: 1800}[int(text[2]) // 2]
    if not day(century + int(text[:2]), int(text[2:4]) % 20, int(text[4:6])):
        return False
    return weighted(text, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def se_personnummer(text: str) -> bool:
    """Luhn over the last ten digits, of which six are a date; 60 is added to the day of a coordination number."""
    ten = text[-10:]
    return day(2000, int(ten[2:4]), int(ten[4:6]) % 60) and luhn(ten)


def ch_ahv(text: str) -> bool:
    """The check digit of EAN-13."""
    return weighted(text, (1, 3) * 6 + (1,)) % 10 == 0


def au_tfn(text: str) -> bool:
    return weighted(text, (1, 4, 3, 7, 5, 8, 6, 9, 10)) % 11 == 0 and len(set(text)) > 1


def in_aadhaar(text: str) -> bool:
    """Verhoeff's scheme over the dihedral group of ten elements."""
    state = 0
    for place, digit in enumerate(reversed(text)):
        state = _times(state, _permuted(place, int(digit)))
    return state == 0


def br_cpf(text: str) -> bool:
    """Two check digits, modulo 11 and then 10."""
    return len(set(text)) > 1 and all(
        weighted(text[:place], range(place + 1, 1, -1)) * 10 % 11 % 10 == int(text[place]) for place in (9, 10)
    )


def vin(text: str) -> bool:
    """ISO 3779 as North America checks it: the ninth character, modulo 11."""
    values = [int(c) if c.isdigit() else _VIN[c] for c in text]
    weights = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
    return "0123456789X"[sum(v * w for v, w in zip(values, weights, strict=True)) % 11] == text[8]


def lei(text: str) -> bool:
    return mod97(text)


def _times(a: int, b: int) -> int:
    """The product of two symmetries of a pentagon: 0 to 4 turn, 5 to 9 turn and flip."""
    if a < 5:
        return (a + b) % 5 if b < 5 else (a + b) % 5 + 5
    return (a - b) % 5 + 5 if b < 5 else (a - b) % 5


def _permuted(place: int, digit: int) -> int:
    for _ in range(place % 8):
        digit = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[digit]
    return digit


_VIN = dict(zip("ABCDEFGHJKLMNPRSTUVWXYZ", (*range(1, 9), *range(1, 6), 7, 9, *range(2, 10)), strict=True))
IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FO GL NL",
        19: "MK SI",
        20: "AT BA EE KZ LT LU XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ TL OM",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
"""Country -> characters of its IBANs (the registry of ISO 13616)."""
