"""Text that people do not see and models read: hidden characters, look-alike letters, blobs, injected orders.

Joiners and marks stay where a script or an emoji needs them: Persian, Hindi, Arabic, Hebrew, Thai, flags, families.
"""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from luthier.gate.lookalikes import mixed_words
from luthier.gate.overrides import find_override
from luthier.gate.prose import prose, settled
from luthier.gate.rows import Hit, Row
from luthier.gate.rules import Rule
from luthier.masking import mask

if TYPE_CHECKING:
    from luthier.gate.policy import Policy

RULES: dict[str, Rule] = {
    "zero_width": Rule(
        title="characters without width",
        why="They split words into other tokens, and they carry hidden messages and marks of origin.",
        remedy="Remove them with luthier data clean; look at what wrote them.",
        severity="warn",
        mend="repair",
        about="Zero-width spaces and joiners, word joiners, soft hyphens, byte order marks, fillers. Joiners between "
        "emoji and next to letters of Arabic, Indic and South-East Asian scripts are left alone.",
    ),
    "bidi_control": Rule(
        title="characters that turn the reading direction",
        why="What a reviewer sees is not the order in which the model reads it (CVE-2021-42574).",
        remedy="Remove them with luthier data clean.",
        severity="warn",
        mend="repair",
        about="Direction marks, embeddings, overrides and isolates. Marks, and pairs that are closed in their line, "
        "are left alone in text with Hebrew or Arabic letters; overrides never are.",
    ),
    "tag_character": Rule(
        title="invisible tag characters",
        why="They spell out ASCII that no reader sees and every model can: an order fits in.",
        remedy="Remove them with luthier data clean, and find out who wrote the row.",
        severity="block",
        mend="repair",
        about="U+E0000 to U+E007F, except in the flags of England, Scotland, Wales and the like.",
    ),
    "variation_run": Rule(
        title="variation selectors that vary nothing",
        why="A run of them encodes bytes behind one visible character.",
        remedy="Remove them with luthier data clean.",
        severity="block",
        mend="repair",
        about="More than two in a row, or one after a letter or space that has no variants. One after an emoji, a "
        "symbol, a digit of a keycap or a Chinese character is left alone.",
    ),
    "private_use": Rule(
        title="characters of private use",
        why="They mean something only with one font: a bullet of an old document, a logo, or nothing.",
        remedy="Write what they stood for.",
        severity="info",
        about="U+E000 to U+F8FF and planes 15 and 16.",
    ),
    "lookalike": Rule(
        title="word with letters of two scripts that look alike",
        why="A word that reads as usual is another one to the model: filters and labels miss it.",
        remedy="Write it in one script with luthier data clean.",
        severity="warn",
        mend="repair",
        about="Latin words in which every Cyrillic or Greek letter has a Latin twin, and the other way round. Units "
        "(kΩ), names of genes (TNFα) and Russian endings on Latin names (iPhoneа) are left alone.",
    ),
    "encoded_text": Rule(
        title="encoded blob that decodes to text",
        why="It hides from every reader and every other check what a model may have learnt to decode.",
        remedy="Decode it and look; remove it, or write it out.",
        severity="warn",
        thresholds={"characters": 80},
        about="Base64 (also the URL alphabet, also over several lines) or hex, of at least `characters`, that decodes "
        "to printable UTF-8 with spaces or letters throughout. Pictures and keys do not decode to text.",
    ),
    "override": Rule(
        title="order to ignore instructions",
        why="A model that learns to follow such orders from documents and tools can be steered by whoever writes them.",
        remedy="Remove the row; where it is a test case, let a user say it and the assistant decline.",
        severity="block",
        mend="drop",
        about="“Ignore all previous instructions” and kin in 14 languages, switches of persona, and asking for the "
        "system prompt, in assistant, system or tool text. Hidden characters and look-alikes are undone first.",
    ),
    "override_mentioned": Rule(
        title="order to ignore instructions, by a user or in a quotation",
        why="It is an attack, or a case that teaches the model to withstand one: only a person can tell.",
        remedy="Look at the answer: the assistant must not obey.",
        severity="warn",
        about="As `override`, in user turns and plain text, or where the sentence forbids or reports it (never, "
        "refuse, if a user asks to).",
    ),
    "remote_content": Rule(
        title="picture or script from elsewhere",
        why="An answer that shows a remote picture sends what stands in its address to a stranger.",
        remedy="Remove it, or name the source in words.",
        severity="warn",
        about="Markdown and HTML pictures with an http address, scripts, frames, event handlers and javascript: links, "
        "outside of code.",
    ),
}


