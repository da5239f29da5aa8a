"""Secrets: private keys, keys of services, tokens, passwords. Whoever reads the model may get them out, so they block.

Keys are known by their prefixes, passwords by the word before them, and what is left by chance: characters that look
drawn at random, beside a word such as `token`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from luthier.gate.private.evidence import near, words
from luthier.gate.private.spans import Span, View
from luthier.masking import PRIVATE_KEY, SECRET, URL_WITH_PASSWORD

_PREFIXES = (
    "sk-",
    "sk_",
    "pk-",
    "pk_",
    "rk-",
    "rk_",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "glpat-",
    "hf_",
    "akia",
    "asia",
    "aiza",
    "ya29.",
    "xox",
    "xapp-",
    "whsec_",
    "npm_",
    "pypi-",
    "dop_v1_",
    "shpat_",
    "shpca_",
    "shppa_",
    "shpss_",
    "sg.",
    "eyj",
    "bearer ",
    "gocspx-",
    "dapi",
    "pmak-",
    "hooks.slack",
    "api/webhooks/",
)
_ASSIGNED = re.compile(
    r"(?:password|passwd|passphrase|pwd|passwort|kennwort|contraseña|mot de passe|secret|token|"
    r"api[_ -]?key|auth|credentials?|"
    r"access[_ -]?key|private[_ -]?key|encryption[_ -]?key|account[_ -]?key|shared[_ -]?key)(?:[_-]\w{1,20})?"
    r"\\?[\"'`]?[ \t]{0,3}(?P<sign>:=|=>|={1,2}|:|(?:is|ist|lautet|es|est)(?=[ :\"'`]))[ \t]{0,3}"
    r"(?P<open>\\?[\"'`]?)(?P<value>[^\s\"'`<>\\]{6,200})"
)
_VERBS = (" is", " lautet", " es")
"""As in `_ASSIGNED`, each for those that begin with it."""
_STEMS = ("pass", "pwd", "kennwort", "contraseña", "secret", "token", "key", "credential", "auth")
_NO_SECRET = re.compile(
    r"(?i:[*x•.]{4,}.*|\$[{(].*|[{\[(%]+[a-z_.:|!-]*[}\])(]*|[{\[(%]+\w[\w.:|!-]*[}\])(]+s?|your[_-]?\w*|example\w*|changeme|redacted|removed|none|null|true|false|undefined|string|"
    r"required|optional|password\w*|os\.\w.*|process\.\w.*|[\w.]+\((?:[\w.,]*\))?|self\.\w+|env\.\w.*|https?:.*|\d{1,2}[/.-].*|⟨.*)"
)
_RANDOM = re.compile(r"[A-Za-z0-9+/_=-]{20,400}(?<![A-Za-z0-9+/_=-][=-])")
_SECRET_WORDS = words(
    "key", "secret", "token", "passw", "pwd", "auth", "credential", "bearer", "signature", "api", "kennwort"
)
_HEX = re.compile(r"[0-9a-fA-F]+")
BASE64_BITS, HEX_BITS, HEX_LENGTH = 4.5, 3.0, 32
"""Entropy per character of a string's own letters from which it may have been drawn at random."""


def secrets(view: View) -> Iterator[Span]:
    """Private keys, keys with a prefix, addresses with a password, assigned passwords, random strings."""
    text, low = view.text, view.low
    if "private key" in low:
        for found in PRIVATE_KEY.finditer(text):
            yield Span("private_key", *found.span(), 0.99)
    if "://" in low:
        for found in URL_WITH_PASSWORD.finditer(text):
            yield Span("secret", *found.span(), 0.95)
    if any(map(low.__contains__, _PREFIXES)):
        for found in SECRET.finditer(text):
            if _drawn(found.group()):
                yield Span("secret", *found.span(), 0.97)
    if ("=" in low or ":" in low or any(map(low.__contains__, _VERBS))) and any(map(low.__contains__, _STEMS)):
        yield from _assigned(view)
    if max(map(len, text.split()), default=0) < 20:
        return
    for found in _RANDOM.finditer(text):
        if looks_random(found.group()):
            sure = 0.9 if near(view, *found.span(), _SECRET_WORDS, before=True) else 0.4
            yield Span("secret", *found.span(), sure)


def looks_random(text: str) -> bool:
    """Whether a string may have been drawn at random: entropy, and for base64 a mixture of what words do not mix."""
    if _HEX.fullmatch(text):
        return len(text) >= HEX_LENGTH and entropy(text) >= HEX_BITS and not text.isdigit()
    mixed = any(map(str.isdigit, text)) and any(map(str.isupper, text)) and any(map(str.islower, text))
    return mixed and entropy(text) >= BASE64_BITS


def entropy(text: str) -> float:
    """Bits per character, by how often each of its own characters occurs (Shannon)."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _assigned(view: View) -> Iterator[Span]:
    for found in _ASSIGNED.finditer(view.low):
        value = view.text[found.start("value") : found.end("value")]
        value = value.rstrip(".,;:!?)]}" if not found["open"] else "")
        start = found.start()
        # With its brackets: they tell {password} from a password.
        whole = view.text[found.start("value") : found.end("value")].rstrip(".,;:!?")
        if (
            len(value) < 6
            or _NO_SECRET.fullmatch(value)
            or _NO_SECRET.fullmatch(whole)
            or (value.isupper() and value.replace("_", "").isalpha())
        ):
            continue
        if start and view.low[start - 1].isalpha():
            continue  # keypad: 123456 is no key, and neither is monkey
        start = found.start("value")
        kinds = sum(
            (any(map(str.isdigit, value)), any(map(str.isupper, value[1:])), any(not c.isalnum() for c in value))
        )
        # In prose any word may follow "password:"; in code what follows a sign and a quote is one.
        quoted = bool(found["open"]) and found["sign"] in ("=", ":", "=>", ":=") and " " not in value
        if kinds and (any(map(str.isdigit, value)) or kinds > 1):
            yield Span("secret", start, start + len(value), 0.9)
        elif quoted or found["sign"] == "=":
            yield Span("secret", start, start + len(value), 0.6)


def _drawn(text: str) -> bool:
    """Whether a key's tail is more than words: `sk-learn-compatible-estimator` is none."""
    return (
        any(map(str.isdigit, text)) or sum(map(str.isupper, text)) > 3 or (len(set(text)) > 14 and "-" not in text[4:])
    )
