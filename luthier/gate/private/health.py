"""What health records hold: record and plan numbers, dates of birth, dates, ages; and devices and vehicles, which
HIPAA's Safe Harbor counts too."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date

from luthier.gate.private import checks
from luthier.gate.private.evidence import NEAR, confidence, near, words
from luthier.gate.private.shapes import Shape
from luthier.gate.private.spans import Span, View

_NUMBER = r"\.?[ _-]?(?:no|nr|number|num|nummer|id|code|#)\b"
_NAMED = 0.02
_OLDEST_BIRTH = 1890
"""Nobody alive was born earlier: pseudonyms stand there."""

SHAPES = (
    Shape(
        "medical_record",
        re.compile(r"[A-Z]{0,4}[ -]?\d[A-Z0-9]{3,14}|\d{2,4}(?:[ -]\d{2,6}){1,3}", re.I),
        tuple(range(5, 16)),
        _NAMED,
        words(
            r"mrn\b",
            *(
                word + rf"(?: ?records?)?{_NUMBER}"
                for word in ("medical", "health", "hospital", "clinical", "patient", "chart", "encounter", "admission")
            ),
            "medical record",
            "patientennummer",
            "fallnummer",
        ),
        before=True,
    ),
    Shape(
        "health_plan",
        re.compile(
            r"[1-9][AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y]\d-?[AC-HJKMNP-RT-Y][0-9AC-HJKMNP-RT-Y]\d-?[AC-HJKMNP-RT-Y]{2}\d\d"
        ),
        (11,),
        0.5,
        words("medicare", r"mbi\b", "beneficiary", "hicn"),
    ),
    Shape(
        "health_plan",
        re.compile(r"[A-Z]{0,4}[ -]?\d[A-Z0-9]{4,14}|\d{2,4}(?:[ -]\d{2,6}){1,3}", re.I),
        tuple(range(5, 16)),
        _NAMED,
        words(
            *(
                word + _NUMBER
                for word in ("member", "subscriber", "beneficiary", "enrollee", "policy", "insurance", "health ?plan")
            ),
            *(word + _NUMBER for word in ("medicare", "medicaid", "group")),
            "versicherten",
            "krankenversicher",
            r"mitgliedsn",
        ),
        before=True,
    ),
    Shape(
        "vehicle",
        re.compile(r"[A-HJ-NPR-Z0-9]{17}", re.I),
        (17,),
        0.1,
        words(r"vin\b", "vehicle", "chassis", "fahrgestell"),
        checks.vin,
        1 / 11,
    ),
    Shape(
        "vehicle",
        re.compile(r"(?=.*[A-Z])[A-Z0-9]{1,4}[ -]?[A-Z0-9]{1,4}[ -]?[A-Z0-9]{0,4}"),
        tuple(range(5, 9)),
        _NAMED,
        words(
            "license plate",
            "licence plate",
            "number plate",
            "vehicle plate",
            r"plate (?:no|number|#)",
            "kennzeichen",
            "immatriculation",
            r"registration (?:no|number|plate)",
        ),
        before=True,
    ),
    Shape(
        "device",
        re.compile(r"\d{2}-?\d{6}-?\d{6}-?\d"),
        (15,),
        0.02,
        words(r"imei\b"),
        checks.card,
        0.1,
    ),
    Shape(
        "device",
        re.compile(r"[A-Z0-9]{2,20}(?:-[A-Z0-9]{1,12}){0,4}", re.I),
        tuple(range(5, 25)),
        _NAMED,
        words(rf"serial{_NUMBER}", rf"device{_NUMBER}", rf"implant{_NUMBER}", "seriennummer"),
        before=True,
    ),
)

_MONTHS = (
    r"(?:jan(?:uary|uari?|vier|eiro)?|enero|gennaio|feb(?:ruary|ruari?|rero|braio)?|fév(?:rier)?|fevereiro"
    r"|mar(?:ch|s|zo|ço)?|märz|maart|apr(?:ile?)?|avr(?:il)?|abr(?:il)?|may|mai|mayo|maggio|maio|mei|june?|juin|juni|junio|junho|giugno"
    r"|july?|juli|julio|julho|juillet|luglio|aug(?:ust|ustus)?|ago(?:sto)?|août|sept?(?:ember|iembre|embre)?"
    r"|set(?:tembre|embro)?|oct(?:ober|ubre|obre)?|okt(?:ober)?|ott(?:obre)?|outubro|nov(?:ember|iembre|embre|embro)?"
    r"|dec(?:ember)?|dez(?:ember|embro)?|déc(?:embre)?|dic(?:iembre|embre)?)\.?"
)
_TIME = r"(?:[t ]\d{1,2}:\d\d(?::\d\d)?(?:\.\d{1,6})?z?)?"
_DATE = re.compile(
    rf"(?P<y1>\d{{4}})[-/.](?P<m1>\d{{1,2}})[-/.](?P<d1>\d{{1,2}}){_TIME}(?![-/.]?\d)"
    rf"|(?P<a>\d{{1,2}})(?P<s>[-/.]) ?(?P<b>\d{{1,2}})(?P=s) ?(?P<y2>\d{{4}}|\d\d){_TIME}(?![-/.]?\d)"
    rf"|(?P<d3>\d{{1,2}})(?:st|nd|rd|th|er|º|\.)?[ -](?:of |de )?{_MONTHS}[ ,-]{{1,2}}(?:de )?"
    rf"(?P<y3>\d{{4}}|\d\d)(?!\d)"
    rf"|\b{_MONTHS}[ -](?P<d4>\d{{1,2}})(?:st|nd|rd|th)?,?[ -](?P<y4>\d{{4}})(?!\d)",
)
# Begins with a digit, so that the search skips to it.
_DATE_HINT = re.compile(
    rf"\d(?:[-/.] ?\d{{1,2}}[-/.] ?\d\d|(?:st|nd|rd|th|er|º|\.)?,?[ -](?:\d{{4}}|(?:of |de )?{_MONTHS}))"
)
_BORN = words(
    "born",
    "birth",
    r"dob\b",
    r"do\.b\b",
    "geboren",
    r"geb\.",
    "geburt",
    "née? le",
    "née? en",
    "naissance",
    "nacid",
    "nacimiento",
    "nato (?:il|a)",
    "nata (?:il|a)",
    "nascit",
    "nascid",
    "nasciment",
    "geboorte",
    "urodz",
    "födel",
    "född",
)
_BORN_STEMS = (
    "born",
    "birth",
    "dob",
    "d.o.b",
    "gebor",
    "geb.",
    "geburt",
    "né",
    "naiss",
    "naci",
    "nat",
    "nasc",
    "geboo",
    "urodz",
    "föd",
)
_NUMBER_OF_YEARS = re.compile(r"\d{1,3}(?![\d%])")
_YEARS_BEHIND = re.compile(
    r"[- ]{0,2}(?:years?|yrs?|yr)[- ]{0,2}(?:old|of age)\b|[- ]?y[/. -]?o\b|[- ]?jahre? alt|[- ]?jährig"
    r"|[- ]?(?:ans|años|anni|anos)\b"
)
_AGE_BEFORE = re.compile(
    r"\b(?:aged?|age of|age is|turn(?:ed|s|ing)?|when (?:he|she|i|they) (?:was|is|were)|alter|im alter von|âge|edad)"
    r"(?: just)?[ :=]{1,3}\Z"
)
_NO_AGE_BEHIND = re.compile(r"[.,:/]\d| (?!years?\b|yrs?\b)\w")
OLDEST = 122
"""The greatest age that is proved."""


def dates(view: View, least: Mapping[str, float]) -> Iterator[Span]:
    """Dates of birth, by a word before them; every date, where a policy wants them."""
    every = "date" in least
    if not every and not any(map(view.low.__contains__, _BORN_STEMS)):
        return
    if not _DATE_HINT.search(view.low):
        return
    for found in _DATE.finditer(view.low):
        start, end = found.span()
        if start and (view.text[start - 1].isalnum() or view.text[start - 1] in "-/."):
            continue
        year = _year(found)
        if year is None:
            continue
        if _OLDEST_BIRTH <= year <= date.today().year and near(view, start, end, _BORN, before=True):
            yield Span("date_of_birth", start, end, confidence(0.1, NEAR), checked=True)
        elif every and year >= _OLDEST_BIRTH:
            yield Span("date", start, end, 0.8, checked=True)


def ages(view: View, above: float) -> Iterator[Span]:
    """Ages above a number of years: above 89 people are few (45 CFR 164.514)."""
    low = view.low
    for found in _NUMBER_OF_YEARS.finditer(low):
        start, end = found.span()
        if not above < int(found.group()) <= OLDEST or low[max(start - 1, 0) : start] in _NO_AGE_BEFORE:
            continue
        before = _AGE_BEFORE.search(low, max(start - 24, 0), start) and not _NO_AGE_BEHIND.match(low, end)
        if before or _YEARS_BEHIND.match(low, end):
            yield Span("age", start, end, 0.85)


_NO_AGE_BEFORE = tuple("0123456789.,/$-")


def _year(found: re.Match[str]) -> int | None:
    """The year of a date that the calendar has; None for what only looks like one."""
    parts = found.groupdict()
    if parts["y1"]:
        year, month, day = int(parts["y1"]), int(parts["m1"]), int(parts["d1"])
        return year if checks.day(year, month, day) else None
    if parts["y2"]:
        year, first, second = int(parts["y2"]), int(parts["a"]), int(parts["b"])
        year += (2000 if year <= date.today().year % 100 else 1900) if year < 100 else 0
        return year if checks.day(year, first, second) or checks.day(year, second, first) else None
    year, day = int(parts["y3"] or parts["y4"]), int(parts["d3"] or parts["d4"])
    return (year + 1900 if year < 100 else year) if 1 <= day <= 31 else None
