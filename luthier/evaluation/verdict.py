"""The few words that a comparison may end with, by a rule fixed before anything is measured.

With [L, U] the interval of the difference, turned so that higher is better, and delta the margin, the first line that
holds gives the word:

    every item the same    identical outputs                 no test is needed
    L > 0 and p < alpha    better
    U < 0                  worse                             even inside the margin, and whatever the test says
    L > -delta             not worse within delta
    otherwise              inconclusive: need k more items   also when there is no interval at all

No other words exist. Where interval and test disagree, this order picks the more cautious word.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from luthier.evaluation.statistics import Difference, Interval, items_to_show_not_worse

BETTER = "better"
WORSE = "worse"
NOT_WORSE = "not worse within delta"
IDENTICAL = "identical outputs"
INCONCLUSIVE = "inconclusive: need {} more items"
FEWEST = 30
"""Independent items (or groups) to ask for when there are too few to estimate a spread from."""
DECIMALS = {"0-1": 2, "0-100": 1, "nats": 2}
"""Fewest decimals that a unit is printed with."""


class Verdict(NamedTuple):
    word: str
    """`BETTER`, `WORSE`, `NOT_WORSE`, `IDENTICAL`, or `INCONCLUSIVE` with its number."""
    sentence: str


def verdict(
    difference: Difference,
    *,
    margin: float,
    higher_is_better: bool,
    base: float,
    tuned: float,
    confidence: float = 0.95,
    p: float | None = None,
    label: str = "score",
    unit: str = "0-1",
    useful: float | None = None,
    seeds: int | None = None,
) -> Verdict:
    """The word for a difference (tuned - base, as measured) and one sentence for people.

    Args:
        margin: largest loss of quality that counts as not worse, above zero, in the units of the measure.
        base, tuned: values of the arms, for the sentence.
        p: adjusted p to use instead of the difference's own.
        useful: smallest effect worth having; a smaller gain is still better, and the sentence says it is below.
        seeds: how many training runs stand behind `tuned`; None when that is unknown.
    """
    assert margin > 0
    p_used = difference.p if p is None else p
    word = _word(difference, margin, higher_is_better, confidence, p_used)
    printed = word
    if word == NOT_WORSE:
        printed = f"not worse within {margin:g}"
    elif word == BETTER and useful is not None and abs(difference.estimate) < useful:
        printed = f"better, below the useful effect of {useful:g}"
    if word == NOT_WORSE and _turned(difference, higher_is_better).low > 0:
        printed += f"; the test does not confirm the gain (p = {p_used:.2g})"
    name, counts = _name(label), _counts(difference, seeds)
    if difference.items == 0:
        return Verdict(word, f"{name}: no items: {printed}.")
    if difference.missing:
        have = f"{difference.missing:,} of {difference.items:,} items have no finite score"
        return Verdict(word, f"{name}: {have}, so nothing is shown: {printed}.")
    if word == IDENTICAL:
        return Verdict(
            word, f"{name} is the same on every item ({tuned:.{DECIMALS.get(unit, 2)}f}, {counts}): {printed}."
        )
    if not math.isfinite(difference.estimate):
        return Verdict(word, f"{name}: nothing to measure in {counts}: {printed}.")
    return Verdict(word, f"{name} {change(difference, unit, base, tuned, confidence, counts)}: {printed}.")


def _word(difference: Difference, margin: float, higher_is_better: bool, confidence: float, p: float) -> str:
    if difference.identical and difference.items and not difference.missing:
        return IDENTICAL
    low, high = _turned(difference, higher_is_better)
    # Comparisons with NaN are false: what is not known falls through to the last line.
    if low > 0 and p < 1 - confidence:
        return BETTER
    if high < 0:
        return WORSE
    if low > -margin:
        return NOT_WORSE
    return INCONCLUSIVE.format(f"{items_more(difference, margin=margin, confidence=confidence):,}")


def _turned(difference: Difference, higher_is_better: bool) -> Interval:
    """The interval with better above zero."""
    if higher_is_better:
        return Interval(difference.low, difference.high)
    return Interval(-difference.high, -difference.low)


def items_more(difference: Difference, *, margin: float, confidence: float = 0.95) -> int:
    """How many further items an inconclusive comparison needs, at least one.

    Planned for two arms that are truly equal, never from the observed effect. If the items at hand should have been
    enough, enough to make the interval half a margin to each side, where one of the other lines always holds.
    """
    n = difference.items
    if difference.missing:
        return difference.missing
    if difference.groups < 2 or not math.isfinite(difference.low):
        size = math.ceil(n / difference.groups) if difference.groups else 1
        return max(1, FEWEST - difference.groups) * size
    if difference.changed is not None:
        variance, effect = difference.changed, difference.design_effect
    else:
        variance, effect = n * difference.standard_error**2, 1.0
    more = (
        math.ceil(items_to_show_not_worse(margin, variance=variance, design_effect=effect, confidence=confidence)) - n
    )
    if more < 1:
        more = math.ceil(n * ((difference.high - difference.low) / margin) ** 2) - n
    return max(1, more)


def change(difference: Difference, unit: str, base: float, tuned: float, confidence: float, counts: str) -> str:
    """`rose from 0.21 to 0.34 (+0.13, 95 % interval +0.11 to +0.15, 200 items)`."""
    digits = decimals(difference, unit)
    step = signed(difference.estimate, digits)
    if float(step) == 0:
        moved = f"stayed at {tuned:.{digits}f}"
    else:
        moved = f"{'rose' if difference.estimate > 0 else 'fell'} from {base:.{digits}f} to {tuned:.{digits}f}"
    if math.isfinite(difference.low):
        interval = f"{signed(difference.low, digits)} to {signed(difference.high, digits)}"
        return f"{moved} ({step}, {confidence * 100:g} % interval {interval}, {counts})"
    return f"{moved} ({step}, too few for an interval, {counts})"


def value_sentence(value: Difference, label: str, unit: str, confidence: float = 0.95) -> str:
    """One arm's own value: `ROUGE-L is 0.34 (95 % interval 0.30 to 0.38, 200 items).`"""
    name, counts, digits = _name(label), _counts(value, None), decimals(value, unit)
    if not math.isfinite(value.estimate):
        return f"{name} cannot be measured in {counts}."
    interval = "too few for an interval"
    if math.isfinite(value.low):
        interval = f"{confidence * 100:g} % interval {value.low:.{digits}f} to {value.high:.{digits}f}"
    return f"{name} is {value.estimate:.{digits}f} ({interval}, {counts})."


