"""What a check says, and how far two results are from each other in a way that rounding bounds.

Differences are relative: of a loss to the loss, of a gradient to the size of its tensor. A tensor whose gradient is
zero but for rounding (the bias of keys shifts all scores of a query alike) would make any rounding look infinite, so
its size counts as at least a thousandth of the whole gradient's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_SHARE = 1e-3
"""Of the norm of the whole gradient: a tensor's norm counts as at least this."""

BOUNDS = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Type of the computation -> largest relative difference that rounding explains.

float32 keeps 24 bits (6e-8); some thousand terms summed in another order, some dozen layers, and the division by
`SMALLEST_SHARE` can make 1e-4 of it. Norms of most families are float32 whatever the model computes in, so that a last
bit of float64 can come back as one of float32: 6e-8 times what follows. The faults that these checks look for are
differences of a few per cent and more."""


class Proof(NamedTuple):
    """The outcome of one check."""

    name: str
    compared: str
    """What was held against what."""
    largest: float | None
    """The largest difference found; None where the check does not apply, or nothing came back to compare."""
    bound: float | None
    """What it may be. 0: equal to the bit, or not one exception."""
    passed: bool | None
    """None: the check does not apply to this recipe, and `detail` says why."""
    detail: str
    """On how much it was shown; or which fault it is, and where. Holds no private text."""


def left_out(name: str, compared: str, why: str) -> Proof:
    """A check that does not apply."""
    return Proof(name, compared, None, None, None, why)


class Gap(NamedTuple):
    """The largest difference between two gradients."""

    largest: float
    at: str
    """The tensor that it was found in."""


def gradient_gap(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Gap:
    """The largest norm of a tensor's difference, relative to the tensor's (see the top of this file).

    A tensor without a gradient on one side counts as zero there.
    """
    whole = sum(float(g.double().square().sum()) for g in expected.values()) ** 0.5
    worst = Gap(0.0, "")
    for name in sorted({*found, *expected}):
        a, b = found.get(name), expected.get(name)
        other = b if a is None else a
        assert other is not None
        a, b = (torch.zeros_like(other) if g is None else g for g in (a, b))
        size = max(float(b.double().norm()), SMALLEST_SHARE * whole)
        gap = float((a.double() - b.double()).norm()) / size if size else float(a.double().norm())
        # A gap that is no number is the worst of all, and compares as false with everything.
        if not gap <= worst.largest:
            worst = Gap(gap, name)
    return worst


def relative(found: float, expected: float) -> float:
    """How far a number is from another, relative to the other where that is not zero."""
    return abs(found - expected) / (abs(expected) or 1.0)


def worst_gap(gaps: Mapping[str, float]) -> tuple[str, float]:
    """The name of the largest difference, and the difference; one that is no number is the largest."""
    name = max(gaps, key=lambda n: (gaps[n] != gaps[n], gaps[n]))
    return name, gaps[name]
