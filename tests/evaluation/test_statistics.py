"""Every formula against scipy or a table worked by hand, and the intervals against simulated truth."""

import math
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from scipy import special, stats

from luthier.evaluation import statistics as s
from luthier.evaluation.scorers import macro_f1


def rates(rng, n, gained, lost):
    """Right/wrong scores of two arms with exactly or, given probabilities, about so many changes."""
    draw = rng.random(n)
    base = np.where(draw < gained, 0.0, np.where(draw < gained + lost, 1.0, (rng.random(n) < 0.5) * 1.0))
    tuned = np.where(draw < gained, 1.0, np.where(draw < gained + lost, 0.0, base))
    return base, tuned


def mean(sums_RK):
    return sums_RK[:, 0] / sums_RK[:, 1]


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 29, 299, 3079, 100_000])
@pytest.mark.parametrize("probability", [0.5, 0.75, 0.9, 0.975, 0.9995])
def test_t_quantiles_are_scipys(freedom, probability):
    assert s.t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-8, abs=1e-8)


@settings(deadline=None)
@given(a=st.floats(0.05, 500), b=st.floats(0.05, 500), x=st.floats(0, 1))
def test_incomplete_beta_is_scipys(a, b, x):
    assert s.incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), rel=1e-7, abs=1e-10)


def test_z_quantile():
    assert s.z_quantile(0.95) == pytest.approx(1.959964, abs=1e-6)
    assert s.z_quantile(0.9) == pytest.approx(stats.norm.ppf(0.95))


def test_mean_difference_is_the_paired_t_interval_when_items_are_independent():
    rng = np.random.default_rng(0)
    base, tuned = rng.normal(size=80), rng.normal(0.2, 1.2, size=80)
    found = s.mean_difference(base, tuned, confidence=0.9)
    wanted = stats.ttest_rel(tuned, base).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.design_effect == pytest.approx(1)
    assert (found.items, found.groups) == (80, 80)


def test_cluster_error_by_hand():
    # d = 1, 3 | 0, 0 | 2; mean 1.2; group sums of d - mean: 1.6, -2.4, 0.8
    found = s.mean_difference([0] * 5, [1, 3, 0, 0, 2], groups=["a", "a", "b", "b", "c"])
    error = math.sqrt(3 / 2 * (1.6**2 + 2.4**2 + 0.8**2) / 25)
    assert found.estimate == pytest.approx(1.2)
    assert found.standard_error == pytest.approx(error)
    assert found.high - found.estimate == pytest.approx(stats.t.ppf(0.975, 2) * error)
    naive = math.sqrt(5 / 4 * sum((d - 1.2) ** 2 for d in (1, 3, 0, 0, 2)) / 25)
    assert found.design_effect == pytest.approx((error / naive) ** 2)
    assert found.groups == 3


def test_one_group_an_item_is_no_grouping():
    rng = np.random.default_rng(1)
    base, tuned = rng.random(40), rng.random(40)
    names = [f"{i:02}" for i in range(40)]
    plain, grouped = s.mean_difference(base, tuned), s.mean_difference(base, tuned, groups=names)
    assert (plain.low, plain.high, plain.p) == pytest.approx((grouped.low, grouped.high, grouped.p))


def test_loss_over_tokens_is_a_ratio_of_sums():
    base, tuned, units = [10.0, 2.0, 9.0], [8.0, 2.5, 6.0], [10, 1, 4]
    found = s.ratio_difference(base, units, tuned, units)
    assert found.estimate == pytest.approx((16.5 - 21) / 15)
    residuals = [(t - b) - (16.5 - 21) / 15 * u for b, t, u in zip(base, tuned, units, strict=True)]
    assert found.standard_error == pytest.approx(math.sqrt(3 / 2 * sum(r * r for r in residuals)) / 15)
    assert found.test.startswith("delta-method t interval")


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_scipys_binomial_test(gained, lost):
    wanted = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert s.mcnemar(gained, lost) == pytest.approx(wanted)


def test_mcnemar_of_many_changes_does_not_overflow():
    assert s.mcnemar(3000, 2800) == pytest.approx(stats.binomtest(3000, 5800).pvalue)
    assert 0 <= s.mcnemar(5000, 0) < 1e-300


