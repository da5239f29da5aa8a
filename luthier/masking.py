"""Structured private data in a text, replaced by its kind: ⟨e-mail⟩, ⟨phone⟩, ⟨card-number⟩, ⟨secret⟩.

Only what has a form can be found this way. Names, addresses and stories have none: this is no anonymisation. In doubt
a number of seven digits or more is masked; dates, years, decimals, grouped thousands and amounts with a currency stay.
Every pattern starts at a boundary or has a bounded repeat, so that a long hostile text costs linear time.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

Match = re.Match[str]

PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY[A-Z ]{0,10}-----.*?(?:-----END [A-Z0-9 ]{0,60}-----|(?=\\?\")|\Z)", re.S
)
_REST = r"(?:[^\s\"\\]*[^\s.,;:!?)\]}'\"\\])?"
"""The rest of an address, without the punctuation of the sentence around it; a quotation mark ends it."""
URL_WITH_PASSWORD = re.compile(
    r"\b[A-Za-z][\w+.-]{0,20}://[^\s/@:]{0,200}:[^\s/@]{1,200}@" + _REST + "|"
    r"(?i:\bhttps?://[^\s?#]{1,1000}[?#](?:[^\s=&]{0,100}=[^\s=&]{0,300}&){0,20}"
    r"(?:access_token|auth_token|token|api_?key|key|password|passwd|pwd|secret|signature|sig)=" + _REST + ")"
)
SECRET = re.compile(
    r"\b(?:"
    r"(?:sk|pk|rk)[-_][\w-]{16,}"
    r"|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_[A-Za-z0-9]{20,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|ya29\.[\w-]{20,}|xox[abeoprs]-[\w-]{10,}|xapp-[\w-]{20,}"
    r"|whsec_\w{20,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{40,}|dop_v1_[0-9a-f]{40,}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"
    r"|GOCSPX-[\w-]{28}|dapi[0-9a-f]{32}|PMAK-[0-9a-f]{24}-[0-9a-f]{34}"
    r"|https://(?:hooks\.slack\.com/(?:services|workflows|triggers)|(?:\w+\.)?discord(?:app)?\.com/api/webhooks)/[\w/-]{20,}"
    r"|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,}"
    r")|(?i:(?<=bearer )[\w.~+/-]{20,}=*)"
)
"""Keys of services by their prefixes, JSON web tokens, and what follows `Bearer`."""
EMAIL = re.compile(r"(?<![\w.+%'-])[\w.+%'-]+@[\w-]+(?:\.[\w-]+)+")
IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)")
IPV6 = re.compile(r"(?<![\w:])(?=[A-Fa-f:]*\d)[\dA-Fa-f]{0,4}:[\dA-Fa-f:]{1,38}(?:\.\d+){0,3}(?![\w:])")
"""As `IPV4`, the form alone: `ipaddress` decides."""
FEWEST_DIGITS = 7
"""Of a number that is masked."""


def mask(text: str) -> str:
    """Returns `text` with private data of a known form replaced. `mask(mask(text)) == mask(text)`."""
    while True:
        # A replacement can lay bare what stood too close to it, so this repeats until nothing is left to find.
        # It ends, because every replacement takes away characters that no placeholder gives back.
        masked = text
        for pattern, replace in _RULES:
            masked = pattern.sub(replace, masked)
        if masked == text:
            return masked
        text = masked


_CURRENCY = (
    r"(?:[$€£¥₹₽₩₪₺฿]|(?:EUR|USD|GBP|CHF|JPY|CNY|INR|SEK|NOK|DKK|PLN|CZK|CAD|AUD|BRL|euros?|dollars?|pounds?|kr)\b)"
)
_YEAR = r"(?:1[5-9]|20)\d\d"
_GROUPED = r"(?:\d{1,3}(?:[., '’\u00a0\u2009\u202f]\d{3})+|\d+)(?:[.,]\d{1,2})?"
# One pattern for all that looks like a number, tried in this order where it starts: what comes first is kept.
_KEPT = "|".join(
    (
        rf"{_YEAR}[-/.]\d{{1,2}}[-/.]\d{{1,2}}(?![-/.]?\d)",  # 2024-01-31
        rf"\d{{1,2}}[-/. ]\d{{1,2}}[-/. ]{_YEAR}(?![-/.]?\d)",  # 31.01.2024
        r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?![- ]?\d)(?!\w)",  # 20240131
        rf"{_YEAR}(?:\s?[-–/ ]\s?{_YEAR})+(?![-–/ ]?\d)(?!\w)",  # 2019-2024
        rf"{_CURRENCY}\s?{_GROUPED}(?!\d)",  # $ 1,250,000.00
        rf"{_GROUPED}\s?{_CURRENCY}",  # 1 250 000 EUR
        r"\d{1,3}(?:[ ']\d{3})+[.,]\d{1,2}(?![./-]?\d)",  # 1 250 000,00
        r"\d{1,3}(?:[\u00a0\u2009\u202f'’]\d{3})+(?![./-]?\d)",  # thousands with narrow spaces
        r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![./-]?\d)",  # 1,250,000
        r"\d{1,3}(?:\.\d{3})+(?:,\d+)?(?![./-]?\d)",  # 1.250.000
        r"(?:0|[1-9]\d{0,15})[.,]\d+(?![./-]?\d)",  # 3.14159265
    )
)
_BRACKETS = r"(?:\(\d{1,5}\)[ \t/-]?)?"
_BETWEEN = r"(?:\.|[ \t\u00a0]?[/–‑-][ \t]?|[ \t\u00a0]{1,2})?"
NUMBER = re.compile(
    rf"(?<![\w.,])(?P<kept>{_KEPT})"
    rf"|(?<!\w)(?P<phone>\+?{_BRACKETS}\d(?:{_BETWEEN}{_BRACKETS}\d){{3,}}(?: ?(?:x|ext\.?) ?\d{{1,6}})?(?!\w))"
)
"""What looks like a number: `kept` where it is a date, a price or the like, else `phone`, perhaps with an extension."""


def _number(match: Match) -> str:
    found = match.group()
    if match["kept"]:
        return found
    groups = re.findall(r"\d+", found)
    digits = "".join(groups)
    if len(digits) < FEWEST_DIGITS:
        return found
    # A row of small numbers is no telephone number, unless it is dialled: 06 12 34 56 78.
    if max(map(len, groups)) < 3 and found[0] not in "+(0":
        return found
    return "⟨card-number⟩" if 13 <= len(digits) <= 19 and luhn(digits) else "⟨phone⟩"


def luhn(digits: str) -> bool:
    """The check digit of card numbers (ISO/IEC 7812-1). One of ten random numbers passes."""
    odd, even = digits[-1::-2], digits[-2::-2]
    return (sum(map(int, odd)) + sum(sum(divmod(2 * int(d), 10)) for d in even)) % 10 == 0


def mod97(text: str) -> bool:
    """The two check digits of ISO 7064: read with letters as 10 to 35, the number leaves 1 when divided by 97."""
    return int("".join(str(int(c, 36)) for c in text)) % 97 == 1


def _iban(match: Match) -> str:
    plain = match.group().replace(" ", "")
    return "⟨IBAN⟩" if mod97(plain[4:] + plain[:4]) else match.group()


def _address(match: Match) -> str:
    try:
        ipaddress.ip_address(match.group())
    except ValueError:
        return match.group()
    return "⟨IP-address⟩"


_RULES: tuple[tuple[re.Pattern[str], str | Callable[[Match], str]], ...] = (
    (PRIVATE_KEY, "⟨private-key⟩"),
    (URL_WITH_PASSWORD, "⟨URL-with-password⟩"),
    (SECRET, "⟨secret⟩"),
    (EMAIL, "⟨e-mail⟩"),
    (re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), _iban),
    (IPV4, _address),
    (IPV6, _address),
    (NUMBER, _number),
)
