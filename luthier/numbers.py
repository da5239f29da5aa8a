"""Numbers written for people: three significant digits, thin spaces between thousands, minutes and seconds."""

from __future__ import annotations

import math
from typing import Any

THIN = "\u202f"
"""Narrow no-break space: groups digits and joins a number to its unit."""
MINUS = "\u2212"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


LONGEST_SETTING = 60
"""Characters of a setting that are shown."""


def number(value: float | None) -> str:
    """1234567 -> 1 234 567; 0.04567 -> 0.0457; 0.0000123 -> 1.23 × 10⁻⁵; None -> an en dash."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "∞" if value > 0 else f"{MINUS}∞" if value < 0 else "no number"
    if value < 0:
        return MINUS + number(-value)
    if isinstance(value, int) or value >= 1000:
        return f"{value:,.0f}".replace(",", THIN)
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    power = int(exponent)
    if power < -4:
        digits = mantissa.rstrip("0").rstrip(".")
        return f"{digits}{THIN}×{THIN}10{str(power).translate(_SUPERSCRIPT)}"
    return f"{value:.{max(2 - power, 0)}f}"


def short(value: float) -> str:
    """As `number`, without the zeros at the end: for settings and axes, where they claim nothing."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "×" not in text else text


def decimals(*values: float | None, half: float | None) -> int:
    """Decimals for values that stand in one row: two digits of `half`, half the width of their interval.

    Without an interval: three digits of the largest value.
    """
    known = [abs(value) for value in values if value is not None]
    if half:
        return max(1 - math.floor(math.log10(half)), 0)
    largest = max(known, default=0.0)
    return max(2 - math.floor(math.log10(largest)), 0) if largest else 2


def fixed(value: float | None, digits: int) -> str:
    """With so many decimals and thin spaces; a value that rounds to zero has no sign."""
    if value is None:
        return "–"
    text = f"{value:,.{digits}f}".replace(",", THIN)
    return text.replace("-", "" if float(f"{value:.{digits}f}") == 0 else MINUS)


def signed(value: float | None, digits: int | None = None) -> str:
    """As `number`, or as `fixed` where digits are given, with a plus sign in front of gains."""
    text = number(value) if digits is None else fixed(value, digits)
    return f"+{text}" if value is not None and text.strip("0.") and value > 0 else text


def duration(seconds: float | None) -> str:
    """0.42 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None:
        return "–"
    if seconds < 9.995:
        return f"{number(float(seconds))}{THIN}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60}{THIN}s"
    minutes = round(whole / 60)
    return f"{minutes // 60}{THIN}h {minutes % 60}{THIN}min"


def memory(size: float | None) -> str:
    """Bytes in decimal units: 1.23 GB."""
    if size is None:
        return "–"
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= factor:
            return f"{number(size / factor)}{THIN}{unit}"
    return f"{number(size)}{THIN}bytes"


def probability(p: float | None) -> str:
    """A p-value: never a bare zero."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else number(float(p))


def setting(item: Any) -> str:
    """A setting as people write it."""
    if item is None or isinstance(item, bool):
        return {None: "none", True: "yes", False: "no"}[item]
    if isinstance(item, float):
        return short(item) if item >= 1e-3 or item == 0 else f"{item:g}"
    if isinstance(item, dict) and "kind" in item:
        inner = ", ".join(f"{key} {setting(one)}" for key, one in item.items() if key != "kind")
        return f"{item['kind']} ({inner})" if inner else str(item["kind"])
    text = ", ".join(map(str, item)) or "none" if isinstance(item, (list, tuple)) else str(item)
    return text if len(text) <= LONGEST_SETTING else f"{text[: LONGEST_SETTING - 1]}…"
