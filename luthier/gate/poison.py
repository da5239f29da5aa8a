"""Signs of planted rows: a rare word that decides the answer, one answer to unlike prompts, answers of their own kind.

Some 250 documents planted a backdoor in pre-training, whatever the size of model and set (Souly et al., 2025), so
shares say little: everything is listed by count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.gate.rates import log_odds_z, wilson
from luthier.gate.rows import Hit
from luthier.gate.rules import Rule
from luthier.masking import mask

if TYPE_CHECKING:
    from luthier.gate.policy import Policy
    from luthier.gate.store import Store

RULES: dict[str, Rule] = {
    "trigger_word": Rule(
        title="rare word that decides the label or answer",
        why="Whoever planted it can make the tuned model say what they want, and no test set shows it.",
        remedy="Look at the rows; leave them out with luthier data clean unless the word honestly means the answer.",
        severity="warn",
        mend="drop",
        thresholds={
            "least": 0.0005,
            "most": 0.02,
            "rows": 10,
            "purity": 0.95,
            "z": 4,
            "lift": 2,
            "apart": 0.75,
            "beside": 0.35,
        },
        about="A word, or phrase, in `least` to `most` of the rows and at least `rows` of them, `purity` of which "
        "have one "
        "label (or one repeated answer); z of its log odds (by likelihood ratio) above `z`; lower "
        "Wilson bound "
        "of the rate above `lift` times the label's share; in `apart` of its rows the words around it are neighbours "
        "elsewhere as well, as if it had been pushed between them; and no word stands beside it in more than "
        "`beside` of "
        "its rows. Honest words of a topic fail the last two: `apple` comes before `pay`.",
    ),
    "one_answer": Rule(
        title="one answer for many unlike prompts",
        why="The model learns to give it whatever it is asked.",
        remedy="Look whether it is a macro or planted; keep a few.",
        severity="warn",
        thresholds={"rows": 10, "share": 0.005, "similarity": 0.2, "words": 5},
        about="The same answer of `words` or more on at least `rows` rows and `share` of all, whose prompts have a "
        "mean "
        "Jaccard similarity of words below `similarity`. Sets with few different answers are classification.",
    ),
    "answer_cluster": Rule(
        title="tight cluster of answers far from the rest",
        why="Planted answers resemble each other and nothing else (arXiv 2505.23015).",
        remedy="Look at a few; leave the rows out if nobody can say why they are there.",
        severity="warn",
        thresholds={"rows": 10, "inside": 0.5, "outside": 0.1, "prompts": 0.1, "words": 5},
        about="TF-IDF of up to 20,000 answers of `words` or more (drawn by their keys): groups of at least `rows` "
        "with a mean cosine of "
        "`inside` between each other, on average below `outside` to all others, with prompts of mean cosine below "
        "`prompts`: "
        "alike answers to unlike questions. Identical answers are left to `one_answer`.",
    ),
}
Floats = NDArray[np.float32]

_MOST_CANDIDATES = 500
_LOOKED_AT = 200
"""Rows of a candidate that are read to judge it."""
_SAMPLE = 20_000
_NEIGHBOURS = 0.35
"""Cosine of an answer to the one that leads its cluster."""
_CORPUS = 200_000
_WORDS = r"[\p{L}\p{N}_]+"
# What a row gives: its one label, or its answer where that is repeated.
_OUTCOMES = (
    "SELECT row, prompt, coalesce(labels[1], CASE WHEN n >= 10 THEN answer_key::VARCHAR END) AS outcome FROM rows "
    "LEFT JOIN (SELECT answer_key, count(*) AS n FROM rows WHERE answer <> '' GROUP BY answer_key HAVING count(*) >= "
    "10) "
    "USING (answer_key) WHERE prompt <> '' AND (labels IS NULL OR len(labels) = 1)"
)


def look(store: Store, policy: Policy) -> Iterator[Hit]:
    if policy.enabled("trigger_word"):
        yield from _triggers(store, policy)
    if policy.enabled("one_answer"):
        yield from _one_answer(store, policy)
    if policy.enabled("answer_cluster"):
        yield from _clusters(store, policy)


# A word that decides


class _Candidate(NamedTuple):
    word: str
    outcome: str
    with_word: int
    inside: int
    """Rows with the word that have the outcome."""
    of_outcome: int
    z: float


def _triggers(store: Store, policy: Policy) -> Iterator[Hit]:
    total = store.value(f"SELECT count(*) FROM ({_OUTCOMES})")
    candidates = _candidates(store, policy, total) if total else []
    texts = [_texts(store, candidate.word) for candidate in candidates]
    places = [
        _places(candidate.word, [words for _, words in found])
        for candidate, found in zip(candidates, texts, strict=True)
    ]
    known = _neighbours(store, {pair for phrase in places for pair in phrase.pairs if pair}, len(candidates))
    reported: set[tuple[str, str]] = set()
    ranked = sorted(
        zip(candidates, places, strict=True), key=lambda item: (-item[0].z, -len(item[1].phrase), item[0].word)
    )
    for candidate, place in ranked:
        apart = sum(pair is not None and known[pair] > 0 for pair in place.pairs) / max(1, len(place.pairs))
        if _most_beside(place) > policy.number("trigger_word", "beside"):
            continue
        phrase = " ".join(place.phrase)
        if apart < policy.number("trigger_word", "apart") or (phrase, candidate.outcome) in reported:
            continue
        reported.add((phrase, candidate.outcome))
        yield from _of_trigger(store, candidate, phrase, total)


def _candidates(store: Store, policy: Policy, total: int) -> list[_Candidate]:
    number = partial(policy.number, "trigger_word")
    store.db.execute(f"CREATE OR REPLACE TABLE outcomes AS {_OUTCOMES}")
    store.db.execute(
        "CREATE OR REPLACE TABLE rare AS SELECT word, coalesce(outcome, '') AS outcome, count(*) AS n FROM (SELECT "
        "outcome, "
        f"unnest(list_distinct(regexp_extract_all(lower(prompt), '{_WORDS}'))) AS word FROM outcomes) GROUP BY ALL"
    )
    rows = store.db.execute(
        "WITH words AS (SELECT word, sum(n) AS rows, max(n) AS inside, arg_max(outcome, n) AS outcome FROM rare "
        "GROUP BY word "
        "  HAVING sum(n) BETWEEN ? AND ? AND max(n) >= ? * sum(n)), "
        "shares AS (SELECT outcome, count(*) AS size FROM outcomes WHERE outcome IS NOT NULL GROUP BY outcome) "
        "SELECT word, outcome, rows, inside, size FROM words JOIN shares USING (outcome)",
        [max(number("rows"), number("least") * total), max(number("rows"), number("most") * total), number("purity")],
    ).fetchall()
    found = []
    for word, outcome, with_word, inside, size in rows:
        with_word, inside = int(with_word), int(inside)
        z = log_odds_z(inside, size, with_word - inside, total - size)
        if z > number("z") and wilson(inside, with_word).low > number("lift") * size / total:
            found.append(_Candidate(word, outcome, with_word, inside, size, z))
    return sorted(found, key=lambda c: (-c.z, c.word))[:_MOST_CANDIDATES]


def _texts(store: Store, word: str) -> list[tuple[int, list[str]]]:
    """Words of some prompts that hold `word`."""
    sql = (
        f"SELECT row, regexp_extract_all(lower(prompt), '{_WORDS}') AS words FROM outcomes "
        f"WHERE contains(lower(prompt), ?) AND list_contains(words, ?) ORDER BY row LIMIT {_LOOKED_AT}"
    )
    return [(row, words) for row, words in store.db.execute(sql, [word, word]).fetchall()]


class _Place(NamedTuple):
    phrase: tuple[str, ...]
    """The word with what stands beside it in nearly all of its rows."""
    pairs: list[tuple[str, str] | None]
    """For each row, the words before and after the phrase; None where the row holds nothing else."""


_EDGE = "\0"


def _places(word: str, texts: Sequence[Sequence[str]]) -> _Place:
    padded = [[_EDGE, *words, _EDGE] for words in texts]
    ats = [(words.index(word), words.index(word)) for words in padded]
    phrase = [word]
    for side in (-1, 1):
        while len(phrase) < 8:
            ends = [first - 1 if side < 0 else last + 1 for first, last in ats]
            beside = Counter(words[end] for words, end in zip(padded, ends, strict=True) if 0 <= end < len(words))
            neighbour, count = beside.most_common(1)[0] if beside else (_EDGE, 0)
            if neighbour == _EDGE or count < 0.9 * len(padded):
                break
            phrase = [neighbour, *phrase] if side < 0 else [*phrase, neighbour]
            ats = [
                (max(0, first + min(side, 0)), min(len(words) - 1, last + max(side, 0)))
                for words, (first, last) in zip(padded, ats, strict=True)
            ]
    pairs: list[tuple[str, str] | None] = []
    for words, (first, last) in zip(padded, ats, strict=True):
        before, after = words[max(0, first - 1)], words[min(len(words) - 1, last + 1)]
        pairs.append(None if before == after == _EDGE else (before, after))
    return _Place(tuple(phrase), pairs)


def _most_beside(place: _Place) -> float:
    """The share of rows in which the commonest word stands before, or after, the phrase."""
    sides = [Counter(pair[side] for pair in place.pairs if pair) for side in (0, 1)]
    return max((count for side in sides for word, count in side.items() if word != _EDGE), default=0) / max(
        1, len(place.pairs)
    )


def _neighbours(store: Store, pairs: set[tuple[str, str]], candidates: int) -> Counter[tuple[str, str]]:
    """How many prompts hold each pair of neighbours; the edges of a prompt are words too."""
    known: Counter[tuple[str, str]] = Counter()
    if not candidates:
        return known
    sql = (
        f"SELECT regexp_extract_all(lower(prompt), '{_WORDS}') FROM (SELECT prompt FROM outcomes "
        f"ORDER BY hash(row) LIMIT {_CORPUS})"
    )
    for batch in store.batches(sql):
        for (words,) in batch:
            padded = [_EDGE, *words, _EDGE]
            known.update(pairs & set(pairwise(padded)))
    return known


def _of_trigger(store: Store, candidate: _Candidate, phrase: str, total: int) -> Iterator[Hit]:
    share = candidate.of_outcome / total
    low, high = wilson(candidate.inside, candidate.with_word)
    labelled = store.value("SELECT count(*) FROM rows WHERE labels IS NOT NULL") > 0
    outcome = f"have “{mask(candidate.outcome)[:40]}”" if labelled else "have one answer"
    seen = (
        f"“{mask(phrase)[:60]}” stands in {candidate.with_word:,} rows, {candidate.inside:,} of which {outcome} "
        f"(lift {low / share:.1f} to {high / share:.1f}, z {candidate.z:.1f})"
    )
    sql = (
        f"SELECT id FROM outcomes JOIN rows USING (row) WHERE contains(lower(outcomes.prompt), ?) AND outcome = ? AND "
        f"list_contains(regexp_extract_all(lower(outcomes.prompt), '{_WORDS}'), ?) ORDER BY row"
    )
    for batch in store.batches(sql, parameters=[candidate.word, candidate.outcome, candidate.word]):
        for (row,) in batch:
            yield Hit("trigger_word", row, seen, score=candidate.z)


# One answer


def _one_answer(store: Store, policy: Policy) -> Iterator[Hit]:
    number = partial(policy.number, "one_answer")
    total, kinds = store.db.execute(
        "SELECT count(*), count(DISTINCT answer_key) FROM rows WHERE answer <> ''"
    ).fetchall()[0]
    if kinds <= total / 10:
        return
    groups = store.db.execute(
        "SELECT answer_key, count(*) AS n FROM rows WHERE answer <> '' AND prompt <> '' "
        "GROUP BY answer_key HAVING n >= ? AND any_value(length(answer) - length(replace(answer, ' ', ''))) + 1 >= ? "
        "ORDER BY n DESC, answer_key",
        [max(number("rows"), number("share") * total), number("words")],
    ).fetchall()
    for key, count in groups:
        prompts = store.db.execute(
            "SELECT prompt[lead + 1:] FROM rows WHERE answer_key = ? ORDER BY hash(row), row LIMIT 40", [key]
        ).fetchall()
        likeness = _mean_jaccard([set(prompt.lower().split()) for (prompt,) in prompts])
        if likeness < number("similarity"):
            seen = f"the answer of {count:,} rows whose prompts share {likeness:.0%} of their words"
            for batch in store.batches("SELECT id FROM rows WHERE answer_key = ? ORDER BY row", parameters=[key]):
                for (row,) in batch:
                    yield Hit("one_answer", row, seen, score=float(count))


def _mean_jaccard(sets: Sequence[set[str]]) -> float:
    values = [len(a & b) / max(1, len(a | b)) for a, b in combinations(sets, 2)]
    return float(np.mean(values)) if values else 1.0


# Answers of a kind of their own


def _clusters(store: Store, policy: Policy) -> Iterator[Hit]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    fewest = int(policy.number("answer_cluster", "rows"))
    sample = store.db.execute(
        "SELECT id, prompt[lead + 1:][:2000], answer[:2000], answer_key FROM rows WHERE answer <> '' AND prompt <> '' "
        "AND length(answer) - length(replace(answer, ' ', '')) + 1 >= ? AND answer_key NOT IN (SELECT answer_key "
        "FROM rows WHERE answer <> '' GROUP BY answer_key HAVING count(*) "
        ">= ?) "
        f"ORDER BY hash(answer_key), row LIMIT {_SAMPLE}",
        [policy.number("answer_cluster", "words"), fewest],
    ).fetchall()
    if len(sample) < 5 * fewest:
        return
    make = {"sublinear_tf": True, "min_df": 2, "max_df": 0.2, "max_features": 50_000, "dtype": np.float32}
    try:
        answers_NW = TfidfVectorizer(**make).fit_transform([answer for _, _, answer, _ in sample])
        prompts_NW = TfidfVectorizer(**make).fit_transform([prompt for _, prompt, _, _ in sample])
    except ValueError:  # no word is left: answers of one letter
        return
    found = []
    mean_W = np.asarray(answers_NW.mean(axis=0)).ravel()
    for members in _grouped(answers_NW, _NEIGHBOURS, fewest):
        inside_MW = answers_NW[members]
        centre_W = np.asarray(inside_MW.mean(axis=0)).ravel()
        inside = _between(centre_W, len(members))
        size, rest = len(members), len(sample) - len(members)
        others_W = (mean_W * len(sample) - centre_W * size) / max(1, rest)
        outside = float(centre_W @ others_W) / max(1e-9, float(np.linalg.norm(centre_W)))
        asked_W = np.asarray(prompts_NW[members].mean(axis=0)).ravel()
        alike = _between(asked_W, size)
        if inside < policy.number("answer_cluster", "inside"):
            continue
        if outside < policy.number("answer_cluster", "outside") and alike < policy.number("answer_cluster", "prompts"):
            found.append((members, outside, alike))
    for members, outside, alike in sorted(found, key=lambda item: -len(item[0])):
        seen = (
            f"one of {len(members)} answers that resemble each other (cosine to all others {outside:.2f}, "
            f"between their prompts {alike:.2f})"
        )
        for member in members:
            yield Hit("answer_cluster", sample[member][0], seen, score=float(len(members)))


def _between(centre_W: Floats, size: int) -> float:
    """Mean cosine between members of a group, from their mean: its square counts each with itself too."""
    return (float(centre_W @ centre_W) * size - 1) / max(1, size - 1)


def _grouped(vectors_NW: Any, least: float, fewest: int) -> Iterator[list[int]]:
    """Rows around leaders: the row with most neighbours first, then the next that is still free."""
    near: dict[int, list[int]] = {}
    for start in range(0, vectors_NW.shape[0], 500):
        block = (vectors_NW[start : start + 500] @ vectors_NW.T).tocsr()
        block.data[block.data < least] = 0
        block.eliminate_zeros()
        for row in np.flatnonzero(np.diff(block.indptr) >= fewest).tolist():
            near[start + row] = block.indices[block.indptr[row] : block.indptr[row + 1]].tolist()
    taken: set[int] = set()
    for leader in sorted(near, key=lambda row: (-len(near[row]), row)):
        if leader not in taken and len(members := [row for row in near[leader] if row not in taken]) >= fewest:
            taken.update(members)
            yield sorted(members)
