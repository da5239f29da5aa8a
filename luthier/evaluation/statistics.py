"""How sure a paired difference is: intervals, tests, and how many items it would take. numpy only, every draw seeded.

A difference is always tuned - base as measured, whichever direction is better; `verdict` turns it round. Items that
share a group (customer, document) are not independent: sums over groups are resampled and counted, never single items.

    paired right/wrong      exact McNemar, Bonett-Price interval (independent items)
    means and ratios        cluster-robust t interval, sign-flip test on group sums
    metrics of a whole set  BCa bootstrap, arm-swap test, both over groups

Nothing here raises on small or odd input: what cannot be known is NaN, and `verdict` has words for it.

Shape suffixes: N items, G groups, K numbers of each group that a metric sums, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating[Any]]
Statistic = Callable[[Floats], Floats]
"""Sums over items, [R, K], to the metric of each row, [R]."""

POWER = 0.8
"""The chance of showing an effect that is there, in every count of items."""
RESAMPLES = 5_000
FLIPS = 10_000
EXACT_GROUPS = 16
"""Up to so many groups, all 2^G sign patterns are tried instead of random ones."""
CHUNK = 2_000_000
"""Random numbers held at once."""
DELTA = "delta-method "
NORMAL = NormalDist()
NAN = float("nan")


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Tuned - base, and how sure it is."""

    estimate: float
    low: float
    high: float
    p: float
    """Two-sided."""
    test: str
    """Names of the interval and the test."""
    items: int
    groups: int
    """Independent units: groups, or items where there are none."""
    standard_error: float
    design_effect: float = 1.0
    """How many times grouping makes the variance of the estimate."""
    changed: float | None = None
    """Right/wrong scores only: upper Wilson bound of the share of items that changed (psi)."""
    identical: bool = False
    """Every item scores the same in both arms."""
    missing: int = 0
    """Items without a finite score in one of the arms; with any, the estimate is NaN."""


# Differences of two arms


def binary_difference(
    base: ArrayLike, tuned: ArrayLike, *, groups: Sequence[str] | None = None, confidence: float = 0.95
) -> Difference:
    """Paired right/wrong scores (0 or 1, or logical). With groups: cluster t interval and sign flip."""
    base_N, tuned_N = _floats(base), _floats(tuned)
    n, missing = len(base_N), _missing(base_N, tuned_N)
    test = "Bonett-Price interval, exact McNemar test"
    if missing or not n:
        return _unknown(n, _count(n, groups), test, missing)
    gained, lost = int((tuned_N > base_N).sum()), int((tuned_N < base_N).sum())
    changed = wilson(gained + lost, n, confidence=confidence).high
    if groups is not None:
        found = mean_difference(base_N, tuned_N, groups=groups, confidence=confidence)
        return replace(found, changed=changed)
    # Bonett and Price 2012: one item is added to each kind of change.
    up, down, size = (gained + 1) / (n + 2), (lost + 1) / (n + 2), n + 2
    half = z_quantile(confidence) * math.sqrt((up + down - (up - down) ** 2) / size)
    share, estimate = (gained + lost) / n, (gained - lost) / n
    return Difference(
        estimate=estimate,
        low=max(-1.0, up - down - half),
        high=min(1.0, up - down + half),
        p=mcnemar(gained, lost),
        test=test,
        items=n,
        groups=n,
        standard_error=math.sqrt(max(share - estimate**2, 0.0) / n),
        changed=changed,
        identical=gained + lost == 0,
    )


def mean_difference(
    base: ArrayLike, tuned: ArrayLike, *, groups: Sequence[str] | None = None, confidence: float = 0.95
) -> Difference:
    """Mean of paired differences; each item counts alike."""
    base_N, tuned_N = _floats(base), _floats(tuned)
    ones_N = np.ones(len(base_N))
    found = ratio_difference(base_N, ones_N, tuned_N, ones_N, groups=groups, confidence=confidence)
    return replace(found, test=found.test.removeprefix(DELTA))


