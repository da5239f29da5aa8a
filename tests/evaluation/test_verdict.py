"""The table of verdict words, row by row."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.evaluation import verdict as v
from luthier.evaluation.statistics import Difference, binary_difference, mean_difference
from luthier.evaluation.verdict import IDENTICAL, NOT_WORSE, items_more, value_sentence

WORDS = r"better|worse|not worse within delta|identical outputs|inconclusive: need [\d,]+ more items"


def difference(low, high, *, p=0.001, n=200, **more):
    middle = (low + high) / 2
    error = (high - low) / 2 / 1.96
    return Difference(middle, low, high, p, "a test", n, more.pop("groups", n), error, **more)


def verdict(found, *, base=0.5, tuned=0.5, **more):
    return v.verdict(found, base=base, tuned=tuned, **more)


@pytest.mark.parametrize(
    ("low", "high", "p", "word"),
    [
        (0.01, 0.09, 0.01, "better"),
        (0.01, 0.09, 0.20, NOT_WORSE),
        (-0.09, -0.01, 0.01, "worse"),
        (-0.09, -0.01, 0.20, "worse"),
        (-0.015, -0.001, 0.04, "worse"),
        (-0.015, 0.02, 0.80, NOT_WORSE),
        (-0.03, 0.05, 0.60, "inconclusive"),
        (-0.02, 0.03, 0.60, "inconclusive"),
    ],
)
def test_the_fixed_rule(low, high, p, word):
    found = verdict(difference(low, high, p=p), margin=0.02, higher_is_better=True)
    assert found.word.partition(":")[0] == word
    mirrored = verdict(difference(-high, -low, p=p), margin=0.02, higher_is_better=False)
    assert mirrored.word == found.word


def test_an_adjusted_p_takes_the_word_away():
    assert verdict(difference(0.01, 0.09), margin=0.02, higher_is_better=True, p=0.06).word == NOT_WORSE


def test_confidence_sets_the_level_of_the_test():
    found = difference(0.01, 0.09, p=0.03)
    assert verdict(found, margin=0.02, higher_is_better=True, confidence=0.95).word == "better"
    assert verdict(found, margin=0.02, higher_is_better=True, confidence=0.99).word == NOT_WORSE


def test_the_sentence_says_it_all():
    found = verdict(difference(0.11, 0.15), margin=0.02, higher_is_better=True, label="ROUGE-L", base=0.21, tuned=0.34)
    assert found.sentence == "ROUGE-L rose from 0.21 to 0.34 (+0.13, 95 % interval +0.11 to +0.15, 200 items): better."


def test_the_sentence_names_groups_and_seeds():
    found = verdict(
        difference(-0.4, -0.2, groups=12),
        margin=0.02,
        higher_is_better=False,
        label="loss",
        unit="nats",
        base=2.3,
        tuned=2.0,
        seeds=1,
    )
    assert found.sentence == (
        "Loss fell from 2.30 to 2.00 (-0.30, 95 % interval -0.40 to -0.20, 200 items in 12 groups, one training seed): "
        "better."
    )


def test_the_sentence_gives_the_margin_its_number():
    found = verdict(difference(-0.01, 0.03), margin=0.02, higher_is_better=True)
    assert found.word == NOT_WORSE
    assert found.sentence.endswith(": not worse within 0.02.")


def test_a_gain_below_the_useful_effect_says_so():
    found = verdict(difference(0.01, 0.03), margin=0.02, higher_is_better=True, useful=0.05)
    assert found.word == "better"
    assert "better, below the useful effect of 0.05." in found.sentence


def test_identical_outputs():
    same = [0.1, 0.4, 0.4]
    found = verdict(mean_difference(same, same), margin=0.02, higher_is_better=True, base=0.3, tuned=0.3)
    assert found.word == IDENTICAL
    assert "interval" not in found.sentence


def test_how_many_more_items_comes_from_the_share_that_changes():
    found = binary_difference([0] * 12 + [1] * 13 + [1] * 75, [1] * 12 + [0] * 13 + [1] * 75)
    word = verdict(found, margin=0.05, higher_is_better=True).word
    needed = math.ceil((1.959964 + 0.841621) ** 2 * found.changed / 0.05**2) - 100
    assert word == f"inconclusive: need {needed:,} more items"


def test_an_interval_of_half_a_margin_always_decides():
    # Enough items by the plan, and still undecided: the number asked for narrows the interval to half a margin.
    found = difference(-0.021, 0.002, n=1000)
    assert items_more(found, margin=0.02) == math.ceil(1000 * (0.023 / 0.02) ** 2) - 1000


@pytest.mark.parametrize(
    ("found", "k"),
    [
        (mean_difference([], []), 30),
        (mean_difference([0.1], [0.2]), 29),
        (mean_difference([0.1] * 4, [0.2, 0.3, 0.1, 0.2], groups=["a"] * 4), 29 * 4),
        (mean_difference([0.1, math.nan, math.inf], [0.2, 0.1, 0.1]), 2),
    ],
)
def test_what_cannot_be_known_is_inconclusive(found, k):
    word, sentence = verdict(found, margin=0.02, higher_is_better=True)
    assert word == f"inconclusive: need {k} more items"
    assert "nan" not in sentence


ends = st.floats(-5, 5) | st.just(math.nan)


@settings(deadline=None)
@given(
    low=ends,
    width=st.floats(0, 5),
    p=st.floats(0, 1) | st.just(math.nan),
    margin=st.floats(1e-4, 3),
    n=st.integers(0, 5000),
    higher=st.booleans(),
    seeds=st.sampled_from([None, 1, 3]),
)
def test_there_are_no_other_words(low, width, p, margin, n, higher, seeds):
    found = verdict(difference(low, low + width, p=p, n=n), margin=margin, higher_is_better=higher, seeds=seeds)
    assert re.fullmatch(WORDS, found.word)
    assert found.sentence.endswith(".")
    assert "\n" not in found.sentence


@settings(deadline=None)
@given(low=st.floats(-1, 1), width=st.floats(0, 1))
def test_swapping_the_arms_turns_the_word_round(low, width):
    one = verdict(difference(low, low + width), margin=0.1, higher_is_better=True).word
    other = verdict(difference(-low - width, -low), margin=0.1, higher_is_better=True).word
    assert (one == "better") == (other == "worse")
    assert (one == "worse") == (other == "better")


def test_the_sentence_shows_on_which_side_of_zero_an_interval_ends():
    found = verdict(difference(0.0004, 0.05), margin=0.02, higher_is_better=True)
    assert "+0.0004 to +0.0500" in found.sentence


def test_no_change_is_said_plainly():
    found = verdict(difference(-0.03, 0.03), margin=0.05, higher_is_better=True, base=0.5, tuned=0.5)
    assert found.sentence.startswith("Score stayed at 0.50 (0.00, 95 % interval -0.03 to +0.03")


def test_one_arm_alone_has_a_sentence_and_no_word():
    found = value_sentence(difference(0.30, 0.38), "ROUGE-L", "0-1")
    assert found == "ROUGE-L is 0.34 (95 % interval 0.30 to 0.38, 200 items)."


def test_a_gain_that_the_test_does_not_confirm_is_explained():
    found = verdict(difference(0.01, 0.09, p=0.2), margin=0.02, higher_is_better=True)
    assert found.sentence.endswith(": not worse within 0.02; the test does not confirm the gain (p = 0.2).")


@pytest.mark.parametrize(
    ("label", "start"), [("chrF", "chrF rose"), ("macro-F1", "Macro-F1 rose"), ("loss", "Loss rose")]
)
def test_names_keep_their_own_capitals(label, start):
    assert verdict(difference(0.1, 0.2), margin=0.02, higher_is_better=True, label=label).sentence.startswith(start)
