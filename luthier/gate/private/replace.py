"""What stands in the place of private data: its kind, or a pseudonym that is always the same for the same value.

A pseudonym is drawn by HMAC-SHA-256 under a key, from a range that is reserved for documents and tests or that nobody
can have, so that it harms nobody and is known again: `find` does not report pseudonyms, and replacing twice changes
nothing more. Whoever holds the key can test a guess, so the key is kept outside of the run folder. Pseudonyms are not
anonymous data.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import secrets as tokens
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from pathlib import Path

from luthier.errors import InputError, StorageError
from luthier.gate.private.checks import IBAN_LENGTHS
from luthier.gate.private.reserved import NAME, SYLLABLES, SYLLABLES_IN_NAME
from luthier.gate.private.spans import Span, view
from luthier.masking import luhn

KEY_BYTES = 32
_NUMBER = r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?"
_JSON_NUMBER = re.compile(_NUMBER)
_JSON_TOKEN = re.compile(rf'"(?:[^"\\]|\\.)*"|{_NUMBER}', re.S)


def redact(text: str, spans: Iterable[Span]) -> str:
    """The text with each span replaced by its kind, as ⟨kind⟩. JSON stays JSON."""
    return replaced(text, spans, lambda span: f"⟨{span.kind.replace('_', '-')}⟩")


def pseudonymise(text: str, spans: Iterable[Span], *, key: bytes) -> str:
    """The text with each span replaced by the pseudonym of its value. JSON stays JSON."""
    return replaced(text, spans, lambda span: pseudonym(span.kind, text[span.start : span.end], key=key))


def pseudonym(kind: str, value: str, *, key: bytes) -> str:
    """What stands for a value: of the same kind where a range is reserved for that, else ⟨kind number⟩.

    The words of a name are drawn one by one, so that a surname alone is the same as within the full name.
    """
    if kind == "person_name":
        return " ".join(_name(word, key) for word in _plain(value).split())
    value = normal(kind, value)
    draw = _draw(kind, value, key)
    make = _SURROGATES.get(kind)
    return make(draw, value) if make else f"⟨{kind.replace('_', '-')} {draw % 16**8:08x}⟩"


def normal(kind: str, value: str) -> str:
    """The form in which two spellings of one value are equal."""
    plain = _plain(value).lower()
    if kind in _SPELT:
        return plain
    if kind == "phone":
        digits = re.sub(r"\D", "", re.sub(r"\(0\)", "", plain))
        return digits.removeprefix("00")
    return re.sub(r"[^0-9a-z]", "", plain)


def load_key(path: Path, *, outside: Path) -> bytes:
    """The key in a file; a new one is drawn and written, readable by its owner alone, where there is none.

    Raises:
        InputError: the file lies in the folder `outside`, where the data goes, or holds no key.
    """
    if path.resolve().is_relative_to(outside.resolve()):
        raise InputError(
            "the key of pseudonyms lies beside the data", where=str(path), do="keep it outside of the run folder"
        )
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(tokens.token_hex(KEY_BYTES) + "\n")
        text = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise StorageError("the key of pseudonyms cannot be read", where=str(path), got=error.strerror or "") from None
    except UnicodeDecodeError:
        text = ""
    if not re.fullmatch(rf"[0-9a-f]{{{2 * KEY_BYTES}}}", text):
        raise InputError(
            "this is no key of pseudonyms",
            where=str(path),
            got=f"{len(text)} characters",
            do=f"give a file of {2 * KEY_BYTES} hexadecimal digits, or none, and one is made",
        )
    return bytes.fromhex(text)


def replaced(text: str, spans: Iterable[Span], by: Callable[[Span], str]) -> str:
    """The text with `by(span)` in the place of each span. JSON stays JSON."""
    spans = sorted(spans, key=lambda span: span.start)
    bare = _bare_numbers(text, spans)
    pieces, at = [], 0
    for span in spans:
        start, end, new = span.start, span.end, by(span)
        if span.start in bare:
            start, end = bare[span.start]
            new = new if _JSON_NUMBER.fullmatch(new) else json.dumps(new, ensure_ascii=False)
        if start < at:
            continue  # a second one within the same number
        pieces += [text[at:start], new]
        at = end
    return "".join((*pieces, text[at:]))


def _bare_numbers(text: str, spans: Sequence[Span]) -> dict[int, tuple[int, int]]:
    """For spans that are numbers of a JSON document and stand in no string: the whole number that each is part of."""
    if not spans or text.lstrip()[:1] not in ("{", "["):
        return {}
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return {}
    starts = [span.start for span in spans]
    bare = {}
    for token in _JSON_TOKEN.finditer(text):
        start, end = token.span()
        if text[start] != '"':
            bare.update(dict.fromkeys(starts[bisect_left(starts, start) : bisect_left(starts, end)], (start, end)))
    return bare


def _plain(value: str) -> str:
    return " ".join(view(value).text.split())


def _draw(kind: str, value: str, key: bytes) -> int:
    return int.from_bytes(hmac.digest(key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), "sha256"), "big")


def _name(word: str, key: bytes) -> str:
    """A made-up name for a word of a name."""
    draw = _draw("person_name", word.strip(".,'").casefold(), key)
    count = len(SYLLABLES)
    return NAME + "".join(SYLLABLES[draw // count**place % count] for place in range(SYLLABLES_IN_NAME))


def _card(draw: int, value: str) -> str:
    """In the range 4000 00, which card processors give out for tests, with a right check digit."""
    head = f"400000{draw % 10**9:09}"
    return next(head + last for last in "0123456789" if luhn(head + last))


def _iban(draw: int, value: str) -> str:
    """A bank of zeros in the same country, with right check digits."""
    country = value[:2].upper()
    account = f"0000{draw:0>40}"[: IBAN_LENGTHS[country] - 4]
    number = int("".join(str(int(c, 36)) for c in f"{account}{country}00"))
    return f"{country}{98 - number % 97:02}{account}"


def _ipv(draw: int, value: str) -> str:
    return f"198.18.{draw % 256}.{draw // 256 % 256}"


_SPELT = frozenset(("email", "url", "ip_address", "secret", "private_key", "postal_address"))
_SURROGATES: dict[str, Callable[[int, str], str]] = {
    "email": lambda draw, _: f"user-{draw % 16**10:010x}@example.com",
    # 555-0100 to 0199 belongs to nobody in any area of North America.
    "phone": lambda draw, _: f"+1-{200 + draw % 800}-555-01{draw // 800 % 100:02}",
    "ip_address": lambda draw, value: (
        f"2001:db8::{draw % 16**4:x}:{draw // 16**4 % 16**4:x}" if ":" in value else _ipv(draw, value)
    ),
    "mac_address": lambda draw, _: "02:00:" + ":".join(f"{draw // 256**place % 256:02x}" for place in range(4)),
    "url": lambda draw, _: f"https://example.com/{draw % 16**10:010x}",
    "card_number": _card,
    "iban": _iban,
    "us_ssn": lambda draw, _: f"9{draw % 100:02}-{1 + draw // 100 % 49:02}-{1 + draw // 4900 % 9999:04}",
    # Nobody alive was born in these years.
    "date_of_birth": lambda draw, _: (date(1800, 1, 1) + timedelta(days=draw % 32_000)).isoformat(),
}
"""How a number is drawn for a kind. SSNs never begin with 9, and taxpayer numbers have other groups."""