def ratio_difference(
    base_sums: ArrayLike,
    base_units: ArrayLike,
    tuned_sums: ArrayLike,
    tuned_units: ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> Difference:
    """Difference of two ratios of sums, such as loss over tokens, by the delta method.

    With e_g the influence of group g on the estimate, SE^2 = G / (G - 1) * sum_g e_g^2, with G - 1 degrees of freedom
    for t. With units of one this is the cluster-robust standard error of a mean (Miller 2024, arXiv 2411.00640).
    """
    base_N, base_u = _floats(base_sums), _floats(base_units)
    tuned_N, tuned_u = _floats(tuned_sums), _floats(tuned_units)
    n, missing = len(base_N), _missing(base_N, base_u, tuned_N, tuned_u)
    count = _count(n, groups)
    exact = count <= EXACT_GROUPS
    unit = "item" if groups is None else "group"
    test = f"{DELTA}t interval over {unit}s, {'exact ' if exact else ''}sign-flip test over {unit}s"
    if missing or not n or base_u.sum() <= 0 or tuned_u.sum() <= 0:
        return _unknown(n, count, test, missing)
    base_share, tuned_share = base_N / base_u.sum(), tuned_N / tuned_u.sum()
    base_ratio, tuned_ratio = base_share.sum(), tuned_share.sum()
    # Under no effect the arms of a group can be exchanged: its whole contribution changes sign.
    contribution_N = tuned_share - base_share
    influence_N = contribution_N - tuned_ratio * tuned_u / tuned_u.sum() + base_ratio * base_u / base_u.sum()
    estimate = float(tuned_ratio - base_ratio)
    error = _cluster_error(influence_N, groups)
    naive = _cluster_error(influence_N, None)
    half = t_quantile(1 - (1 - confidence) / 2, count - 1) * error if count > 1 else NAN
    return Difference(
        estimate=estimate,
        low=estimate - half,
        high=estimate + half,
        p=sign_flip(group_sums(contribution_N, groups)),
        test=test,
        items=n,
        groups=count,
        standard_error=error,
        design_effect=(error / naive) ** 2 if naive > 0 and math.isfinite(error) else 1.0,
        identical=bool((base_N == tuned_N).all() and (base_u == tuned_u).all()),
    )


def corpus_difference(
    base_NK: Floats,
    tuned_NK: Floats,
    statistic: Statistic,
    *,
    groups: Sequence[str] | None = None,
    confidence: float = 0.95,
) -> Difference:
    """Difference of a metric that exists for the whole set only, such as macro-F1.

    The interval is BCa; the test swaps the arms of whole groups (approximate randomisation, Noreen 1989).
    """
    n, width = base_NK.shape
    unit = "item" if groups is None else "group"
    test = f"BCa bootstrap interval over {unit}s, arm-swap test over {unit}s"
    missing = int((~np.isfinite(base_NK).all(axis=1) | ~np.isfinite(tuned_NK).all(axis=1)).sum())
    if missing or not n:
        return _unknown(n, _count(n, groups), test, missing)
    pair_GK = group_sums(np.concatenate([base_NK, tuned_NK], axis=1), groups)

    def difference(sums_RK: Floats) -> Floats:
        return statistic(sums_RK[:, width:]) - statistic(sums_RK[:, :width])

    found = bca(pair_GK, difference, confidence=confidence)
    return Difference(
        estimate=found.estimate,
        low=found.low,
        high=found.high,
        p=arm_swap(pair_GK[:, :width], pair_GK[:, width:], statistic),
        test=test,
        items=n,
        groups=len(pair_GK),
        standard_error=found.standard_error,
        identical=bool((base_NK == tuned_NK).all()),
    )


# Values of one arm, as if against zero: an interval, and no test


def rate_value(scores: ArrayLike, *, confidence: float = 0.95) -> Difference:
    """Share of independent items that are right."""
    scores_N = _floats(scores)
    n, missing = len(scores_N), _missing(scores_N)
    if missing or not n:
        return _unknown(n, n, "Wilson interval", missing)
    rate = float(scores_N.mean())
    low, high = wilson(int(scores_N.sum()), n, confidence=confidence)
    return Difference(rate, low, high, NAN, "Wilson interval", n, n, math.sqrt(rate * (1 - rate) / n))


def ratio_value(
    sums: ArrayLike, units: ArrayLike, *, groups: Sequence[str] | None = None, confidence: float = 0.95
) -> Difference:
    """Ratio of sums; with units of one, a mean."""
    nothing_N = np.zeros(len(_floats(sums)))
    found = ratio_difference(nothing_N, units, sums, units, groups=groups, confidence=confidence)
    return replace(found, p=NAN, test=found.test.partition(",")[0], identical=False)


def corpus_value(
    counts_NK: Floats, statistic: Statistic, *, groups: Sequence[str] | None = None, confidence: float = 0.95
) -> Difference:
    """A metric of the whole set."""
    test = f"BCa bootstrap interval over {'items' if groups is None else 'groups'}"
    if not len(counts_NK):
        return _unknown(0, 0, test, 0)
    sums_GK = group_sums(counts_NK, groups)
    found = bca(sums_GK, statistic, confidence=confidence)
    error = found.standard_error
    return Difference(found.estimate, found.low, found.high, NAN, test, len(counts_NK), len(sums_GK), error)


# Tests


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p: 2 * P[Bin(gained + lost, 1/2) <= the smaller], at most 1."""
    changed = gained + lost
    term = total = 1
    for i in range(min(gained, lost)):
        term = term * (changed - i) // (i + 1)
        total += term
    # Python divides integers of any size exactly rounded, so nothing overflows.
    return min(1.0, float(2 * total / 2**changed))


def sign_flip(sums_G: Floats, *, seed: int = 0, flips: int = FLIPS) -> float:
    """Two-sided p of the sum of group sums when each may have either sign. Exact for up to 16 groups that changed."""
    sums_G = np.sort(sums_G[sums_G != 0])
    # Sums that are equal on paper differ by rounding.
    bound = abs(sums_G.sum()) * (1 - 1e-9)
    return _share_as_large(len(sums_G), 1, lambda signs_RG: np.abs(signs_RG @ sums_G) >= bound, seed=seed, flips=flips)


def arm_swap(base_GK: Floats, tuned_GK: Floats, statistic: Statistic, *, seed: int = 0, flips: int = FLIPS) -> float:
    """Two-sided p of the difference of a corpus metric when the arms of each group may be exchanged."""
    changed_G = (base_GK != tuned_GK).any(axis=1)
    both_K = base_GK.sum(axis=0) + tuned_GK.sum(axis=0)
    unchanged_K = (tuned_GK - base_GK)[~changed_G].sum(axis=0)
    move_GK = (tuned_GK - base_GK)[changed_G]
    observed = float((statistic(tuned_GK.sum(axis=0)[None]) - statistic(base_GK.sum(axis=0)[None]))[0])
    bound = abs(observed) * (1 - 1e-9)

    def as_large(signs_RG: Floats) -> NDArray[np.bool_]:
        move_RK = signs_RG.astype(move_GK.dtype) @ move_GK + unchanged_K
        swapped_R = statistic((both_K + move_RK) / 2) - statistic((both_K - move_RK) / 2)
        return np.abs(swapped_R) >= bound

    return _share_as_large(len(move_GK), 2 * len(both_K), as_large, seed=seed, flips=flips)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given; a NaN (no test was made) stays NaN and does not count."""
    order = sorted((i for i, p in enumerate(ps) if math.isfinite(p)), key=lambda i: ps[i])
    adjusted, largest = [NAN] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


# Intervals


def wilson(successes: int, items: int, *, confidence: float = 0.95) -> Interval:
    """Wilson's interval of one rate; 0 to 1 when there are no items."""
    if items == 0:
        return Interval(0.0, 1.0)
    z, p = z_quantile(confidence), successes / items
    centre = p + z * z / (2 * items)
    half = z * math.sqrt(p * (1 - p) / items + z * z / (4 * items * items))
    scale = 1 + z * z / items
    return Interval(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


class Bootstrap(NamedTuple):
    estimate: float
    low: float
    high: float
    standard_error: float


def bca(
    sums_GK: Floats, statistic: Statistic, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Bootstrap:
    """Bias-corrected accelerated bootstrap over groups, of a function of sums (Efron 1987).

    No interval (NaN) below two groups.
    """
    groups = len(sums_GK)
    total_K = sums_GK.sum(axis=0)
    estimate = float(statistic(total_K[None])[0]) if groups else NAN
    if groups < 2:
        return Bootstrap(estimate, NAN, NAN, NAN)
    rng = np.random.default_rng(seed)
    parts = [statistic(counts_RG @ sums_GK) for counts_RG in _resamples(sums_GK, resamples, rng)]
    values_R = np.sort(np.concatenate(parts))
    # Values equal to the estimate count half, so that swapping the arms mirrors the interval even with many ties.
    slack = 1e-9 * max(1.0, abs(estimate))
    below = (values_R < estimate - slack).sum() + 0.5 * (np.abs(values_R - estimate) <= slack).sum()
    bias = NORMAL.inv_cdf(min(max(below / resamples, 0.5 / resamples), 1 - 0.5 / resamples))
    left_out_G = statistic(total_K - sums_GK)
    pull_G = left_out_G.mean() - left_out_G
    spread = float((pull_G**2).sum())
    acceleration = float((pull_G**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    z = z_quantile(confidence)
    low, high = (
        float(np.quantile(values_R, NORMAL.cdf(bias + (bias + side) / max(1 - acceleration * (bias + side), 1e-3))))
        for side in (-z, z)
    )
    return Bootstrap(estimate, low, high, float(values_R.std(ddof=1)))


# Power


def items_to_show_gain(
    gain: float, *, changed: float, design_effect: float = 1.0, confidence: float = 0.95, power: float = POWER
) -> float:
    """Items for a gain in a paired rate when a share `changed` of the items changes; `gain` is at most `changed`."""
    z, z_power = z_quantile(confidence), NORMAL.inv_cdf(power)
    return ((z * math.sqrt(changed) + z_power * math.sqrt(changed - gain**2)) / gain) ** 2 * design_effect


def items_to_show_not_worse(
    margin: float, *, variance: float, design_effect: float = 1.0, confidence: float = 0.95, power: float = POWER
) -> float:
    """Items to show "not worse within the margin" when the arms are truly equal.

    `variance` is that of one item's difference: for right/wrong scores, the share of items that changes.
    """
    return (z_quantile(confidence) + NORMAL.inv_cdf(power)) ** 2 * variance / margin**2 * design_effect


def smallest_detectable(difference: Difference, *, confidence: float = 0.95, power: float = POWER) -> float:
    """The true difference that as many items would show with the power given; NaN where even the largest would not.

    Planned from the upper bound of the share of changed items or from the spread, never from the observed effect.
    """
    if difference.changed is None:
        # Without any spread there is nothing to plan from.
        error = difference.standard_error or NAN
        return (z_quantile(confidence) + NORMAL.inv_cdf(power)) * error
    changed, effect = difference.changed, difference.design_effect

    def needed(gain: float) -> float:
        return items_to_show_gain(gain, changed=changed, design_effect=effect, confidence=confidence, power=power)

    # A gain cannot exceed the share of items that change.
    if needed(changed) > difference.items:
        return NAN
    low, high = 0.0, changed
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if middle > 0 and needed(middle) <= difference.items else (middle, high)
    return high


# Quantiles


def z_quantile(confidence: float) -> float:
    """Normal quantile of a two-sided interval: 1.96 for 0.95."""
    return NORMAL.inv_cdf(1 - (1 - confidence) / 2)


@lru_cache(maxsize=256)
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t, for a probability of at least one half, by bisection of its distribution function."""
    assert 0.5 <= probability < 1
    assert freedom >= 1
    low, high = 0.0, 2.0
    while t_cdf(high, freedom) < probability:
        low, high = high, high * 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def t_cdf(t: float, freedom: int) -> float:
    """P[T <= t] of Student's t."""
    tail = 0.5 * incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return 1 - tail if t > 0 else tail


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function by Lentz's continued fraction (Numerical Recipes, 3rd ed., section 6.4)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        # The fraction converges fast on this side only.
        return 1 - incomplete_beta(b, a, 1 - x)
    front = a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    tiny = 1e-300
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1) or tiny)
    fraction = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / (1 + term * d or tiny)
            c = 1 + term / c or tiny
            fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return math.exp(front) * fraction / a


# Groups and draws


def group_sums(values: Floats, groups: Sequence[str] | None) -> Floats:
    """Sums of rows that share a group, groups in sorted order: [N, ...] -> [G, ...]. Without groups, the values."""
    if groups is None:
        return values
    names, group_N = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), *values.shape[1:]), values.dtype)
    np.add.at(sums, group_N, values)
    return sums


