"""Figures of the result pages: bars of rates, lines of cost against size, and curves with the spread of their runs.
Drawn with the report's own SVG pieces."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from luthier.report import svg

STYLE = """
svg { font: 12px system-ui, sans-serif; background: #fff; } text { fill: #333; } .name { fill: #666; }
.grid { stroke: #e5e5e5; } .axis { stroke: #999; } .ours { fill: #0b6e75; } .theirs { fill: #b9bec5; }
.whisker { stroke: #333; } .floor { stroke: #b3261e; stroke-dasharray: 4 3; }
polyline { fill: none; stroke-width: 2; } .line0 { stroke: #0b6e75; } .line1 { stroke: #c2661c; }
.dot0, .band0 { fill: #0b6e75; } .dot1, .band1 { fill: #c2661c; }
.band0, .band1 { fill-opacity: 0.18; } .over { stroke-dasharray: 6 3; }
"""
WIDTH, ROW, LABEL = 860, 26, 380


def bars(
    path: Path, title: str, rows: Sequence[tuple[str, float, float, float, bool]], *, floor: float | None, unit: str
) -> None:
    """Horizontal bars with whiskers from the lowest to the highest run, and the floor as a dashed line.

    Args:
        rows: (name, median, low, high, whether it is ours), as they are to stand.
    """
    bottom = 34.0 + ROW * len(rows)
    highest = max([high for _, _, _, high, _ in rows] + ([floor] if floor else []))
    frame = svg.Frame(LABEL, WIDTH - 60.0, 24.0, bottom, 0.0, highest * 1.05, 0.0, 1.0)
    parts: list[Markup] = []
    for value in svg.ticks(0, highest, 5):
        parts += [
            svg.line(frame.x(value), frame.top, frame.x(value), bottom, "grid"),
            svg.text(frame.x(value), bottom + 16, f"{value:g}", anchor="middle"),
        ]
    parts.append(svg.text(frame.right, bottom + 34, unit, class_="name", anchor="end"))
    for n, (name, median, low, high, ours) in enumerate(rows):
        y = 30.0 + ROW * n
        kind = "ours" if ours else "theirs"
        width = frame.x(median) - frame.left
        parts += [
            svg.text(LABEL - 8, y + 13, svg.clipped(name, 54), anchor="end"),
            svg.element("rect", x=frame.left, y=y, width=width, height=16.0, class_=kind),
            svg.line(frame.x(low), y + 8, frame.x(high), y + 8, "whisker"),
            svg.text(frame.x(high) + 5, y + 12, f"{median:.0f}"),
        ]
    if floor:
        x = frame.x(floor)
        parts += [svg.line(x, frame.top, x, bottom, "floor"), svg.text(x, 16, "GEMM floor", anchor="middle")]
    _save(path, bottom + 42, title, parts)


def logarithmic(
    path: Path, title: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, x_label: str, y_label: str
) -> None:
    """Lines on two logarithmic axes, where a slope is a power; a point for each measurement."""
    points = [point for line in lines.values() for point in line]
    x_low, x_high = svg.padded([math.log10(x) for x, _ in points])
    y_low, y_high = svg.padded([math.log10(y) for _, y in points])
    frame = svg.Frame(70.0, 560.0, 36.0, 300.0, x_low, x_high, y_low, y_high)
    parts = [svg.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    for power in range(math.ceil(y_low), math.floor(y_high) + 1):
        y = frame.y(power)
        parts += [
            svg.line(frame.left, y, frame.right, y, "grid"),
            svg.text(62, y + 4, f"{10.0**power:g}", anchor="end"),
        ]
    for x_value in sorted({x for x, _ in points}):
        x = frame.x(math.log10(x_value))
        parts.append(svg.text(x, frame.bottom + 18, _count(x_value), anchor="middle"))
    parts += [
        svg.text(frame.right, frame.bottom + 36, x_label, class_="name", anchor="end"),
        svg.text(frame.left, 18, y_label, class_="name"),
    ]
    for n, (name, line) in enumerate(lines.items()):
        places = [(frame.x(math.log10(x)), frame.y(math.log10(y))) for x, y in line]
        parts.append(svg.path(places, f"line{n}"))
        parts += [svg.element("circle", cx=x, cy=y, r=3, class_=f"dot{n}") for x, y in places]
        parts.append(svg.text(places[-1][0] + 8, places[-1][1] + 4, name))
    _save(path, 350, title, parts)


def bands(
    path: Path,
    title: str,
    lines: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]],
    *,
    x_label: str,
    y_label: str,
) -> None:
    """The mean of several runs as a line, in a band from the lowest to the highest of them.

    Args:
        lines: name -> (places on the x axis, the values of each run there); at most two, the second is dashed.
    """
    places = [x for xs, _ in lines.values() for x in xs]
    y_low, y_high = svg.padded([y for _, runs in lines.values() for run in runs for y in run])
    frame = svg.Frame(70.0, 620.0, 36.0, 300.0, min(places), max(places), y_low, y_high)
    parts = svg.axes(frame, x_label=x_label, y_label=y_label, x_whole=True)
    if y_low < 0 < y_high:
        parts.append(svg.line(frame.left, frame.y(0), frame.right, frame.y(0), "axis"))
    for n, (name, (xs, runs)) in enumerate(lines.items()):
        columns = list(zip(*runs, strict=True))
        low, mean, high = (
            [(frame.x(x), frame.y(of(column))) for x, column in zip(xs, columns, strict=True)]
            for of in (min, statistics.fmean, max)
        )
        outline = " ".join(f"{x:.1f},{y:.1f}" for x, y in [*low, *reversed(high)])
        y = frame.top + 10 + 20 * n
        style = f"line{n} over" if n else "line0"
        parts += [
            svg.element("polygon", points=outline, class_=f"band{n}"),
            svg.path(mean, style),
            svg.path([(frame.right + 14, y), (frame.right + 38, y)], style),
            svg.text(frame.right + 44, y + 4, name),
        ]
    _save(path, 350, title, parts)


def _count(value: float) -> str:
    return f"{value / 1024:g}k" if value >= 1024 else f"{value:g}"


def _save(path: Path, height: float, title: str, parts: Sequence[Markup]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    style = Markup("<style>{}</style>").format(Markup(STYLE))
    drawn = svg.document(WIDTH, height, title, [style, *parts])
    path.write_text(str(drawn).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1), encoding="utf-8")
