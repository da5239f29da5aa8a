"""Plots hold every value they are given, inside their frame, however odd it is."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.report.figures import Gain, forest, heat_map, loss_curve, rate_curve, reliability, running_mean
from luthier.report.svg import ticks

NUMBERS = st.floats(-1e6, 1e6)


@given(NUMBERS, st.floats(1e-6, 1e6), st.integers(2, 8))
def test_ticks_are_in_range_and_few(low: float, span: float, wanted: int) -> None:
    found = ticks(low, low + span, wanted)
    slack = span * 0.01 + abs(low) * 1e-9
    assert all(low - slack <= tick <= low + span + slack for tick in found)
    assert len(found) <= 2 * wanted + 2


@given(st.lists(NUMBERS, min_size=1, max_size=200))
def test_a_running_mean_stays_between_the_smallest_and_the_largest(values: list[float]) -> None:
    smooth = running_mean(values)
    slack = 1e-6 * max(map(abs, values)) + 1e-9
    assert len(smooth) == len(values)
    assert min(values) - slack <= min(smooth)
    assert max(smooth) <= max(values) + slack


def test_a_running_mean_of_a_straight_line_is_the_line() -> None:
    line = [float(i) for i in range(200)]
    assert running_mean(line)[50:150] == pytest.approx(line[50:150])


@pytest.mark.parametrize("width", [340, 720])
@given(st.lists(st.tuples(NUMBERS, st.floats(0, 1e6)), min_size=1, max_size=5))
def test_a_forest_plot_draws_every_gain_inside(width: int, gains: list[tuple[float, float]]) -> None:
    rows = [Gain(f"metric {i}", value, value - half, value + half, "nats") for i, (value, half) in enumerate(gains)]
    svg = forest(rows, width, title="gains")
    centres = [float(x) for x in re.findall(r'cx="(-?[\d.]+)"', svg)]
    assert len(centres) == len(rows)
    assert all(0 <= x <= width for x in centres)


def test_odd_runs_can_be_drawn() -> None:
    step = {"step": 1, "loss": 2.0, "rate": 0.0}
    assert "svg" in loss_curve([step], [], 340, kept=None)
    assert "svg" in rate_curve([step], 340)
    assert "kept, step 1" in loss_curve([step], [{"step": 1, "loss": 2.0}], 720, kept=1)
    assert "svg" in forest([Gain("a", 0.0, None, None, "")], 340, title="none")


def test_a_matrix_with_an_empty_row_can_be_drawn() -> None:
    svg = heat_map(["a", "b"], [[3, 1], [0, 0]], 400, name="tuned")
    assert "tuned: 3 of 4 rows on the diagonal" in svg


def test_titles_escape_labels() -> None:
    assert "<b>" not in heat_map(["<b>", "b"], [[1, 0], [0, 1]], 400, name="<b>")


def test_a_reliability_plot_leaves_empty_bins_out() -> None:
    bins = [{"confidence": 0.5, "accuracy": 0.4, "items": 10}, {"confidence": 0.9, "accuracy": 0.0, "items": 0}]
    svg = reliability({"tuned": {"ece": 0.1, "bins": bins}}, 340)
    assert svg.count("<circle") == 1
