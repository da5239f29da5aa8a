"""Rows that stand in the data more than once: the same, nearly the same, or from one mask.

Only rows of one side, with the same labels and number, are compared here; across sides it is a leak, with other labels
a contradiction. Of the rows that are alike one is kept: a verified one before others (column `verified`), then the
one with the longest answer, then the longest prompt, then the first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from luthier.gate.pairs import find_near
from luthier.gate.rows import Hit
from luthier.gate.rules import Rule

if TYPE_CHECKING:
    from luthier.gate.policy import Policy
    from luthier.gate.store import Store

RULES: dict[str, Rule] = {
    "duplicate": Rule(
        title="duplicate",
        why="A row that stands twice counts twice: the model learns it by heart, and its mistakes with it.",
        remedy="Keep one of them: luthier data clean keeps the verified one, or the one with the longest answer.",
        severity="warn",
        mend="drop",
        about="Prompt and answer are equal after Unicode's compatibility forms, letter case and white space are "
        "evened out (NFKC, case folded), and so are labels and number. Rows of one side only.",
    ),
    "near_duplicate": Rule(
        title="near duplicate",
        why="Rows that differ in a word or a comma count nearly twice, and make the data look richer than they are.",
        remedy="Keep one of them, or raise `similarity` if such variants are meant.",
        severity="warn",
        mend="drop",
        thresholds={"similarity": 0.8, "digits": 0.2, "mask_rows": 20},
        about="Jaccard similarity of shingles (runs of 4 characters below 8 words, of 2 words below 48, of 3 words "
        "above; 3 characters in scripts without spaces) of prompt and answer without punctuation is at least "
        "`similarity`, not below 0.6. Candidates come from MinHash bands (Broder, 1997), each verified exactly. Also: "
        "rows that differ in digits alone, where digits are at most `digits` of the characters and fewer than "
        "`mask_rows` rows are so alike. Errs on short texts, where one word can change the meaning.",
    ),
    "paraphrase": Rule(
        title="prompt in other words with the same answer",
        why="Reworded or translated copies teach little that is new, and must not be split between train and test.",
        remedy="Keep them on one side (split by group); drop them if they were not meant.",
        severity="info",
        thresholds={"words": 0.35, "words_long": 0.2, "long": 8},
        about="The answers are equal and the sets of words of the prompts overlap (Jaccard) by `words`, `words_long` "
        "where the answer has `long` words or more. Answers that more than 100 rows have are left out as commonplaces.",
    ),
    "repeated_in_test": Rule(
        title="held-back row that stands twice",
        why="What is asked twice counts twice in the score, and the interval around it is too narrow.",
        remedy="Look whether it is meant. Nothing is taken from held-back rows.",
        severity="info",
        about="As duplicate and near_duplicate, in validation and test.",
    ),
    "template": Rule(
        title="rows from one mask",
        why="Rows that differ in their numbers alone teach the mask, and crowd out the rest.",
        remedy="Keep as many as the task needs, or add rows in other words.",
        severity="info",
        thresholds={"rows": 20},
        about="At least `rows` different rows of one side are equal once each run of digits is written as 0.",
    ),
    "crowded": Rule(
        title="rows too much alike to compare them all",
        why="Near duplicates among them may be missing from this report.",
        remedy="Take away duplicates and masks first, then look again.",
        severity="info",
        about="More than 1,000 rows (fewer, where that would make more than 20 candidate pairs a row) share a MinHash "
        "band; each was compared with one of them only. Or there were more than three candidate pairs a row, and those "
        "that share one band only were passed over: of pairs at 0.7 one in twenty, at 0.8 one in two thousand.",
    ),
}


def look(store: Store, policy: Policy) -> Iterator[Hit]:
    _keep(store)
    yield from _exact(store, policy)
    if policy.enabled("near_duplicate"):
        find_near(store)
        yield from _near(store, policy)
        if policy.enabled("crowded"):
            yield from _crowded(store)
            yield from _passed_over(store)
    if policy.enabled("paraphrase"):
        find_near(store)
        yield from _paraphrases(store, policy)
    if policy.enabled("template"):
        yield from _templates(store, int(policy.number("template", "rows")))


def _crowded(store: Store) -> Iterator[Hit]:
    for batch in store.batches("SELECT id, size FROM crowd JOIN rows USING (row)"):
        for row, size in batch:
            yield Hit(
                "crowded", row, f"{size:,} rows share a band with it; each was compared with it alone", score=size
            )


def _passed_over(store: Store) -> Iterator[Hit]:
    pairs = store.value("SELECT pairs FROM unverified")
    if pairs:
        first = store.value("SELECT id FROM rows WHERE row = 0")
        yield Hit("crowded", first, f"{pairs:,} pairs of rows share one band of 26, and were not compared", score=pairs)


def rule_of(side: str, rule: str) -> str:
    return rule if side == "train" else "repeated_in_test"


def _keep(store: Store) -> None:
    """The table `kept`: for each row, which of its copies is kept."""
    store.db.execute(
        "CREATE OR REPLACE TABLE kept AS SELECT row, first_value(row) OVER ("
        f"  PARTITION BY side, row_key, labels, value ORDER BY NOT {_VERIFIED}, row) AS kept FROM rows"
    )


def _exact(store: Store, policy: Policy) -> Iterator[Hit]:
    sql = (
        "SELECT x.side, x.id, y.id, y.file || ':' || y.line, x.content = y.content FROM kept "
        "JOIN rows x ON x.row = kept.row JOIN rows y ON y.row = kept.kept WHERE kept.row <> kept.kept"
    )
    for batch in store.batches(sql):
        for side, row, other, place, alike in batch:
            rule = rule_of(side, "duplicate")
            if policy.enabled(rule):
                seen = (
                    f"the same as {place}" if alike else f"the same as {place} but for letter case, spaces or columns"
                )
                yield Hit(rule, row, seen, score=1.0, other=other)


class _Edge(NamedTuple):
    similarity: float | None
    """None where the two differ in digits alone."""
    group: int


class _Member(NamedTuple):
    rank: int
    id: str
    place: str
    side: str


def _near(store: Store, policy: Policy) -> Iterator[Hit]:
    """From the best row on, each stays unless one that it is near to stays already.

    So each row that goes is near one that stays, which connected pairs alone would not promise. Rows with the same
    shingles stand or fall together.
    """
    groups, edges = _graph(store, policy)
    stays: set[int] = set()
    for group, members in sorted(groups.items(), key=lambda item: item[1][0].rank):
        near = [edge for edge in edges[group] if edge.group in stays]
        if near:
            edge = max(near, key=lambda edge: (edge.similarity or 0.0, -groups[edge.group][0].rank))
            yield from _hits(members, edge.similarity, groups[edge.group][0], policy)
        else:
            stays.add(group)
            yield from _hits(members[1:], 1.0, members[0], policy)


def _hits(members: Sequence[_Member], similarity: float | None, other: _Member, policy: Policy) -> Iterator[Hit]:
    for member in members:
        rule = rule_of(member.side, "near_duplicate")
        if not policy.enabled(rule):
            continue
        if similarity is None:
            seen = f"differs in digits alone from {other.place}"
        elif similarity == 1:
            seen = f"differs in punctuation alone from {other.place}"
        else:
            seen = f"shares {100 * similarity:.0f}\u202f% of its runs of words with {other.place}"
        yield Hit(rule, member.id, seen, score=similarity, other=other.id)


def _graph(store: Store, policy: Policy) -> tuple[Mapping[int, list[_Member]], Mapping[int, list[_Edge]]]:
    """Groups of rows with the same shingles, best first, without their copies; and which groups are near which.

    Only what is near something else: what is held here grows with the duplicates, not with the data.
    """
    store.db.execute(
        "CREATE OR REPLACE TABLE edge AS WITH masks AS ("
        "  SELECT list(DISTINCT rep) AS reps, min(row) AS row FROM rows JOIN twin USING (row)"
        "  GROUP BY side, labels, value, template_key HAVING count(DISTINCT rep) BETWEEN 2 AND $mask_rows - 1), "
        f"few AS (SELECT reps FROM masks JOIN rows USING (row) WHERE {_DIGITS_SHARE} <= $digits) "
        "SELECT a, b, whole AS similarity FROM near WHERE whole >= $similarity AND peers "
        "UNION ALL SELECT x.rep, y.rep, NULL FROM few, unnest(reps) x(rep), unnest(reps) y(rep) WHERE x.rep < y.rep",
        {name: policy.number("near_duplicate", name) for name in ("similarity", "digits", "mask_rows")},
    )
    groups: dict[int, list[_Member]] = defaultdict(list)
    sql = (
        "WITH single AS (SELECT row, rep FROM twin SEMI JOIN (FROM kept WHERE row = kept) USING (row)), "
        "wanted AS (SELECT a AS rep FROM edge UNION SELECT b FROM edge "
        "  UNION SELECT rep FROM single GROUP BY rep HAVING count(*) > 1) "
        f"SELECT rep, row_number() OVER (ORDER BY {_BEST}) AS rank, id, file || ':' || line, side "
        "FROM single SEMI JOIN wanted USING (rep) JOIN rows USING (row) ORDER BY rank"
    )
    for batch in store.batches(sql):
        for rep, *member in batch:
            groups[rep].append(_Member(*member))
    edges: dict[int, list[_Edge]] = defaultdict(list)
    for batch in store.batches("SELECT a, b, max(similarity) FROM edge GROUP BY a, b"):
        for a, b, similarity in batch:
            edges[a].append(_Edge(similarity, b))
            edges[b].append(_Edge(similarity, a))
    return groups, edges


_VERIFIED = "coalesce(lower(columns ->> '$.verified') IN ('true', 'yes', '1'), false)"
_BEST = f"NOT {_VERIFIED}, length(answer) DESC, length(prompt) DESC, row_key, row"
_DIGITS_SHARE = "1 - length(translate(prompt || answer, '0123456789', '')) / greatest(length(prompt || answer), 1)"


def _paraphrases(store: Store, policy: Policy) -> Iterator[Hit]:
    sql = (
        "WITH pair AS (SELECT a, b, words FROM near WHERE answer AND peers AND whole < ? "
        "  UNION ALL SELECT b, a, words FROM near WHERE answer AND peers AND whole < ?) "
        "SELECT x.id, y.id, y.file || ':' || y.line, words FROM pair JOIN rows x ON x.row = a JOIN rows y ON y.row = b "
        "WHERE words >= CASE WHEN len(string_split(x.answer, ' ')) >= ? THEN ? ELSE ? END "
        "  AND (length(x.prompt), x.row_key) < (length(y.prompt), y.row_key) "
        "QUALIFY row_number() OVER (PARTITION BY x.row ORDER BY words DESC, y.row_key, y.row) = 1"
    )
    near = policy.number("near_duplicate", "similarity")
    words = [policy.number("paraphrase", name) for name in ("long", "words_long", "words")]
    for batch in store.batches(sql, parameters=[near, near, *words]):
        for row, other, place, overlap in batch:
            seen = f"the answer and {100 * overlap:.0f}\u202f% of the words are those of {place}"
            yield Hit("paraphrase", row, seen, score=overlap, other=other)


def _templates(store: Store, rows: int) -> Iterator[Hit]:
    sql = (
        "WITH masks AS (SELECT side, template_key, count(DISTINCT row_key) AS size, arg_min(row, row_key) AS first "
        "  FROM rows GROUP BY ALL HAVING size >= ?) "
        "SELECT x.id, y.id, y.file || ':' || y.line, size FROM masks JOIN rows x USING (side, template_key) "
        "JOIN rows y ON y.row = first"
    )
    for batch in store.batches(sql, parameters=[rows]):
        for row, other, place, size in batch:
            yield Hit(
                "template", row, f"one of {size:,} rows like {place} but for their digits", score=size, other=other
            )
