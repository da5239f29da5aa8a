"""Rows that contradict each other, and labels that the rest of the data speaks against."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from luthier.gate.confident import TooFew, out_of_fold, suspects, tfidf, unlikely
from luthier.gate.pairs import components, find_near
from luthier.gate.rows import Hit
from luthier.gate.rules import Rule
from luthier.gate.text import bare, normal
from luthier.masking import mask

if TYPE_CHECKING:
    from luthier.gate.policy import Policy
    from luthier.gate.store import Store

Features = Callable[[Sequence[str]], Any]
"""Texts to a matrix, sparse or dense, one row each: TF-IDF, or what a model makes of them."""
RATINGS = ("reward", "rating", "score", "stars", "verdict", "desirable", "preference")
"""Columns in which a row's answer is judged."""

RULES: dict[str, Rule] = {
    "contradiction": Rule(
        title="contradiction",
        why="One question with two answers teaches the model to guess between them.",
        remedy="Decide which is right and correct or drop the other; look at both rows.",
        severity="warn",
        thresholds={"similarity": 0.75, "similarity_short": 0.85, "short": 18, "overlap": 0.25},
        about="Rows that ask the same, or nearly (similarity as in near_duplicate, at least `similarity`, and "
        "`similarity_short` below `short` words, where one word can make another question) with the same numbers and "
        "under the same system turns, have no label in common, or answers that share less than `overlap` of their "
        "words (token F1). Errs where many different answers are right, as in stories.",
    ),
    "contradictory_rating": Rule(
        title="contradictory rating",
        why="The same answer judged good and bad cancels out, and says that the judges disagree.",
        remedy="Decide which holds, or average before training.",
        severity="warn",
        thresholds={"spread": 0.5},
        about="Prompt and answer are equal and a rating column (reward, rating, score, stars, verdict, desirable, "
        "preference) differs; or the number to predict for one text differs by `spread` of the range of all.",
    ),
    "label_noise": Rule(
        title="label that is probably wrong",
        why="Wrong labels are learnt like right ones, and wrong test labels hide who is better.",
        remedy="Look at the rows in this order; the suggested label is what other rows speak for. Drop none unseen.",
        severity="warn",
        thresholds={"odds": 0.2, "sample": 200_000, "class_rows": 10},
        about="A model that has not seen the row, nor any near duplicate or row of its group, thinks another label "
        "likelier by the number of labels times `odds`, at least twice. Logistic regression in five folds, on TF-IDF "
        "of words and characters in 300 dimensions, or on features of a model. Above `sample` rows, so many are drawn "
        "by the hash of their text. Labels with fewer than `class_rows` rows are left out. Errs where labels overlap.",
    ),
    "label_doubt": Rule(
        title="label that is in doubt",
        why="Wrong labels are among them, and rows that lie between two labels.",
        remedy="Look at these after those of label_noise.",
        severity="info",
        about="Confident learning (Northcutt et al., 2021), with the probabilities of label_noise: another label is at "
        "least as likely as it is on average of rows that have it. What label_noise names is left out.",
    ),
    "unjudged_label": Rule(
        title="label with too few rows to be judged",
        why="Whether its rows are labelled rightly cannot be told from so few.",
        remedy="Add rows, join it with another label, or read its rows.",
        severity="info",
        about="Fewer rows than `class_rows` of label_noise, which leaves these labels out.",
    ),
    "sampled_labels": Rule(
        title="labels were checked on a sample",
        why="Wrong labels outside the sample are not reported.",
        remedy="Raise `sample` of label_noise where there is memory for more.",
        severity="info",
    ),
}


def look(store: Store, policy: Policy, features: Features = tfidf) -> Iterator[Hit]:
    if policy.enabled("contradiction"):
        find_near(store)
        yield from _contradictions(store, policy)
    if policy.enabled("contradictory_rating"):
        yield from _ratings(store, policy.number("contradictory_rating", "spread"))
    if policy.enabled("label_noise"):
        find_near(store)
        yield from _labels(store, policy, features)