class Span(NamedTuple):
    start: int
    end: int
    rule: str


def look(row: Row, policy: Policy) -> Iterator[Hit]:
    """Every rule of this module on one row."""
    for field in row.fields:
        text = field.text
        spans: list[Span] = []
        if not text.isascii():
            spans = list(_spans(text))
            yield from _grouped(row.id, field.path, text, spans)
        longest = max(map(len, text.split()), default=0)
        if longest >= _FEWEST_ENCODED:
            yield from _blobs(row.id, field.path, text, policy.number("encoded_text", "characters"))
        found = find_override(text)
        if found is None and (spans or not unicodedata.is_normalized("NFKC", text)):
            found = find_override(revealed(text))
            found = found and found._replace(start=0, end=len(text))
        if found:
            learnt = field.role not in ("user", "text") and not found.mentioned
            seen = f"in {found.language}: “{mask(found.phrase)[:80]}”"
            yield Hit("override" if learnt else "override_mentioned", row.id, seen, field.path, found.start, found.end)
        if "<" in text or "](" in text:
            yield from _remote(row.id, field.path, prose(text))


def revealed(text: str) -> str:
    """The text as a reader takes it: without hidden characters, look-alikes and styled letters written plainly."""
    for repair in REPAIRS.values():
        text = repair(text)
    return unicodedata.normalize("NFKC", text)


def _grouped(row: str, path: str, text: str, spans: list[Span]) -> Iterator[Hit]:
    """One hit for each rule and field, at the first place."""
    for rule in dict.fromkeys(span.rule for span in spans):
        of_rule = [span for span in spans if span.rule == rule]
        first, count = of_rule[0], sum(span.end - span.start for span in of_rule)
        if rule == "lookalike":
            seen = f"{len(of_rule)} words with letters of two scripts, the first of {first.end - first.start} letters"
        else:
            kinds = sorted(
                {f"U+{ord(c):04X}" for span in of_rule for c in text[span.start : min(span.end, span.start + 8)]}
            )
            seen = f"{count} characters: {', '.join(kinds[:6])}{' and others' if len(kinds) > 6 else ''}"
        yield Hit(rule, row, seen, path, first.start, first.end, score=float(count))


# Hidden characters

