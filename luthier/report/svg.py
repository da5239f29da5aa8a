"""SVG in small pieces: elements, axes, ticks. Colours come from the page's style sheet through class names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from luthier.numbers import short

CHARACTER = 7.0
"""Width of a character of 12 px text, in px, on the safe side."""


class Frame(NamedTuple):
    """A plotting area in px, and the range of values that it shows."""

    left: float
    right: float
    top: float
    bottom: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        return self.left + (value - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.y_low) / (self.y_high - self.y_low) * (self.bottom - self.top)


def element(tag: str, content: object = "", /, **attributes: object) -> Markup:
    """One element; `class_` is `class`, underscores are hyphens, numbers are rounded to a tenth of a px."""
    written = Markup("").join(
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), round(value, 1) if isinstance(value, float) else value
        )
        for key, value in attributes.items()
    )
    return Markup("<{tag}{written}>{content}</{tag}>").format(tag=Markup(tag), written=written, content=escape(content))


def text(x: float, y: float, content: object, *, class_: str = "", anchor: str = "start") -> Markup:
    return element("text", content, x=x, y=y, class_=class_, text_anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def document(width: int, height: float, title: str, parts: Iterable[Markup]) -> Markup:
    """The figure with its title for screen readers; `width` is the widest that it is drawn."""
    return element(
        "svg",
        element("title", title) + Markup("\n").join(parts),
        viewBox=f"0 0 {width} {math.ceil(height)}",
        width=width,
        height=math.ceil(height),
        role="img",
        aria_label=title,
    )


def clipped(label: str, characters: int) -> str:
    return label if len(label) <= characters else label[: max(characters - 1, 1)] + "…"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round values in [low, high], about `wanted` of them, in steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """A range around all values, with some air, and never empty."""
    low, high = min(values), max(values)
    air = (high - low) * share or abs(high) * 0.1 or 1.0
    return low - air, high + air


def axes(frame: Frame, *, x_label: str, y_label: str, x_whole: bool = False) -> list[Markup]:
    """Grid lines with their values, and the names of both axes."""
    parts = []
    for value in ticks(frame.y_low, frame.y_high, 4):
        y = frame.y(value)
        parts += [line(frame.left, y, frame.right, y, "grid"), text(frame.left - 8, y + 4, short(value), anchor="end")]
    for value in ticks(frame.x_low, frame.x_high, max(int((frame.right - frame.left) / 90), 2)):
        if x_whole and value != int(value):
            continue
        x = frame.x(value)
        parts += [
            line(x, frame.bottom, x, frame.bottom + 4, "axis"),
            text(x, frame.bottom + 18, short(int(value) if x_whole else value), anchor="middle"),
        ]
    parts += [
        line(frame.left, frame.bottom, frame.right, frame.bottom, "axis"),
        text(frame.right, frame.bottom + 36, x_label, class_="name", anchor="end"),
        text(frame.left, frame.top - 10, y_label, class_="name"),
    ]
    return parts