def _contradictions(store: Store, policy: Policy) -> Iterator[Hit]:
    names = ("similarity", "similarity_short", "short", "overlap")
    similarity, similarity_short, short, least = (policy.number("contradiction", name) for name in names)
    found: dict[int, tuple[float, int, str]] = {}
    sql = (
        "SELECT a, b, asked, x.prompt[x.lead + 1:], y.prompt[y.lead + 1:], x.answer, y.answer, x.labels, y.labels "
        "FROM near JOIN rows x ON x.row = a JOIN rows y ON y.row = b "
        "WHERE asked >= ? AND system AND NOT near.answer AND x.prompt <> '' AND y.prompt <> '' "
        "AND (x.labels IS DISTINCT FROM y.labels OR x.answer_key <> y.answer_key)"
    )
    for batch in store.batches(sql, 2_000, [min(similarity, similarity_short)]):
        for a, b, asked, prompt_a, prompt_b, answer_a, answer_b, labels_a, labels_b in batch:
            words = min(len(prompt_a.split()), len(prompt_b.split()))
            needed = similarity_short if words < short else similarity
            if asked < needed or _numbers(prompt_a) != _numbers(prompt_b):
                continue
            seen = _opposed(answer_a, answer_b, labels_a, labels_b, least)
            for row, other in ((a, b), (b, a)) if seen else ():
                found[row] = max(found.get(row, (0.0, 0, "")), (asked, -other, seen))
    yield from _pairs(store, found)


def _opposed(a: str, b: str, labels_a: list[str] | None, labels_b: list[str] | None, least: float) -> str:
    """What is contradictory about two answers, or nothing."""
    if labels_a and labels_b:
        return "" if set(labels_a) & set(labels_b) else "other labels than"
    if (overlap := token_f1(a, b)) < least:
        return f"an answer that shares {100 * overlap:.0f}\u202f% of its words with that of"
    return ""


def _pairs(store: Store, found: dict[int, tuple[float, int, str]]) -> Iterator[Hit]:
    """One hit for every row that a found one stands for."""
    wanted = sorted(found)
    for begin in range(0, len(wanted), 10_000):
        some = wanted[begin : begin + 10_000]
        others = [-found[row][1] for row in some]
        sql = (
            "SELECT rep, x.id, y.id, y.file || ':' || y.line "
            "FROM (SELECT unnest(?::BIGINT[]) AS rep, unnest(?::BIGINT[]) AS other) JOIN twin USING (rep) "
            "JOIN rows x ON x.row = twin.row JOIN rows y ON y.row = other"
        )
        for batch in store.batches(sql, parameters=[some, others]):
            for rep, row, other, place in batch:
                similarity, _, seen = found[rep]
                asks = "asks the same" if similarity == 1 else "asks nearly the same"
                yield Hit("contradiction", row, f"{asks} and has {seen} {place}", score=similarity, other=other)


def token_f1(a: str, b: str) -> float:
    """Harmonic mean of the shares of words that two answers have in common, each as often as it stands there."""
    words_a, words_b = (Counter(bare(normal(text)).split()) for text in (a, b))
    common = (words_a & words_b).total()
    return 2 * common / max(words_a.total() + words_b.total(), 1)


def _numbers(text: str) -> list[str]:
    """Other numbers make another question, and so do other currencies."""
    return sorted(_NUMBER.findall(text))


_NUMBER = re.compile(r"[$€£¥₹]?\d+")


def _ratings(store: Store, spread: float) -> Iterator[Hit]:
    """Each row beside the lowest or the highest judgement of the same, whichever is farther."""
    ratings = " UNION ALL ".join(
        f"SELECT row, row_key AS key, '{name}' AS name, columns ->> '$.{name}' AS rating, NULL AS value FROM rows"
        for name in RATINGS
    )
    store.db.execute(
        "CREATE OR REPLACE TABLE judged AS SELECT row, key, name, "
        "dense_rank() OVER (PARTITION BY name ORDER BY rating) AS value, "
        f"0.0 AS needed FROM ({ratings}) WHERE rating IS NOT NULL "
        "UNION ALL SELECT row, prompt_key, '', value, ? * (max(value) OVER () - min(value) OVER ()) "
        "FROM rows WHERE value IS NOT NULL",
        [spread],
    )
    sql = (
        "WITH split AS (SELECT key, name, min(value) AS least, max(value) AS most, arg_min(row, (value, row)) AS low, "
        "  arg_max(row, (value, row)) AS high FROM judged GROUP BY ALL HAVING most - least > any_value(needed)) "
        "SELECT x.id, y.id, y.file || ':' || y.line, name FROM judged JOIN split USING (key, name) "
        "JOIN rows x USING (row) "
        "JOIN rows y ON y.row = CASE WHEN 2 * judged.value < least + most THEN high ELSE low END"
    )
    for batch in store.batches(sql):
        for row, other, place, name in batch:
            seen = f"the same as {place} with another {name}" if name else f"the text of {place} with another number"
            yield Hit("contradictory_rating", row, seen, other=other)


