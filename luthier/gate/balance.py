"""How labels, lengths, languages and groups of people are distributed, and what comes of being named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from luthier.gate.rates import ratio
from luthier.gate.rows import Hit
from luthier.gate.rules import Rule
from luthier.gate.terms import groups
from luthier.gate.uniform import long_or_short, unfinished
from luthier.masking import mask

if TYPE_CHECKING:
    from luthier.gate.policy import Policy
    from luthier.gate.store import Store

RULES: dict[str, Rule] = {
    "rare_label": Rule(
        title="label with few rows",
        why="It can neither be learnt nor measured.",
        remedy="Add rows, or join the label with another.",
        severity="warn",
        thresholds={"rows": 10},
        about="A label on fewer than `rows` rows, all sides together. One hit for each label, at its first row.",
    ),
    "label_imbalance": Rule(
        title="one label outweighs the others",
        why="A model that always says it looks good on accuracy.",
        remedy="Judge by macro F1, add rows of the others, or take fewer of it.",
        severity="warn",
        thresholds={"share": 0.8},
        about="One label on more than `share` of the rows, or no other label at all.",
    ),
    "length_outlier": Rule(
        title="far longer or shorter than the rest",
        why="Often two rows in one, a page pasted by mistake, or a text that was lost.",
        remedy="Look at it; there may be nothing wrong.",
        severity="info",
        thresholds={"z": 5, "rows": 50},
        about="|z| of the logarithm of the characters of prompt or answer above `z`, from median and MAD, in sets of "
        "`rows` or more.",
    ),
    "unfinished_answer": Rule(
        title="answer that ends unlike the others",
        why="An answer that was cut off teaches the model to stop in the middle.",
        remedy="Take the whole answer from its source, or leave the row out.",
        severity="warn",
        mend="drop",
        thresholds={"share": 0.95, "rows": 50, "words": 8},
        about="Where `share` of the answers of `words` or more end with punctuation (or have a last line with one "
        "beginning, such as ####), those that do not; elsewhere those whose last word stands nowhere else and begins "
        "words that do. Headlines and lists are found as well.",
    ),
    "answer_language": Rule(
        title="answer in another language than the prompt",
        why="Users are answered in a language that they did not write.",
        remedy="Translate it, leave it out, or name the pair in the task.",
        severity="warn",
        thresholds={"share": 0.2},
        about="Both languages are told with confidence and differ. A pair of languages that makes more than `share` of "
        "the rows is the task (translation), and gives nothing.",
    ),
    "other_language": Rule(
        title="language that is not expected",
        why="It takes training from the languages that are.",
        remedy="Leave it out, or add it to `languages` in the policy.",
        severity="warn",
        about="Where the policy names `languages`: rows whose answer or text is in another one.",
    ),
    "group_share": Rule(
        title="one group is named far more often than another",
        why="The model knows one group better than the other.",
        remedy="Look whether the data mirror those who will use the model; add rows.",
        severity="info",
        thresholds={"low": 0.8, "high": 1.25, "rows": 20},
        about="Women and men, with at least `rows` rows together: the interval (Wilson, 95 %) of the ratio of their "
        "shares lies outside of `low` to `high`. Words are in `luthier/gate/terms.py`, more in the policy's `terms`.",
    ),
    "group_outcome": Rule(
        title="outcome that depends on a group",
        why="The model learns to decide by the group instead of the case.",
        remedy="Look at the rows; test with counterfactual pairs (`luthier data audit --pairs`); add rows that break "
        "the link.",
        severity="warn",
        thresholds={"low": 0.8, "high": 1.25, "rows": 10, "outcomes": 100},
        about="Rate of a label (or of an answer, where there are at most `outcomes` different ones) among rows that "
        "name "
        "one group against rows that name another of its kind (gender, age, ...), or against all other rows where "
        "there is none. The interval of the ratio, with Bonferroni's correction for the number of comparisons, lies "
        "outside "
        "of `low` to `high`; `rows` at least on both sides. A link is no proof of harm: illnesses differ by sex.",
    ),
}


def look(store: Store, policy: Policy) -> Iterator[Hit]:
    for rules, found in (
        (("rare_label", "label_imbalance"), _labels),
        (("length_outlier",), long_or_short),
        (("unfinished_answer",), unfinished),
        (("answer_language",), _answer_languages),
        (("other_language",), _other_languages),
        (("group_share", "group_outcome"), _groups),
    ):
        if any(map(policy.enabled, rules)):
            yield from found(store, policy)


# Labels


def _labels(store: Store, policy: Policy) -> Iterator[Hit]:
    counted = store.db.execute(
        "SELECT label, count(*), arg_min(id, row) FROM (SELECT unnest(labels) AS label, id, row FROM rows) "
        "GROUP BY label ORDER BY count(*) DESC, label"
    ).fetchall()
    if not counted:
        return
    labelled = store.value("SELECT count(*) FROM rows WHERE labels IS NOT NULL")
    label, most, row = counted[0]
    if policy.enabled("label_imbalance"):
        if len(counted) == 1 or most > policy.number("label_imbalance", "share") * labelled:
            seen = f"“{mask(label)[:60]}” on {most:,} of {labelled:,} rows; {len(counted)} labels in all"
            yield Hit("label_imbalance", row, seen, score=most / labelled)
    for label, count, row in counted:
        if count < policy.number("rare_label", "rows"):
            yield Hit("rare_label", row, f"“{mask(label)[:60]}” on {count} rows", score=count)


# Languages


def _answer_languages(store: Store, policy: Policy) -> Iterator[Hit]:
    sql = (
        "WITH told AS (SELECT row, id, language, prompt_language FROM rows WHERE answer <> '' AND language IS NOT NULL "
        "  AND prompt_language IS NOT NULL), total AS (SELECT count(*) AS all_rows FROM told), pairs AS (SELECT "
        "language, "
        "  prompt_language, count(*) AS n FROM told GROUP BY ALL) "
        "SELECT id, language, prompt_language FROM told JOIN pairs USING (language, prompt_language), total "
        "WHERE language <> prompt_language AND n <= ? * all_rows ORDER BY row"
    )
    for batch in store.batches(sql, parameters=[policy.number("answer_language", "share")]):
        for row, language, asked in batch:
            yield Hit("answer_language", row, f"asked in {asked}, answered in {language}")


def _other_languages(store: Store, policy: Policy) -> Iterator[Hit]:
    if policy.languages:
        sql = "SELECT id, language FROM rows WHERE language IS NOT NULL AND NOT list_contains(?, language) ORDER BY row"
        for batch in store.batches(sql, parameters=[list(policy.languages)]):
            for row, language in batch:
                yield Hit("other_language", row, f"{language}, where {', '.join(policy.languages)} are expected")


# Groups of people

_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)?")
Counts = Counter[tuple[str, str, str]]


def _groups(store: Store, policy: Policy) -> Iterator[Hit]:
    words = groups(policy.terms)
    outcomes = _outcomes(store, policy)
    named: Counter[tuple[str, str]] = Counter()
    with_outcome: Counts = Counter()
    total: Counter[str] = Counter()
    first: dict[tuple[str, str], str] = {}
    rows = 0
    for batch in store.batches("SELECT id, prompt, answer, labels, answer_key FROM rows ORDER BY row"):
        for row, prompt, answer, labels, key in batch:
            rows += 1
            found = {words[w] for w in _WORD.findall((prompt or answer).lower()) if w in words}
            got = labels or ([outcomes[key]] if key in outcomes else [])
            total.update(got)
            for group in found:
                named[group] += 1
                first.setdefault(group, row)
                with_outcome.update((*group, outcome) for outcome in got)
    if policy.enabled("group_share"):
        yield from _shares(policy, named, rows, first)
    yield from _rates(policy, named, with_outcome, total, rows, first)


def _outcomes(store: Store, policy: Policy) -> dict[int, str]:
    """Key -> text of the answers, where there are so few that they are outcomes."""
    most = int(policy.number("group_outcome", "outcomes"))
    found = store.db.execute(
        "SELECT answer_key, any_value(answer[:80]), count(*) FROM rows WHERE answer <> '' GROUP BY answer_key LIMIT ?",
        [most + 1],
    ).fetchall()
    rows = store.value("SELECT count(*) FROM rows WHERE answer <> ''")
    return {key: text for key, text, _ in found} if len(found) <= min(most, rows / 10) else {}


def _shares(
    policy: Policy, named: Counter[tuple[str, str]], rows: int, first: dict[tuple[str, str], str]
) -> Iterator[Hit]:
    women, men = named["gender", "women"], named["gender", "men"]
    if women + men < policy.number("group_share", "rows"):
        return
    low, high = ratio((min(women, men), rows), (max(women, men), rows))
    if high < policy.number("group_share", "low") or low > policy.number("group_share", "high"):
        less, more = ("women", "men") if women < men else ("men", "women")
        seen = f"{less} in {min(women, men):,} rows, {more} in {max(women, men):,}: ratio {low:.2f} to {high:.2f}"
        yield Hit("group_share", first["gender", more], seen, score=min(women, men) / max(women, men))


class _Compared(NamedTuple):
    kind: str
    group: str
    outcome: str
    inside: tuple[int, int]
    """Rows with the outcome, of those that name the group."""
    against: tuple[int, int]
    alone: bool
    """Against all other rows, because no other group of its kind is named."""


def _rates(
    policy: Policy,
    named: Counter[tuple[str, str]],
    with_outcome: Counts,
    total: Counter[str],
    rows: int,
    first: dict[tuple[str, str], str],
) -> Iterator[Hit]:
    fewest = policy.number("group_outcome", "rows")
    compared: list[_Compared] = []
    for (kind, group), count in sorted(named.items()):
        others = [other for (of, other) in named if of == kind and other != group]
        beside = sum(named[kind, other] for other in others)
        alone = beside < fewest
        for outcome in sorted(total):
            inside = with_outcome[kind, group, outcome]
            if alone:
                against = (total[outcome] - inside, rows - count)
            else:
                against = (sum(with_outcome[kind, other, outcome] for other in others), beside)
            if count >= fewest and against[1] >= fewest and inside + against[0] >= fewest:
                compared.append(_Compared(kind, group, outcome, (inside, count), against, alone))
    for kind, group, outcome, (got, of_group), against, alone in compared:
        low, high = ratio((got, of_group), against, confidence=1 - 0.05 / len(compared))
        if high < policy.number("group_outcome", "low") or low > policy.number("group_outcome", "high"):
            whose = "other rows" if alone else f"other groups by {kind}"
            seen = (
                f"“{mask(outcome)[:40]}” for {got} of {of_group} rows that name {group}, "
                f"{against[0]} of {against[1]} of {whose}: ratio {low:.2f} to {high:.2f}"
            )
            score = (got / of_group) / (against[0] / against[1]) if against[0] else None
            yield Hit("group_outcome", first[kind, group], seen, score=score)
