"""Values that no person has: what pseudonyms are drawn from, and how they are known again.

They lie in ranges set aside for documents and tests, or in none that is ever given out. The rules do not see them, so
that a text with pseudonyms is clean, and replacing twice changes nothing more.
"""

from __future__ import annotations

import re

SYLLABLES = (
    "ba", "ce", "di", "fo", "gu", "ja", "ke", "li", "mo", "nu",
    "pa", "re", "si", "to", "vu", "wa", "ye", "zi", "xo", "qu",
)  # fmt: skip
SYLLABLES_IN_NAME = 4
"""160 000 names that no language has, each behind `NAME`."""
NAME = "Xo"
_MADE_UP = rf"{NAME}(?:{'|'.join(SYLLABLES)}){{{SYLLABLES_IN_NAME}}}"
_PSEUDONYM = re.compile(
    rf"⟨[^⟨⟩\n]{{1,80}}⟩|\b{_MADE_UP}(?: {_MADE_UP})*\b|"
    r"(?<!\w)(?:"
    r"user-[0-9a-f]{10}@example\.com"  # RFC 2606
    r"|https://example\.com/[0-9a-f]{10}"
    r"|\+1-[2-9]\d\d-555-01\d\d"  # belongs to nobody, in any area of North America
    r"|400000\d{10}"  # what card processors give out for tests
    r"|[A-Z]{2}\d{2}0000[0-9A-Z]{7,26}"  # no bank
    r"|9\d\d-[0-4]\d-\d{4}"  # no social security number, and no taxpayer number
    r"|18\d\d-\d\d-\d\d"  # nobody alive was born then
    r"|198\.18\.\d{1,3}\.\d{1,3}|2001:db8::[0-9a-f]{1,4}:[0-9a-f]{1,4}"  # RFC 2544, RFC 3849
    r"|02:00(?::[0-9a-f]{2}){4}"  # administered locally
    r")(?![\w@])"
)
_HINTS = ("⟨", NAME, "@example.com", "//example.com", "-555-01", "400000", "0000", "198.18.", "2001:db8:", "02:00:")
_HINT = re.compile(r"9\d\d-[0-4]\d-\d|18\d\d-\d\d-\d")


def pseudonyms(text: str) -> list[tuple[int, int]]:
    """Where pseudonyms and ⟨kinds⟩ stand."""
    if any(map(text.__contains__, _HINTS)) or _HINT.search(text):
        return [found.span() for found in _PSEUDONYM.finditer(text)]
    return []