def _cluster_error(influence_N: Floats, groups: Sequence[str] | None) -> float:
    sums_G = group_sums(influence_N, groups)
    count = len(sums_G)
    return math.sqrt(count / (count - 1) * float((sums_G**2).sum())) if count > 1 else NAN


def _share_as_large(
    groups: int, width: int, as_large: Callable[[Floats], NDArray[np.bool_]], *, seed: int, flips: int
) -> float:
    """p of a test over sign patterns; the observed pattern is among all of them, and added to random ones.

    `width` is how many numbers `as_large` computes for each pattern.
    """
    rows = max(1, CHUNK // max(groups, width, 1))
    hits = start = 0
    if groups <= EXACT_GROUPS:
        for size in _chunks(2**groups, rows):
            patterns = np.arange(start, start + size)[:, None] >> np.arange(groups)
            hits, start = hits + int(as_large((patterns & 1) * 2.0 - 1.0).sum()), start + size
        return float(hits / 2**groups)
    rng = np.random.default_rng(seed)
    for size in _chunks(flips, rows):
        signs_RG = rng.integers(0, 2, size=(size, groups), dtype=np.int8) * np.float32(2) - np.float32(1)
        hits += int(as_large(signs_RG).sum())
    return (1 + hits) / (flips + 1)


def _resamples(sums_GK: Floats, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each group is drawn in each resample, [R, G], in chunks."""
    groups, width = sums_GK.shape
    for rows in _chunks(resamples, max(1, CHUNK // max(groups, width))):
        drawn = rng.integers(0, groups, size=(rows, groups)) + np.arange(rows)[:, None] * groups
        yield np.bincount(drawn.ravel(), minlength=rows * groups).reshape(rows, groups).astype(sums_GK.dtype)


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _missing(*columns: Floats) -> int:
    """Items for which any column is not finite."""
    return int((~np.isfinite(np.stack(columns)).all(axis=0)).sum())


def _count(items: int, groups: Sequence[str] | None) -> int:
    return items if groups is None else len(set(groups))


def _unknown(items: int, groups: int, test: str, missing: int) -> Difference:
    return Difference(NAN, NAN, NAN, NAN, test, items, groups, NAN, missing=missing)