def test_bonett_price_by_hand():
    base = [0] * 12 + [1] * 4 + [1] * 84
    tuned = [1] * 12 + [0] * 4 + [1] * 84
    found = s.binary_difference(base, tuned)
    up, down = 13 / 102, 5 / 102
    half = 1.959964 * math.sqrt((up + down - (up - down) ** 2) / 102)
    assert found.estimate == pytest.approx(0.08)
    assert (found.low, found.high) == pytest.approx((up - down - half, up - down + half), abs=1e-6)
    assert found.p == pytest.approx(stats.binomtest(4, 16).pvalue)
    assert found.changed == pytest.approx(stats.binomtest(16, 100).proportion_ci(method="wilson").high)


@pytest.mark.parametrize(("right", "n"), [(0, 10), (3, 10), (10, 10), (57, 300), (1, 1)])
def test_wilson_is_scipys(right, n):
    wanted = stats.binomtest(right, n).proportion_ci(method="wilson")
    assert s.wilson(right, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_wilson_of_nothing_says_nothing():
    assert s.wilson(0, 0) == (0, 1)


def test_exact_sign_flip_tries_every_pattern():
    sums = np.array([1.0, 2.0, 3.0, -0.5])
    wanted = stats.permutation_test((sums,), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    assert s.sign_flip(sums) == pytest.approx(wanted)
    assert s.sign_flip(np.ones(3)) == 2 / 8
    assert s.sign_flip(np.zeros(5)) == 1


def test_random_sign_flip_agrees_with_the_t_test():
    rng = np.random.default_rng(2)
    d = rng.normal(0.15, 1, size=200)
    assert s.sign_flip(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.015)
    assert s.sign_flip(np.ones(40)) == 1 / 10_001


def test_arm_swap_of_a_mean_is_the_sign_flip():
    rng = np.random.default_rng(3)
    base, tuned = rng.integers(0, 3, 12).astype(float), rng.integers(0, 4, 12).astype(float)
    pair = [np.stack([arm, np.ones(12)], axis=1) for arm in (base, tuned)]
    assert s.arm_swap(*pair, mean) == pytest.approx(s.sign_flip(tuned - base))


def test_holm_by_hand():
    assert s.holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert s.holm([0.6, 0.7]) == [1.0, 1.0]
    assert s.holm([]) == []
    found = s.holm([math.nan, 0.02])
    assert math.isnan(found[0])
    assert found[1] == 0.02


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_never_lowers_a_p(ps):
    adjusted = s.holm(ps)
    assert all(p <= a <= 1 for p, a in zip(ps, adjusted, strict=True))
    by_p = [adjusted[i] for i in sorted(range(len(ps)), key=lambda i: ps[i])]
    assert by_p == sorted(by_p)


def test_bca_is_scipys():
    rng = np.random.default_rng(4)
    values = rng.exponential(size=60)
    found = s.bca(np.stack([values, np.ones(60)], axis=1), mean, resamples=40_000)
    wanted = stats.bootstrap((values,), np.mean, n_resamples=40_000, method="BCa", random_state=0)
    low, high = wanted.confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.012)
    assert found.standard_error == pytest.approx(wanted.standard_error, rel=0.03)


def label_counts(truth, given_labels, classes):
    n = len(truth)
    counts = np.zeros((n, 3 * classes), np.float32)
    counts[np.arange(n), truth] = 1
    counts[np.arange(n), classes + given_labels] = 1
    right = truth == given_labels
    counts[np.arange(n)[right], 2 * classes + truth[right]] = 1
    return counts


def test_macro_f1_of_77_classes_and_3080_items_takes_seconds_at_most():
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 77, 3080)
    base = np.where(rng.random(3080) < 0.7, truth, rng.integers(0, 77, 3080))
    tuned = np.where(rng.random(3080) < 0.8, truth, rng.integers(0, 77, 3080))
    began = time.process_time()
    found = s.corpus_difference(label_counts(truth, base, 77), label_counts(truth, tuned, 77), macro_f1)
    assert time.process_time() - began < 6
    assert found.low < found.estimate < found.high
    assert found.low > 0.05
    assert found.p == pytest.approx(1 / 10_001)


