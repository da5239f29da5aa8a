"""Postal addresses: a street with a number, a box, a flat, a post code with its place, where they stand together.

Forms of the English-speaking countries and of Western, Central and Northern Europe. A part that many words look like
(Katie 23, Unit 4) counts where another part follows or a word announces it. Only the surroundings of numbers that stand
beside a capital are read, so that most rows cost next to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from luthier.gate.private.evidence import confidence, said, words
from luthier.gate.private.spans import Span, View

_UPPER = "".join(c for c in map(chr, range(0x41, 0x530)) if c.isupper())
_WORD = rf"[{_UPPER}][\w'.-]{{0,30}}"
_NUMBER = r"\d{1,5}(?:[A-Za-z]\b|[-/]\d{1,4})?"
_PLAIN = r"street|road|avenue|lane|drive|boulevard|crescent|terrace|court|square|close|gardens|parade|highway|parkway"
_AFTER = (  # Main Street
    r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Crescent|Cres|Close|Place|Pl|Square|Sq|"
    r"Terrace|Ter|Way|Highway|Hwy|Parkway|Pkwy|Circle|Cir|Gardens|Grove|Mews|Row|Hill|Trail|Quay|Wharf|Walk|Parade)"
)
_RUE = (  # Rue de la Paix
    r"(?:Rue|Avenue|Av\.?|Boulevard|Bd|Chemin|Impasse|Allée|Quai|Via|Viale|Piazza|Corso|Vicolo|Largo|Strada|Calle|C/|"
    r"Avenida|Avda\.?|Plaza|Paseo|Camino|Carretera|Glorieta|Cuesta|Pasaje|Pasadizo|Cañada|Alameda|Ronda|Rambla|Travesía|Callejón|"
    r"Contrada|Borgo|Località|Frazione|Rua|Travessa|Praça|Estrada|ul\.|al\.|os\.|Ulica)"
)
_ENDING = (  # Hauptstraße, Kerkstraat, Storgatan
    r"(?:stra(?:ß|ss)e|str\.|weg|gasse|platz|allee|ufer|damm|straat|laan|gracht|plein|gatan|gata|vägen|vegen|veien|gade|"
    r"vej|gården|torv|stien|katu|stræti|vegur|steeg|dreef|singel|kade|plantsoen"
    r"|-(?:Stra(?:ß|ss)e|Weg|Gasse|Platz|Allee|Ufer|Damm|Ring|Hof))"
)
_STREET_WORD = r"(?:[Ss]tra(?:ß|ss)e|[Ww]eg|[Aa]llee|[Pp]latz|u\.|utca|tér|[Pp]õik|[Vv]äg|[Gg]ata)"
_PARTICLE = r"(?:(?:de|la|le|du|des|del|della|dei|di|da|do|dos|van|von|der|den|el|los|las|al|of|the|d'|l') ?){0,3}"
_NAMED = rf"{_PARTICLE}{_WORD}(?: {_PARTICLE}{_WORD}){{0,4}}"
_UNIT = (
    r"(?i:apt|apartment|suite|ste|unit|flat|floor|room|rm|etage|appt|wohnung|piso|puerta|"
    r"appartamento|piano|interno)\.? ?#?\d{1,5}[A-Za-z]?\b"
)
_BOX = (
    r"(?i:p\.? ?o\.? ?box|post ?box|postfach|boîte postale|apartado|casella postale|postboks|postbus) ?\d{1,6}"
    r"|(?i:psc|unit) \d{1,5},? (?i:box) \d{1,5}"
)
_STREET = (
    rf"{_NUMBER},? (?!The )(?:{_WORD} ){{0,3}}?[{_UPPER}][\w'-]{{2,30}} {_AFTER}\b\.?(?: (?:N|S|E|W|NE|NW|SE|SW)\b)?"
    rf"|{_NUMBER},? (?i:{_RUE}|place|route) {_NAMED}"
    rf"|(?<!\w){_RUE} {_NAMED},? (?:n°|nº|nr\.?)? ?{_NUMBER}"
    rf"|(?<!\w)(?:{_WORD}[ -]){{0,3}}[{_UPPER}][\w-]{{1,30}}{_ENDING},? {_NUMBER}"
    rf"|(?<!\w)(?:{_WORD} ){{1,3}}{_STREET_WORD} {_NUMBER}"
)
_WEAK = (
    rf"\d{{1,5}},? (?:[a-z]{{3,15}} ){{1,3}}?(?:{_PLAIN})\b"
    rf"|(?<!\w)(?:(?!{_RUE} ){_WORD} ){{1,4}}{_NUMBER}(?!\d|,? (?i:{_RUE}) )"
)
_STATE = (
    "(?:AL|AK|AZ|AR|CA|CO|CT|DE|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM|NY|NC|ND|OH|OK|OR|"
    "PA|RI|SC|SD|TN|TX|UT|VT|VA|WA|WV|WI|WY|DC|PR|GU|VI|AS|MP|FM|MH|PW|AA|AE|AP)"
)
_PLACE = (
    rf"(?:{_WORD} ){{0,3}}{_WORD},? {_STATE},? \d{{5}}(?:-\d{{4}})?\b"
    # United Kingdom, Canada
    r"|\b(?:[A-PR-UWYZ](?:\d{1,2}|[A-HK-Y]\d|[A-HK-Y]\d[\dABEHMNPRV-Y]|\d[A-HJKPS-UW])) ?\d[ABD-HJLNP-UW-Z]{2}\b"
    r"|\b[ABCEGHJ-NPRSTVXY]\d[ABCEGHJ-NPRSTV-Z] \d[ABCEGHJ-NPRSTV-Z]\d\b"
)
_PART = re.compile(
    rf"(?P<box>\b(?:{_BOX})\b)|(?P<unit>\b{_UNIT})|(?P<place>{_PLACE})|(?P<street>{_STREET})|(?P<weak>{_WEAK})"
)
_PRIORS = {"box": 0.8, "unit": 0.02, "place": 0.7, "street": 0.6, "weak": 0.02}
_TOGETHER = 40.0
"""A part of another kind beside one makes the odds so many times higher, and so does a post code behind them."""
_ANNOUNCED = words(
    "address", "lives? at", "living at", "located (?:at|in)", r"moved? to", r"resid\w+ (?:at|in)", "ship(?:ped)? to",
    "deliver(?:ed)? to", r"sen[dt](?: (?:it|this|that|them))? to", "anschrift", "adresse", r"wohn\w+ in",
    "dirección", "indirizzo",
    "office is (?:at|in)",
    "returns? to", "meet (?:me )?at", "based (?:at|in)",
)  # fmt: skip
_CLOSE = 24
"""Characters before an address in which it is announced."""
_LEAD = re.compile(r"(?<![\w.,-])\d{1,6},? \Z")
_BREAK = r"[ ,]{0,3}(?:\n[> ]{0,6}){0,2}[ ,]{0,3}"
_GLUE = re.compile(rf"{_BREAK}(?:and )?(?:\d{{1,6}} )?")
_TAIL = re.compile(
    rf"{_BREAK}(?P<mixed>[1-9]\d{{3}} ?[A-Z]{{2}})\b(?:{_BREAK}{_WORD}(?: {_WORD}){{0,2}}(?<![.,]))?|"  # 1017 AB
    rf"{_BREAK}\d{{4,5}} {_WORD}(?: {_WORD}){{0,2}}(?<![.,])|"  # 10115 Berlin
    rf"(?:{_BREAK}{_WORD}(?: {_WORD}){{0,3}}(?: \({_WORD}\))?){{0,4}}"
    rf"{_BREAK}\d{{3,6}}(?:[ -]\d{{2,4}})?(?![\w./-]| \d)"
)
_AROUND = 80
"""Characters before and after a number in which the rest of an address is looked for."""
_DIGITS = re.compile(r"\d+")
_BESIDE = re.compile(
    rf"[A-Za-z]?(?:[-/]\d{{1,4}})?,? "
    rf"(?:[{_UPPER}]|rue |via |calle |rua |[a-z]{{3,15}} (?:[a-z]{{3,15}} )?(?:{_PLAIN})\b)"
)
_POSTCODE = re.compile(
    r"(?i:\b(?:zip|post(?:al)? ?code|plz|code postal|c\.p\.)(?:[ -]?code)?)(?: is| was|:| =|=)?[ :\"']{1,4}"
    r"(?P<code>[A-Z]{0,2}[ -]?\d[\dA-Z]{1,4}(?:[ -][\dA-Z]{2,4})?)\b"
)


class Parts(NamedTuple):
    """Parts of one address that stand together."""

    start: int
    end: int
    kinds: frozenset[str]


def addresses(view: View) -> Iterator[Span]:
    """Addresses, each as far as its parts follow one another."""
    for start, end in _windows(view.text):
        parts: list[Parts] = []
        for found in _PART.finditer(view.text, start, end):
            kind = str(found.lastgroup)
            if parts and _GLUE.fullmatch(view.text, parts[-1].end, found.start()):
                parts[-1] = Parts(parts[-1].start, found.end(), parts[-1].kinds | {kind})
                continue
            lead = None
            if kind != "place":
                lead = _LEAD.search(view.text, max(found.start() - 8, 0), found.start())
            parts.append(Parts(lead.start() if lead else found.start(), found.end(), frozenset({kind})))
        yield from (_whole(view, part) for part in parts)


def postcodes(view: View) -> Iterator[Span]:
    """A post code behind a word that says so."""
    if any(stem in view.low for stem in ("zip", "post", "plz", "c.p.")):
        for found in _POSTCODE.finditer(view.text):
            yield Span("postal_address", *found.span("code"), 0.9)


def _whole(view: View, parts: Parts) -> Span:
    """The address with the place and post code behind it, where it has none yet."""
    tail = None
    if "place" not in parts.kinds:
        tail = _TAIL.match(view.text, parts.end, min(parts.end + _AROUND, len(view.text)))
    announced = said(view, parts.start - _CLOSE, parts.start, _ANNOUNCED)
    evidence = [_TOGETHER] * (len(parts.kinds) - 1 + bool(tail) + bool(announced))
    if tail and tail["mixed"]:
        evidence.append(2)  # digits and letters are less often something else: Winckelpad 5, 9461 XC Wierum
    sure = confidence(max(_PRIORS[kind] for kind in parts.kinds), *evidence)
    return Span("postal_address", parts.start, tail.end() if tail else parts.end, sure)


def _windows(text: str) -> Iterator[tuple[int, int]]:
    """Stretches around numbers that stand beside a capital; they do not overlap."""
    start = end = -1
    for number in _DIGITS.finditer(text):
        low, high = number.span()
        if high - low > 6:
            continue
        before = text[max(low - 24, 0) : low].rstrip(" ,#").rpartition(" ")[2]
        if not (before[:1].isupper() or before.lower() in _SMALL or _BESIDE.match(text, high)):
            continue
        if low - _AROUND > end:
            if end >= 0:
                yield start, end
            start = max(low - _AROUND, 0)
        end = min(high + _AROUND, len(text))
    if end >= 0:
        yield start, end


_SMALL = frozenset(
    ("straße", "strasse", "weg", "allee", "platz", "u.", "utca", "tér", "box", "apt.", "suite", "unit", "flat")
)
"""Words in small letters that a number may follow."""
