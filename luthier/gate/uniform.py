"""What is odd only beside the rest of the set: answers that end unlike the others, texts far longer or shorter."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from luthier.gate.rows import Hit

if TYPE_CHECKING:
    from luthier.gate.policy import Policy
    from luthier.gate.store import Store

_WHOLE = r"""[.!?…。！？؟।।:;|}][\s"'”’»)\]*_`]*$|`$|[\x{2190}-\x{2bff}\x{1f000}-\x{1faff}]$"""
"""How a finished answer ends, with what may close after it: a table, a block of code and an emoji are ends too."""
_TALK = "answer <> '' AND labels IS NULL AND value IS NULL AND NOT starts_with(answer, '{')"
"""Answers in words; arguments of tool calls are objects."""
_SAMPLE = 100_000


def unfinished(store: Store, policy: Policy) -> Iterator[Hit]:
    """Answers without the end that nearly all others have."""
    share = policy.number("unfinished_answer", "share")
    rows = policy.number("unfinished_answer", "rows")
    store.db.execute(
        "CREATE OR REPLACE TABLE ends AS SELECT row, regexp_matches(rtrim(answer), ?) AS whole, "
        "  list_last(string_split(rtrim(answer), chr(10))) AS last_line, contains(rtrim(answer), chr(10)) AS several "
        f"FROM rows WHERE {_TALK} AND length(answer) - length(replace(answer, ' ', '')) + 1 >= ?",
        [_WHOLE, policy.number("unfinished_answer", "words")],
    )
    count = store.value("SELECT count(*) FROM ends")
    if count < rows:
        return
    whole = store.value("SELECT avg(whole::INT) FROM ends")
    mark = store.db.execute(
        "SELECT split_part(last_line, ' ', 1) AS mark, count(*) FILTER (several) / ? AS part FROM ends "
        "GROUP BY mark ORDER BY part DESC, mark LIMIT 1",
        [count],
    ).fetchone()
    if mark and mark[0] and mark[1] >= share:
        sql = "SELECT id FROM ends JOIN rows USING (row) WHERE split_part(last_line, ' ', 1) <> ? ORDER BY row"
        seen = f"its last line lacks what begins that of {mark[1]:.1%} of the answers"
        yield from _hits(store, sql, [mark[0]], seen)
    elif whole >= share:
        sql = "SELECT id FROM ends JOIN rows USING (row) WHERE NOT whole ORDER BY row"
        yield from _hits(store, sql, [], f"it ends without the punctuation that ends {whole:.1%} of the answers")
    else:
        yield from _cut_words(store)


def _hits(store: Store, sql: str, parameters: list[object], seen: str) -> Iterator[Hit]:
    for batch in store.batches(sql, parameters=parameters):
        for (row,) in batch:
            yield Hit("unfinished_answer", row, seen)


_LAST_WORD = re.compile(r"([^\W\d_]{2,})\Z")
_WORDS = re.compile(r"[^\W\d_]{2,}")


def _cut_words(store: Store) -> Iterator[Hit]:
    """Answers whose last word stands nowhere else and begins a word that does, where no end is the rule."""
    last: dict[str, list[str]] = {}
    for batch in store.batches("SELECT id, last_line FROM ends JOIN rows USING (row) WHERE NOT whole ORDER BY row"):
        for row, line in batch:
            if match := _LAST_WORD.search(line.rstrip()):
                last.setdefault(match[1].casefold(), []).append(row)
    seen: Counter[str] = Counter()
    begun: set[str] = set()
    for batch in store.batches(f"SELECT answer, prompt FROM rows ORDER BY hash(row_key) LIMIT {_SAMPLE}"):
        for texts in batch:
            for word in _WORDS.findall(" ".join(texts).casefold()):
                if word in last:
                    seen[word] += 1
                begun.update(word[:size] for size in range(2, len(word)) if word[:size] in last)
    for word, rows in last.items():
        if word in begun and seen[word] <= len(rows) == 1:
            yield Hit("unfinished_answer", rows[0], f"its last word of {len(word)} letters is only the start of others")


def long_or_short(store: Store, policy: Policy) -> Iterator[Hit]:
    """Texts whose length lies far from the others', by a robust z of its logarithm."""
    limit = policy.number("length_outlier", "z")
    if store.value("SELECT count(*) FROM rows") < policy.number("length_outlier", "rows"):
        return
    for column, what in (("prompt", "prompt or text"), ("answer", "answer")):
        # 1.4826 x MAD estimates a standard deviation. Below 0.2 all lengths are within a fifth of each other, and a
        # fifth is no outlier.
        sql = (
            f"WITH sized AS (SELECT row, id, length({column}) AS size, ln(length({column})) AS log FROM rows "
            f"  WHERE {column} <> ''), "
            "middle AS (SELECT median(log) AS m, greatest(0.2, 1.4826 * mad(log)) AS s FROM sized) "
            "SELECT id, size, exp(m), (log - m) / s AS z FROM sized, middle "
            # Answers of a word or two are labels, and labels have the lengths that they have.
            "WHERE abs(z) > ? AND exp(m) >= 20 ORDER BY row"
        )
        for batch in store.batches(sql, parameters=[limit]):
            for row, size, usual, z in batch:
                seen = f"{what} of {size:,} characters where {usual:,.0f} are usual (z {z:.1f})"
                yield Hit("length_outlier", row, seen, score=z)