def test_swapping_the_arms_mirrors_every_difference():
    rng = np.random.default_rng(6)
    base, tuned = rates(rng, 90, 0.2, 0.1)
    groups = [f"{i // 3}" for i in range(90)]
    truth = rng.integers(0, 4, 90)
    arms = [label_counts(truth, np.where(right == 1, truth, (truth + 1) % 4), 4) for right in (base, tuned)]
    pairs = [
        (s.binary_difference(base, tuned), s.binary_difference(tuned, base)),
        (s.binary_difference(base, tuned, groups=groups), s.binary_difference(tuned, base, groups=groups)),
        (s.mean_difference(base * 3.3, tuned), s.mean_difference(tuned, base * 3.3)),
        (s.corpus_difference(*arms, macro_f1), s.corpus_difference(*arms[::-1], macro_f1)),
    ]
    for one, other in pairs:
        assert (one.estimate, one.low, one.high) == pytest.approx((-other.estimate, -other.high, -other.low))
        assert one.p == pytest.approx(other.p)


# Simulated truth: 95 % intervals cover at least 93 %, less what chance allows in RUNS (two standard errors).

RUNS = 600
LEAST = 0.93 - 2 * math.sqrt(0.93 * 0.07 / RUNS)


@pytest.mark.parametrize("n", [50, 300, 1000])
def test_coverage_of_the_binary_interval_and_better_under_no_effect(n):
    rng = np.random.default_rng(n)
    covered = better = 0
    for _ in range(RUNS):
        found = s.binary_difference(*rates(rng, n, 0.18, 0.08))
        covered += found.low <= 0.10 <= found.high
        none = s.binary_difference(*rates(rng, n, 0.13, 0.13))
        better += none.low > 0 and none.p < 0.05
    assert covered / RUNS >= LEAST
    assert better / RUNS <= 0.03 + 0.015