_JOINED = "\u0600-\u061b\u061d-\u08ff\u0900-\u0dff\u0f00-\u109f\u1780-\u17b3\u17b6-\u17ff\u1800-\u180a\u1810-\u18af"
_JOINED += "\u1a00-\u1cff\ua800-\ua8ff\uaa00-\uaaff\uabc0-\uabff\ufb50-\ufdff\ufe70-\ufefc\U00011000-\U00011fff"
"""Scripts whose letters change with their neighbours, where joiners spell."""
_UNSPACED = "\u0e00-\u109f\u1780-\u17b3\u17b6-\u17ff\u1950-\u19ff"
"""Thai, Lao, Tibetan, Burmese, Khmer: zero-width spaces part the words."""
_EMOJI = "\u00a9\u00ae\u2190-\u21ff\u2300-\u23ff\u2460-\u24ff\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff\u3030\u303d\u3297"
_EMOJI += "\u3299\U0001f000-\U0001faff"
_SELECTORS = "\ufe00-\ufe0f\U000e0100-\U000e01ef"
_BIDI = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_NARROW = "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u206a-\u206f\u3164\ufeff\uffa0"
_NARROW += "\ufff9-\ufffb"
_PRIVATE = "\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd"
_TAGS = "\U000e0000-\U000e007f"
_HAN = "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SUSPECT = re.compile(f"[{_NARROW}{_BIDI}{_SELECTORS}{_TAGS}{_PRIVATE}]")
_HIDDEN = re.compile(
    "|".join(
        (
            # What is meant, at the characters that could be suspect:
            f"(?<=[{_JOINED}])[\u200c\u200d]{{1,2}}(?![{_NARROW}])",
            f"[\u200c\u200d]{{1,2}}(?=[{_JOINED}])",
            f"(?<=[{_UNSPACED}])\u200b(?!\u200b)|\u200b(?=[{_UNSPACED}])",
            f"(?<=[{_EMOJI}\ufe0f])\u200d(?=[{_EMOJI}])",
            "(?<=[\u0300-\u036f\u0590-\u05ff])\u034f(?=[\u0300-\u036f\u0590-\u05ff])",
            "(?<=[\u1100-\u115e\u1161-\u11ff])[\u115f\u1160]|[\u115f\u1160](?=[\u1161-\u11ff])",
            "(?<=[\u1800-\u180a\u1810-\u18af])[\u180b-\u180f]",
            "(?<=\U0001f3f4)[\U000e0030-\U000e0039\U000e0061-\U000e007a]{1,6}\U000e007f",
            f"(?<=[0-9#*])[\ufe00\ufe0e\ufe0f](?![{_SELECTORS}])",
            f"(?<=[^\\s\\x00-\\x7f\u00aa-\u00ac\u00af-\u024f{_NARROW}{_BIDI}{_SELECTORS}{_TAGS}])"
            f"[\ufe00-\ufe0f]{{1,2}}(?![{_SELECTORS}])",
            f"(?<=[{_HAN}])[\U000e0100-\U000e01ef](?![{_SELECTORS}])",
            # What is not:
            f"(?P<zero_width>[{_NARROW}]+)",
            f"(?P<bidi_control>[{_BIDI}]+)",
            f"(?P<tag_character>[{_TAGS}]+)",
            f"(?P<variation_run>[{_SELECTORS}]+)",
            f"(?P<private_use>[{_PRIVATE}]+)",
        )
    )
)
_RIGHT_TO_LEFT = re.compile("[\u0590-\u060b\u060d-\u061a\u0620-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff]")


def _spans(text: str) -> Iterator[Span]:
    """What is hidden in a text that is not ASCII, and its look-alike words."""
    if _SUSPECT.search(text):
        for match in _HIDDEN.finditer(text):
            rule = match.lastgroup
            if rule and (rule != "bidi_control" or not _directs(text)):
                yield Span(match.start(), match.end(), rule)
    for start, end, _ in mixed_words(text):
        yield Span(start, end, "lookalike")


def _directs(text: str) -> bool:
    """Whether the direction characters serve right-to-left text: pairs are closed in their line, nothing overrides."""
    if "\u202d" in text or "\u202e" in text or not _RIGHT_TO_LEFT.search(text):
        return False
    for line in text.split("\n"):
        opened = ""
        for mark in re.findall("[\u202a-\u202c\u2066-\u2069]", line):
            if mark in "\u202c\u2069":
                if not opened or (opened[-1] in "\u202a\u202b") != (mark == "\u202c"):
                    return False
                opened = opened[:-1]
            else:
                opened += mark
        if opened:
            return False
    return True


def _without(rule: str, text: str) -> str:
    if text.isascii() or not _SUSPECT.search(text):
        return text
    return settled(lambda now: _cut(now, [span for span in _spans(now) if span.rule == rule]), text)


def _cut(text: str, spans: list[Span]) -> str:
    pieces, at = [], 0
    for start, end, _ in spans:
        pieces.append(text[at:start])
        at = end
    return "".join([*pieces, text[at:]])


