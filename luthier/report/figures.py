"""The plots of the report, as inline SVG. Each is a pure function of values and a width in px.

A page shows each plot in two widths and hides one of them, so that text stays readable on a telephone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from markupsafe import Markup

from luthier.numbers import number, short, signed
from luthier.report.svg import CHARACTER, Frame, axes, clipped, document, element, line, padded, path, text, ticks

JSON = dict[str, Any]
NARROW = 480
"""Below this width plots put their labels above instead of beside."""
MOST_POINTS = 600


class Gain(NamedTuple):
    """A row of a forest plot: gains are to the right, whichever way the metric counts."""

    label: str
    value: float
    low: float | None
    high: float | None
    unit: str
    digits: int | None = None
    """Decimals of the numbers; None: three digits."""
    margin: float | None = None
    """The largest loss that still counts as not worse, drawn as a dashed line."""


def forest(rows: Sequence[Gain], width: int, *, title: str) -> Markup:
    """Differences with their intervals around a line of no change; one panel for each unit."""
    parts: list[Markup] = []
    beside, top = width >= NARROW, 4.0
    words = max(len(_interval_text(row)) for row in rows) * CHARACTER + 14
    left = min(max(len(row.label) for row in rows) * CHARACTER + 14, width * 0.3) if beside else 12
    span = Span(left, width - (words if beside else 12))
    for unit in dict.fromkeys(row.unit for row in rows):
        panel, top = _panel([row for row in rows if row.unit == unit], unit, span, top, beside=beside)
        parts += panel
    return document(width, top, title, parts)


class Span(NamedTuple):
    left: float
    right: float


def _panel(rows: Sequence[Gain], unit: str, span: Span, top: float, *, beside: bool) -> tuple[list[Markup], float]:
    left, right = span
    height = 34 if beside else 48
    ends = [
        v for row in rows for v in (row.value, row.low, row.high, -row.margin if row.margin else None) if v is not None
    ]
    low, high = padded([0.0, *ends], 0.12)
    bottom = top + height * len(rows) + 6
    frame = Frame(left, right, top, bottom, low, high, 0, 1)
    parts = []
    for value in ticks(low, high, max(int((right - left) / 80), 2)):
        x = frame.x(value)
        parts += [line(x, top, x, bottom, "zero" if value == 0 else "grid")]
        parts += [text(x, bottom + 16, signed(value) if value == 0 else _tick(value), anchor="middle")]
    for i, row in enumerate(rows):
        words = _interval_text(row)
        y = top + height * (i + (0.5 if beside else 0.68)) + 2
        if beside:
            label = clipped(row.label, int(left / CHARACTER))
            parts += [text(left - 12, y + 4, label, class_="strong", anchor="end"), text(right + 14, y + 4, words)]
        else:
            parts += [
                text(left, y - 14, clipped(row.label, 20), class_="strong halo"),
                text(right, y - 14, words, class_="halo", anchor="end"),
            ]
        if row.margin:
            x = frame.x(-row.margin)
            parts.append(line(x, y - 11, x, y + 11, "margin"))
        if row.low is not None and row.high is not None:
            parts.append(line(frame.x(row.low), y, frame.x(row.high), y, "interval"))
            parts += [line(frame.x(end), y - 5, frame.x(end), y + 5, "interval") for end in (row.low, row.high)]
        parts.append(element("circle", cx=frame.x(row.value), cy=y, r=5, class_="tuned dot"))
    zero = frame.x(0)
    if zero - left > 80:
        parts.append(text(zero - 8, bottom + 34, "← worse", class_="name", anchor="end"))
    room = right - zero > 80
    parts.append(text(zero + (8 if room else 0), bottom + 34, "better →" if room else "", class_="name"))
    caption = f"gain, {unit}" if unit else "gain"
    end = right if right - zero > len(caption) * CHARACTER + 80 else None
    if end:
        parts.append(text(end, bottom + 34, caption, class_="name", anchor="end"))
    else:
        parts.append(text(left, bottom + 50, caption, class_="name"))
    return parts, bottom + (48 if end else 62)


def _interval_text(row: Gain) -> str:
    if row.low is None or row.high is None:
        return signed(row.value, row.digits)
    return f"{signed(row.value, row.digits)}  [{signed(row.low, row.digits)} to {signed(row.high, row.digits)}]"


def _tick(value: float) -> str:
    return ("+" if value > 0 else "") + short(value)


def loss_curve(steps: Sequence[JSON], validations: Sequence[JSON], width: int, *, kept: int | None) -> Markup:
    """Loss of every step as points, their running mean as a line, and the validations with the kept one ringed."""
    losses = [float(step["loss"]) for step in steps]
    smooth = running_mean(losses)
    thin = range(0, len(steps), math.ceil(len(steps) / MOST_POINTS) or 1)
    low, high = padded([*losses, *(float(v["loss"]) for v in validations)])
    last = max([int(s["step"]) for s in steps] + [int(v["step"]) for v in validations] + [2])
    longest = max(len(short(value)) for value in ticks(low, high, 4))
    frame = Frame(longest * CHARACTER + 14, width - 14, 62, 290, 0, last, max(low, 0.0), high)
    x, y = frame.x, frame.y
    parts = axes(frame, x_label="optimizer step", y_label="loss", x_whole=True)
    parts += [element("circle", cx=x(steps[i]["step"]), cy=y(losses[i]), r=1.6, class_="faint") for i in thin]
    parts.append(path([(x(steps[i]["step"]), y(smooth[i])) for i in thin], "base curve"))
    parts.append(path([(x(v["step"]), y(v["loss"])) for v in validations], "tuned curve"))
    parts += [element("circle", cx=x(v["step"]), cy=y(v["loss"]), r=3, class_="tuned dot") for v in validations]
    keys = [("faint", "each step"), ("base", "running mean")] + ([("tuned", "validation")] if validations else [])
    for v in validations:
        if v["step"] == kept:
            centre = {"cx": x(v["step"]), "cy": y(v["loss"])}
            parts += [
                element("circle", **centre, r=8, class_="ring"),
                line(centre["cx"], centre["cy"] + 8, centre["cx"], 290, "margin"),
            ]
            keys.append(("ring", f"kept, step {v['step']}"))
    return document(width, 332, _loss_title(losses, smooth, validations, kept), parts + _legend(keys, width))


def _loss_title(losses: Sequence[float], smooth: Sequence[float], validations: Sequence[JSON], kept: int | None) -> str:
    title = f"Training loss over {len(losses)} steps: running mean from {number(smooth[0])} to {number(smooth[-1])}."
    best = next((v for v in validations if v["step"] == kept), None)
    return title + (f" Validation loss at the kept step {kept}: {number(best['loss'])}." if best else "")


def _legend(keys: Sequence[tuple[str, str]], width: int) -> list[Markup]:
    """Marks and their names from the right end of the first line, or from the left over two where it is narrow."""
    parts = []
    total = sum(len(name) * CHARACTER + 30 for _, name in keys)
    x, y = (width - total, 16.0) if total < width - 90 else (4.0, 12.0)
    for class_, name in keys:
        needed = len(name) * CHARACTER + 30
        if x + needed > width + 12:
            x, y = 4.0, y + 18
        if class_ in ("faint", "ring"):
            parts.append(element("circle", cx=x + 8, cy=y - 4, r=2 if class_ == "faint" else 5, class_=class_))
        else:
            parts.append(line(x, y - 4, x + 16, y - 4, f"{class_} curve"))
        parts.append(text(x + 21, y, name))
        x += needed
    return parts


def rate_curve(steps: Sequence[JSON], width: int) -> Markup:
    """The learning rate of every step."""
    rates = [float(step["rate"]) for step in steps]
    high = max(rates) * 1.08 or 1.0
    longest = max(len(short(value)) for value in ticks(0, high, 4))
    frame = Frame(longest * CHARACTER + 14, width - 14, 28, 118, 0, max(int(steps[-1]["step"]), 2), 0, high)
    parts = axes(frame, x_label="optimizer step", y_label="learning rate", x_whole=True)
    thin = sorted({*range(0, len(steps), math.ceil(len(steps) / MOST_POINTS)), len(steps) - 1})
    parts.append(path([(frame.x(steps[i]["step"]), frame.y(rates[i])) for i in thin], "base curve"))
    return document(width, 160, f"Learning rate: at most {short(max(rates))}, at the end {short(rates[-1])}.", parts)


def running_mean(values: Sequence[float]) -> list[float]:
    """Mean over about a twentieth of the run around each value, so that the line does not lag behind."""
    sums = [0.0, *accumulate(values)]
    reach, last = len(values) // 40, len(values) - 1
    result = []
    for i in range(len(values)):
        first, end = max(i - reach, 0), min(i + reach, last) + 1
        result.append((sums[end] - sums[first]) / (end - first))
    return result


def heat_map(labels: Sequence[str], counts: Sequence[Sequence[float]], width: int, *, name: str) -> Markup:
    """A confusion matrix: a row for each true label, a column for each answer, shaded by its share of the row."""
    characters = min(max(map(len, labels)), 16 if width >= 400 else 11)
    left = characters * CHARACTER + 28
    cell = min((width - left - 4) / len(labels), 44)
    top = characters * CHARACTER + 26
    parts = [text(0, top - 8, "true ↓", class_="name"), text(left, 12, "answered →", class_="name")]
    for i, label in enumerate(labels):
        middle = i * cell + cell / 2
        short_label = clipped(label, characters)
        at = f"translate({left + middle + 4:.1f} {top - 6:.1f}) rotate(-90)"
        parts.append(element("text", short_label, transform=at))
        parts.append(text(left - 8, top + middle + 4, short_label, anchor="end"))
        total = sum(counts[i])
        for j, count in enumerate(counts[i]):
            share = count / total if total else 0.0
            hint = element("title", f"{label}: {number(count)} of {number(total)} answered as {labels[j]}")
            box = {"x": left + j * cell, "y": top + i * cell, "width": cell - 1.5, "height": cell - 1.5}
            shade = element(
                "rect", hint, **box, rx=2, class_="right" if i == j else "wrong", fill_opacity=round(share, 3)
            )
            parts += [element("rect", **box, rx=2, class_="cell"), shade]
            if count and cell >= 15:
                x, y = box["x"] + cell / 2 - 1, box["y"] + cell / 2 + 3.5
                parts.append(text(x, y, number(count), class_="on" if share > 0.55 else "count", anchor="middle"))
    right = sum(row[i] for i, row in enumerate(counts))
    title = f"{name}: {number(right)} of {number(sum(map(sum, counts)))} rows on the diagonal, where answers are right."
    return document(width, top + cell * len(labels) + 6, title, parts)


def reliability(arms: Mapping[str, JSON], width: int) -> Markup:
    """Confidence against the share that was right; on the diagonal a model knows how sure it can be."""
    size = min(width - 60, 300)
    frame = Frame(44, 44 + size, 58, 58 + size, 0, 1, 0, 1)
    parts = axes(frame, x_label="confidence", y_label="share that was right")
    parts.append(line(frame.x(0), frame.y(0), frame.x(1), frame.y(1), "margin"))
    most = max([b["items"] for arm in arms.values() for b in arm["bins"]] + [1])
    for name, arm in arms.items():
        filled = [b for b in arm["bins"] if b["items"]]
        points = [(frame.x(b["confidence"]), frame.y(b["accuracy"]), b["items"]) for b in filled]
        parts.append(path([(x, y) for x, y, _ in points], f"{name} curve"))
        parts += [
            element(
                "circle",
                element("title", f"{items} rows"),
                cx=x,
                cy=y,
                r=2 + 3 * math.sqrt(items / most),
                class_=f"{name} dot",
            )
            for x, y, items in points
        ]
    title = "Calibration: " + "; ".join(f"{name} off by {short(arm['ece'])} on average" for name, arm in arms.items())
    return document(width, 58 + size + 40, title, parts + _legend([(name, name) for name in arms], width))


def bars(rows: Sequence[tuple[str, int]], width: int, *, name: str) -> Markup:
    """Counts as horizontal bars, each with its label before it and its number behind."""
    characters = min(max([len(label) for label, _ in rows] + [4]), 30 if width >= 400 else 16)
    left, most = characters * CHARACTER + 10, max([count for _, count in rows] + [1])
    room = width - left - max(len(number(count)) for _, count in rows) * CHARACTER - 12
    parts = []
    for index, (label, count) in enumerate(rows):
        y = index * 22
        parts += [
            text(left - 10, y + 15, clipped(label, characters), anchor="end"),
            element("rect", x=left, y=y + 4, width=max(count / most * room, 1.0), height=14, rx=2, class_="bar"),
            text(left + max(count / most * room, 1.0) + 8, y + 15, number(count)),
        ]
    return document(width, len(rows) * 22 + 4, f"{name}: " + ", ".join(f"{a} {number(b)}" for a, b in rows), parts)