@pytest.mark.slow
@pytest.mark.parametrize(("clusters", "size"), [(30, 10), (12, 20)])
def test_coverage_with_groups(clusters, size):
    rng = np.random.default_rng(clusters)
    groups = [str(i // size) for i in range(clusters * size)]
    covered = naive = 0
    for _ in range(RUNS):
        d = np.repeat(rng.normal(0, math.sqrt(0.2), clusters), size) + rng.normal(0, math.sqrt(0.8), clusters * size)
        found = s.mean_difference(np.zeros(len(d)), d, groups=groups)
        covered += found.low <= 0 <= found.high
        naive += abs(d.mean()) <= 1.96 * stats.sem(d)
    assert covered / RUNS >= LEAST
    # The reason to count groups: the plain interval is far too narrow.
    assert naive / RUNS < 0.82


@pytest.mark.slow
def test_coverage_of_a_ratio():
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(RUNS):
        units = rng.integers(5, 80, size=17).astype(float)
        base = units * 2 + rng.normal(0, 1, 17) * np.sqrt(units)
        tuned = base - units * 0.1 + rng.normal(0, 1, 17) * np.sqrt(units)
        found = s.ratio_difference(base, units, tuned, units)
        covered += found.low <= -0.1 <= found.high
    assert covered / RUNS >= LEAST


@pytest.mark.slow
def test_coverage_of_bca():
    rng = np.random.default_rng(12)
    covered = 0
    for _ in range(RUNS):
        values = rng.exponential(size=80)
        found = s.bca(np.stack([values, np.ones(80)], axis=1), mean, resamples=800)
        covered += found.low <= 1 <= found.high
    assert covered / RUNS >= 0.92 - 2 * math.sqrt(0.92 * 0.08 / RUNS)


def test_holm_keeps_the_family_error():
    rng = np.random.default_rng(13)
    wrong = sum(min(s.holm(list(rng.random(5)))) < 0.05 for _ in range(2000))
    assert wrong / 2000 <= 0.05 + 0.012


# Power


@pytest.mark.parametrize(
    ("gain", "changed", "items"),
    [(0.03, 0.1, 870), (0.03, 0.3, 2614), (0.05, 0.2, 626), (0.1, 0.2, 155), (0.1, 0.3, 234)],
)
def test_items_to_show_a_gain(gain, changed, items):
    assert s.items_to_show_gain(gain, changed=changed) == pytest.approx(items, abs=1)


@pytest.mark.parametrize(("margin", "changed", "items"), [(0.02, 0.1, 1963), (0.03, 0.2, 1745), (0.05, 0.3, 942)])
def test_items_to_show_not_worse(margin, changed, items):
    assert s.items_to_show_not_worse(margin, variance=changed) == pytest.approx(items, abs=1)
    assert s.items_to_show_not_worse(margin, variance=changed, design_effect=2) == pytest.approx(2 * items, abs=2)


def test_the_smallest_detectable_gain_is_the_one_that_needs_all_items():
    found = s.binary_difference([0] * 60 + [1] * 940, [1] * 60 + [1] * 940)
    gain = s.smallest_detectable(found)
    assert s.items_to_show_gain(gain, changed=found.changed) == pytest.approx(1000)
    assert math.isnan(s.smallest_detectable(s.binary_difference([0, 1, 1], [0, 1, 1])))
    scores = s.mean_difference([0.1, 0.4, 0.3], [0.2, 0.1, 0.9])
    assert s.smallest_detectable(scores) == pytest.approx((1.959964 + 0.841621) * scores.standard_error, rel=1e-5)


def test_planned_power_is_met():
    rng = np.random.default_rng(14)
    shown = 0
    for _ in range(RUNS):
        found = s.binary_difference(*rates(rng, 626, 0.125, 0.075))
        shown += found.low > 0
    assert shown / RUNS == pytest.approx(0.8, abs=0.03 + 0.04)


# Odd input gives numbers or NaN, and never an exception or a warning.

KINDS = {
    "binary": s.binary_difference,
    "mean": s.mean_difference,
    "corpus": lambda base, tuned, groups=None: s.corpus_difference(
        np.stack([base, np.ones(len(base))], axis=1).reshape(-1, 2),
        np.stack([tuned, np.ones(len(tuned))], axis=1).reshape(-1, 2),
        mean,
        groups=groups,
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_items(kind):
    found = KINDS[kind](np.zeros(0), np.zeros(0))
    assert (found.items, found.groups, found.identical) == (0, 0, False)
    assert math.isnan(found.estimate)


@pytest.mark.parametrize("kind", KINDS)
def test_one_item_or_one_group(kind):
    one = KINDS[kind](np.zeros(1), np.ones(1))
    assert one.estimate == 1
    assert one.p == 1
    group = KINDS[kind](np.zeros(4), np.array([1.0, 0, 1, 1]), groups=["a"] * 4)
    assert group.estimate == pytest.approx(0.75)
    assert math.isnan(group.low)
    assert group.groups == 1


@pytest.mark.parametrize("kind", KINDS)
def test_all_ties(kind):
    same = np.array([0.0, 1, 1, 0, 1, 0, 1])
    found = KINDS[kind](same, same)
    assert found.identical
    assert found.p == 1
    assert found.estimate == 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_item_gains_the_same(kind):
    found = KINDS[kind](np.zeros(20), np.ones(20))
    assert not found.identical
    assert found.low > 0.5
    assert found.p < 0.001


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_score_that_is_no_number_is_counted_and_hides_nothing(kind, bad):
    found = KINDS[kind](np.zeros(5), np.array([1, 1, bad, 1, 1]))
    assert found.missing == 1
    assert math.isnan(found.estimate)
    assert math.isnan(found.low)


@settings(max_examples=60, deadline=None)
@given(
    hn.arrays(float, st.integers(0, 8), elements=st.sampled_from([0.0, 1.0, 0.5, math.nan])),
    st.randoms(use_true_random=False),
)
def test_nothing_raises(values, random):
    other = values.copy()
    random.shuffle(other)
    groups = [random.choice("abc") for _ in values]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for of_kind in KINDS.values():
            for names in (None, groups):
                found = of_kind(values, other, groups=names)
                assert found.items == len(values)


def test_the_same_call_gives_the_same_numbers():
    rng = np.random.default_rng(15)
    base, tuned = rng.random(60), rng.random(60)
    assert s.mean_difference(base, tuned) == s.mean_difference(base, tuned)
    assert KINDS["corpus"](base, tuned) == KINDS["corpus"](base, tuned)


def test_values_of_one_arm():
    rate = s.rate_value([1, 0, 1, 1])
    assert (rate.estimate, rate.low, rate.high) == pytest.approx((0.75, *s.wilson(3, 4)))
    scores = [0.2, 0.5, 0.9, 0.4]
    found = s.ratio_value(scores, np.ones(4))
    wanted = stats.ttest_1samp(scores, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert math.isnan(found.p)
    corpus = s.corpus_value(np.stack([scores, np.ones(4)], axis=1), mean)
    assert corpus.estimate == pytest.approx(0.5)
    assert corpus.low < 0.5 < corpus.high