def _labels(store: Store, policy: Policy, features: Features) -> Iterator[Hit]:
    """Rows with exactly one label, in the order of their content, so that reading order changes nothing."""
    sample, fewest = int(policy.number("label_noise", "sample")), int(policy.number("label_noise", "class_rows"))
    one = "FROM rows WHERE len(labels) = 1"
    total = store.value(f"SELECT count(*) {one}")
    if total > sample and policy.enabled("sampled_labels"):
        row = store.value(f"SELECT arg_min(id, row) {one}")
        yield Hit("sampled_labels", row, f"{sample:,} of {total:,} rows were checked", score=sample / total)
    rows: list[tuple[int, str, int]] = []
    texts: list[str] = []
    names: list[str] = []
    sql = f'SELECT row, id, row_key, "group", prompt, labels[1] {one} ORDER BY row_key, labels[1], row LIMIT {sample}'
    group_of: list[Any] = []
    for batch in store.batches(sql):
        for row, id, row_key, group, prompt, label in batch:
            rows.append((row, id, row_key))
            texts.append(prompt)
            names.append(label)
            group_of.append(group)
    counts = Counter(names)
    if policy.enabled("unjudged_label"):
        for (_, id, _), name in zip(rows, names, strict=True):
            if counts[name] < fewest:
                yield Hit("unjudged_label", id, f"{mask(name)}: {counts[name]} rows", score=counts[name])
    kept = [i for i, name in enumerate(names) if counts[name] >= fewest]
    classes = sorted({names[i] for i in kept})
    if len(classes) < 2:
        return
    place = {rows[i][0]: at for at, i in enumerate(kept)}
    labels_N = np.array([classes.index(names[i]) for i in kept], dtype=np.int64)
    folds = _apart(store, place, [group_of[i] for i in kept], [rows[i][2] for i in kept])
    try:
        # The order of sums, and with it what lies just above the bound, would depend on the number of threads.
        with threadpool_limits(1):
            probabilities_NC = out_of_fold(features([texts[i] for i in kept]), labels_N, folds)
    except TooFew:
        return
    wrong = unlikely(probabilities_NC, labels_N, odds=max(2.0, policy.number("label_noise", "odds") * len(classes)))
    named = {found.row for found in wrong}
    doubted = [found for found in suspects(probabilities_NC, labels_N) if found.row not in named]
    for rule, some in (("label_noise", wrong), ("label_doubt", doubted)):
        for found in some if policy.enabled(rule) else ():
            given, other = mask(classes[labels_N[found.row]]), mask(classes[found.suggested])
            seen = f"labelled {given} ({found.given:.2f}), looks like {other} ({found.confidence:.2f})"
            yield Hit(rule, rows[kept[found.row]][1], seen, score=found.confidence)


def _apart(store: Store, place: dict[int, int], groups: Sequence[Any], keys: Sequence[int]) -> NDArray[np.int64]:
    """A number for each row, the same for rows that must stand in one fold: near duplicates and rows of a group."""
    edges: list[tuple[int, int]] = []
    sql = "SELECT row, rep FROM twin WHERE row <> rep UNION ALL SELECT a, b FROM near WHERE asked >= 0.7"
    for batch in store.batches(sql):
        edges += [(place[a], place[b]) for a, b in batch if a in place and b in place]
    first: dict[Any, int] = {}
    for at, group in enumerate(groups):
        if group is not None:
            edges.append((first.setdefault(group, at), at))
    smallest = components(len(keys), edges)
    return np.array([keys[i] % (1 << 62) for i in smallest.tolist()], dtype=np.int64)