def _in_one_script(text: str) -> str:
    pieces, at = [], 0
    for start, end, plain in mixed_words(text):
        pieces += [text[at:start], plain]
        at = end
    return "".join([*pieces, text[at:]])


REPAIRS: dict[str, Callable[[str], str]] = {
    **{rule: partial(_without, rule) for rule in ("zero_width", "bidi_control", "tag_character", "variation_run")},
    "lookalike": _in_one_script,
}
"""Rule -> the text without what the rule found. Each is idempotent."""


# Blobs

_FEWEST_ENCODED = 40
_BASE64 = re.compile(r"(?<![\w+/-])[A-Za-z0-9+/_-]{40,}={0,2}(?:\r?\n[A-Za-z0-9+/_-]{4,}={0,2}(?![^\s\"'<)]))*")
_HEX = re.compile(r"(?:[0-9a-f]{2})+|(?:[0-9A-F]{2})+")


def _blobs(row: str, path: str, text: str, fewest: float) -> Iterator[Hit]:
    for match in _BASE64.finditer(text):
        blob = "".join(match.group().split())
        if len(blob) < fewest:
            continue
        decoded, how = _decoded(blob)
        if decoded:
            order = " with an order to ignore instructions" if find_override(decoded) else ""
            seen = f"{len(blob)} characters of {how} that decode to {len(decoded)} characters of text{order}"
            yield Hit("encoded_text", row, seen, path, match.start(), match.end(), score=float(len(blob)))


def _decoded(blob: str) -> tuple[str, str]:
    """The text in a blob, and how it was encoded; empty where it holds none."""
    if _HEX.fullmatch(blob):
        return _as_text(bytes.fromhex(blob)), "hex"
    plain = blob.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        # A last lone character holds six bits, no byte.
        whole = plain[: len(plain) - (len(plain) % 4 == 1)]
        return _as_text(base64.b64decode(whole + "=" * (-len(whole) % 4), validate=True)), "base64"
    except binascii.Error:
        return "", ""


def _as_text(data: bytes) -> str:
    """Printable text, in UTF-8 or in UTF-16; words of a path or a long name decode to bytes that are neither."""
    for encoding in ("utf-8", "utf-16-le"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        letters = sum(c.isalpha() or c in " \n" for c in text)
        if letters >= 0.6 * len(text) and all(c.isprintable() or c in "\t\n\r" for c in text):
            if encoding == "utf-8" or text.isascii():
                return text
    return ""


# What is fetched from elsewhere

_REMOTE = re.compile(
    r"!\[[^\[\]\n]{0,300}\]\(\s{0,3}<?(?P<picture>https?://)[^\s()]{1,2000}"
    r"|<(?:img|image|video|audio|source|embed|object|input|link)\s[^<>]{0,500}?(?:src|href|data)\s{0,3}=\s{0,3}"
    r"[\"']?(?P<source>(?:https?:)?//)[^<>]{0,2000}"
    r"|<(?P<script>script|iframe|frame)\b[^<>]{0,500}>?"
    r"|<[a-z][a-z0-9]{0,15}\s[^<>]{0,500}?\b(?P<handler>on[a-z]{3,20})\s{0,3}=\s{0,3}[\"'][^<>]{0,500}"
    r"|(?:\]\(|(?:href|src)\s{0,3}=\s{0,3}[\"']?)\s{0,3}(?P<link>javascript|vbscript|data:text/html)\s{0,3}[:;,]",
    re.IGNORECASE,
)
_KINDS = {
    "picture": "a picture",
    "source": "a picture or file",
    "script": "a script or frame",
    "handler": "an event handler",
    "link": "a link that runs",
}


def _remote(row: str, path: str, text: str) -> Iterator[Hit]:
    matches = list(_REMOTE.finditer(text))
    if matches:
        kinds = list(dict.fromkeys(_KINDS[str(match.lastgroup)] for match in matches))
        seen = f"{', '.join(kinds)} ({len(matches)} in all)"
        yield Hit("remote_content", row, seen, path, matches[0].start(), matches[0].end(), score=float(len(matches)))
