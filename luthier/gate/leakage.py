"""Rows that are trained on and also stand among what the model is judged by.

What leaks is taken from train (or from validation, where it is also in test), never from test.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from luthier.gate.contamination import Reference, contamination
from luthier.gate.pairs import find_near
from luthier.gate.rows import Hit
from luthier.gate.rules import Rule

if TYPE_CHECKING:
    from luthier.gate.policy import Policy
    from luthier.gate.store import Store

RULES: dict[str, Rule] = {
    "leak": Rule(
        title="held-back prompt in the training data",
        why="The model has seen the question of the examination, so its score says nothing.",
        remedy="Take it from train: luthier data clean does. Never from test.",
        severity="block",
        mend="drop",
        about="What the row asks (the text, for labelled and plain rows) equals what a held-back row asks, but for "
        "letter case, white space and punctuation.",
    ),
    "near_leak": Rule(
        title="held-back prompt in other words in the training data",
        why="The model has seen nearly the question of the examination, so its score is too good.",
        remedy="Take it from train, or raise `similarity` where so much alike is natural.",
        severity="warn",
        mend="drop",
        thresholds={"similarity": 0.7, "words": 0.35, "words_long": 0.2, "long": 8},
        about="As near_duplicate, for what the rows ask alone, from `similarity` on. Or the answers are equal and the "
        "sets of words of the prompts overlap (Jaccard) by `words`, `words_long` where the answer has `long` words or "
        "more: so are translations there and back found. Errs where short prompts differ in one word that matters.",
    ),
    "group_leak": Rule(
        title="group on both sides",
        why="Rows of one customer, patient or matter are alike; the test then asks what was learnt by heart.",
        remedy="Split by group (data.split.by: group), or take the group's rows from train.",
        severity="block",
        mend="drop",
        about="A value of the policy's `groups` columns stands in train and in a held-back side.",
    ),
    "contamination": Rule(
        title="text of a benchmark in the training data",
        why="A model that has read the benchmark is not measured by it.",
        remedy="Take the row from train, or report the benchmark without that item.",
        severity="warn",
        mend="drop",
        thresholds={"words": 13, "short_words": 8, "short_share": 0.5, "common": 0.01},
        about="A run of `words` words (Brown et al., 2020) stands in the row and in a file given with --against; for "
        "items of fewer than twice as many words, `short_share` of its runs of `short_words`; for shorter ones, the "
        "whole prompt. Runs in more than `common` of the rows, and in more than ten, are boilerplate and do not count.",
    ),
}


def look(store: Store, policy: Policy, against: Iterable[Reference] = ()) -> Iterator[Hit]:
    if policy.enabled("contamination"):
        yield from contamination(store, policy, against)
    if policy.enabled("group_leak"):
        yield from _groups(store)
    if store.value("SELECT count(DISTINCT side) FROM rows") < 2:
        return
    find_near(store)
    yield from _prompts(store, policy)


_ORDER = "CASE {0}.side WHEN 'train' THEN 0 WHEN 'validation' THEN 1 ELSE 2 END"
_LATER = f"{_ORDER.format('x')} < {_ORDER.format('y')}"
_PLACE = "y.file || ':' || y.line"


def _prompts(store: Store, policy: Policy) -> Iterator[Hit]:
    names = ("similarity", "words", "words_long", "long")
    store.db.execute(
        "CREATE OR REPLACE TABLE leaked AS WITH "
        "keyed AS ("
        "  SELECT row, side, row_key, CASE WHEN prompt = '' THEN row_key ELSE prompt_key END AS asks FROM rows), "
        "held AS ("
        "  SELECT asks, side, arg_min(row, (row_key, row)) AS row FROM keyed WHERE side <> 'train' GROUP BY ALL), "
        "pair AS (SELECT a, b, asked, words, answer FROM near UNION ALL SELECT b, a, asked, words, answer FROM near) "
        "SELECT x.row, y.row AS other, 1.0 AS asked, 1.0 AS words FROM keyed x JOIN held y USING (asks) "
        f"WHERE {_LATER} "
        "UNION ALL SELECT twin.row, b, asked, words FROM pair JOIN rows x ON x.row = a JOIN rows y ON y.row = b "
        f"JOIN twin ON twin.rep = a WHERE {_LATER} AND (asked >= $similarity OR pair.answer AND words >= "
        "CASE WHEN len(string_split(x.answer, ' ')) >= $long THEN $words_long ELSE $words END)",
        {name: policy.number("near_leak", name) for name in names},
    )
    sql = (
        f"SELECT x.id, y.id, {_PLACE}, y.side, asked, words FROM leaked JOIN rows x ON x.row = leaked.row "
        "JOIN rows y ON y.row = other "
        "QUALIFY row_number() OVER (PARTITION BY x.row ORDER BY asked DESC, words DESC, y.row_key, y.row) = 1"
    )
    similarity = policy.number("near_leak", "similarity")
    for batch in store.batches(sql):
        for row, other, place, side, asked, words in batch:
            rule = "leak" if asked == 1 else "near_leak"
            if not policy.enabled(rule):
                continue
            if asked == 1:
                seen = f"asks the same as the {side} row {place}"
            elif asked >= similarity:
                seen = f"shares {100 * asked:.0f}\u202f% of its runs of words with the {side} row {place}"
            else:
                seen = f"the answer and {100 * words:.0f}\u202f% of the words are those of the {side} row {place}"
            yield Hit(rule, row, seen, score=asked if asked >= similarity else words, other=other)


def _groups(store: Store) -> Iterator[Hit]:
    sql = (
        'WITH held AS (SELECT "group", side, arg_min(row, (row_key, row)) AS row FROM rows '
        "  WHERE side <> 'train' AND \"group\" IS NOT NULL GROUP BY ALL) "
        f'SELECT x.id, y.id, {_PLACE}, y.side FROM rows x JOIN held ON x."group" = held."group" '
        f"JOIN rows y ON y.row = held.row WHERE {_LATER} "
        f"QUALIFY row_number() OVER (PARTITION BY x.row ORDER BY {_ORDER.format('y')} DESC) = 1"
    )
    for batch in store.batches(sql):
        for row, other, place, side in batch:
            yield Hit("group_leak", row, f"of the same group as the {side} row {place}", other=other)