def decimals(difference: Difference, unit: str) -> int:
    """Decimals that show the interval: one leading digit of its half-width, and on which side of zero its ends are."""
    fewest, half = DECIMALS.get(unit, 0), (difference.high - difference.low) / 2
    if not math.isfinite(half) or half <= 0:
        return max(fewest, 2)
    digits = min(max(fewest, -math.floor(math.log10(half))), 6)
    while digits < 6 and any(end != 0 and round(end, digits) == 0 for end in (difference.low, difference.high)):
        digits += 1
    return digits


def signed(value: float, digits: int) -> str:
    """With its sign, except for what rounds to zero."""
    text = f"{value:+.{digits}f}"
    return text if float(text) else text[1:]


def _name(label: str) -> str:
    """A label at the start of a sentence; a word with capitals of its own, such as chrF, stays as it is."""
    first = label.replace("-", " ").partition(" ")[0]
    return label[:1].upper() + label[1:] if first.islower() else label


def _counts(difference: Difference, seeds: int | None) -> str:
    parts = [f"{difference.items:,} item{'' if difference.items == 1 else 's'}"]
    if difference.groups != difference.items:
        parts[0] += f" in {difference.groups:,} group{'' if difference.groups == 1 else 's'}"
    if seeds is not None:
        parts.append("one training seed" if seeds == 1 else f"{seeds} training seeds")
    return ", ".join(parts)
