"""Ways to reach a person or a machine: e-mail, phone, web address, IP and MAC address."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from luthier.gate.private.evidence import NEAR, REACH, confidence, mentioned, said, words
from luthier.gate.private.spans import Span, View
from luthier.masking import IPV4, IPV6, NUMBER

# A line may end beside the @, and the sentence may end behind the address.
_EMAIL = re.compile(
    r"(?<![\w.+%'-])[\w+%](?:[\w.+%'-]{0,62}[\w+%])?\n?@\n?(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.)+(?:xn--[\w-]{1,40}|[^\W\d_]{2,24})(?!\w)"
)
_URL = re.compile(r"(?:\b(?:https?|ftp)://|\bwww\.)[^\s<>\"'`{}|\\^\[\]]{3,2000}", re.I)
_IPV4_HINT, _IPV6_HINT = re.compile(r"\d\.\d{1,3}\.\d"), re.compile(r":[\da-f]{0,4}:")
_COUNTED = re.compile(
    r"(?<![^\W_])(?:version|release|build|firmware|revision|section|sect?\.|chapter|clause|paragraph|article|appendix|§"
    r"|abschnitt|kapitel|artikel|ziffer|sección|sezione|capitolo|chapitre)(?: (?:is|no\.?|number|nr\.?))?[ :=]{1,3}\Z"
)
"""What a version or a section of a document stands behind: version 4.18.2.1."""
_MAC = re.compile(
    r"(?<![0-9A-Fa-f:-])[0-9A-Fa-f]{2}(?:(?P<s>[:-])[0-9A-Fa-f]{2})(?:(?P=s)[0-9A-Fa-f]{2}){4}(?![0-9A-Fa-f:-])"
)
_PHONE_WORDS = words(
    "phones?[^a-z]", "telephone", r"fax\b", "telefax", "telefoo?n", r"tel\b", "mobile", r"mob\b", r"cell(?:phone)?\b",
    r"call(?:s|ed|ing|back)?\b", "sms", "whatsapp", "text me", r"dial(?:led|ling)?\b",
    "reach(?:ed)? (?:me|us|him|her)",
    "contact", r"desk(?: phone)?:", r"office(?: phone)?:", r"home(?: phone)?:", r"work(?: phone)?:", "handy",
    "rufnummer", "téléphone", "teléfono",
    "messages? (?:to|on|at)", r"answering\b", "hotline", "pager", "direct line",
)  # fmt: skip
_PHONE_BEHIND = re.compile(r"[ \-,(]{1,3}(?:office|fax|mobile|cell|home|work|phone)\b")
_NORTH_AMERICA = re.compile(
    r"(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}(?: ?(?:x|ext\.?) ?\d{1,6})?"
)
_PAIRS = re.compile(r"0\d(?:[ .-]\d\d){4}")
_LEAD = 12
"""Characters before the last groups of a number in which it may begin: +49 (0)30 12."""
_NO_PHONE = frozenset("$€£#=<>*")
_AREA = re.compile(r"0\d{1,5}[ /.-]{1,3}\d{2,}(?:[ .-]\d{2,}){0,4}|\(\d{2,5}\)[ /-]?\d{2,}(?:[ .-]\d{2,}){0,4}")
_RESERVED_URL = re.compile(
    r"(?:https?://)?(?:[\w-]+\.){0,4}(?:example\.(?:com|org|net)|[\w-]+\.(?:test|example|invalid)|localhost)\b", re.I
)


def emails(view: View) -> Iterator[Span]:
    for found in _EMAIL.finditer(view.text):
        yield Span("email", *found.span(), 0.97)


def urls(view: View) -> Iterator[Span]:
    for found in _URL.finditer(view.text):
        text = found.group().rstrip(".,;:!?)*'")
        if not _RESERVED_URL.match(text):
            yield Span("url", found.start(), found.start() + len(text), 0.95)


def may_be_dialled(view: View) -> bool:
    """Whether digits without a space or hyphen between them can be a telephone number here."""
    return "+" in view.text or ")" in view.text or "00" in view.text or mentioned(view, _PHONE_WORDS)


def phones(view: View, start: int, end: int) -> Iterator[Span]:
    """Telephone and fax numbers around the digits [start, end): the form of a country, or a word such as "call" near
    a number of 7 to 15 digits."""
    text = view.text
    for found in NUMBER.finditer(text, max(start - _LEAD, 0), min(end + _LEAD, len(text))):
        if found["kept"]:
            continue
        start, end = found.span()
        digits = sum(map(str.isdigit, re.split("x|ext", found.group())[0]))
        around = text[max(start - 1, 0) : start] + text[end : end + 1]
        if 7 <= digits <= 15 and not _NO_PHONE.intersection(around):
            called = said(view, start - REACH, start, _PHONE_WORDS) or _PHONE_BEHIND.match(view.low, end)
            yield Span("phone", start, end, confidence(_phone_prior(found.group(), digits), NEAR if called else 1))


def _phone_prior(text: str, digits: int) -> float:
    """The share of numbers written like this that are dialled."""
    if text[0] == "+":
        return 0.95 if digits >= 8 else 0.5
    if _NORTH_AMERICA.fullmatch(text) or _PAIRS.fullmatch(text):
        return 0.75
    groups = re.findall(r"\d+", text)
    if _AREA.fullmatch(text) and digits >= (8 if text[0] == "(" else 9):
        return 0.6 if text[0] == "(" or ("-" not in text and "." not in text) else 0.3
    if text.startswith("00") and digits >= 10:
        return 0.6 if len(groups) > 1 else 0.2
    if len(groups) > 1:
        return 0.05 if max(map(len, groups)) >= 3 or len(groups) == 4 else 0.005
    return 0.03


def ips(view: View) -> Iterator[Span]:
    """Addresses of machines, without those that the internet reserves for this machine, documents and benchmarks."""
    for pattern, hint in ((IPV4, _IPV4_HINT), (IPV6, _IPV6_HINT)):
        if not hint.search(view.low):
            continue
        for found in pattern.finditer(view.text):
            text = found.group()
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                continue
            if address.is_loopback or address.is_unspecified or address.is_multicast or _documents(address):
                continue
            if _COUNTED.search(view.low, max(found.start() - 24, 0), found.start()):
                continue
            # A version may look like 10.2.0.4, an hour like ::1.
            yield Span("ip_address", *found.span(), 0.6 if address.is_private or text[0] in "01" else 0.9)


def macs(view: View) -> Iterator[Span]:
    for found in _MAC.finditer(view.text):
        if not found.group().lower().startswith(("02:00", "02-00", "00:00:00:00", "ff:ff:ff")):
            yield Span("mac_address", *found.span(), 0.95)


def _documents(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return any(address in network for network in _DOCUMENTS if network.version == address.version)


_DOCUMENTS = tuple(
    map(ipaddress.ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15", "2001:db8::/32"))
)
"""RFC 5737, 2544 and 3849."""
