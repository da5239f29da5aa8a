"""How a data set fits a model: tokens by its own tokenizer, what a limit cuts, words it shreds, rows it finds hard.

The tokenizer comes in as a function and the base's losses as numbers, so nothing here needs a model. Tokens are those
of the content; a chat template adds some for each turn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.gate.rows import Hit
from luthier.gate.rules import Rule
from luthier.masking import mask

if TYPE_CHECKING:
    from luthier.gate.policy import Policy
    from luthier.gate.store import Store

Pieces = Callable[[Sequence[str]], Sequence[Sequence[str]]]
"""Texts to the tokens of each, as the tokenizer writes them."""

RULES: dict[str, Rule] = {
    "over_long": Rule(
        title="longer than the model may read",
        why="What is cut off is not learnt, and where the answer is cut the model learns to stop there.",
        remedy="Raise the limit, shorten the prompt, or leave the row out.",
        severity="warn",
        about="Tokens of prompt and answer by the model's own tokenizer, above the limit that is handed in.",
    ),
    "little_supervised": Rule(
        title="little of the text is learnt from",
        why="Most of the time goes into reading prompts.",
        remedy="Shorten what all prompts share, or learn from every assistant turn.",
        severity="info",
        thresholds={"share": 0.01},
        about="Tokens of the answers are less than `share` of all. One hit, for the set.",
    ),
    "unknown_token": Rule(
        title="text that the tokenizer does not know",
        why="All of it is one and the same token to the model.",
        remedy="Write it in characters that the tokenizer has, or choose another base.",
        severity="warn",
        thresholds={"share": 0.001},
        about="Unknown tokens are more than `share` of all tokens. One hit, for the set.",
    ),
    "shredded_term": Rule(
        title="term that the tokenizer shreds",
        why="A word of your field in many pieces takes more data to learn and more room in every prompt.",
        remedy="Nothing, if there are few; else a base that was trained on your field.",
        severity="info",
        thresholds={"pieces": 4, "letters_a_piece": 2.5, "rows": 10, "terms": 50},
        about="Words of letters in at least `rows` rows that become `pieces` or more tokens of at most "
        "`letters_a_piece` "
        "letters on average; the `terms` commonest.",
    ),
    "hard_row": Rule(
        title="row that surprises the base model most",
        why="It is new, or it is wrong: a wrong label and a garbled answer surprise most.",
        remedy="Look at these first.",
        severity="info",
        thresholds={"z": 3.5, "rows": 200},
        about="Robust z of the base's mean loss a token above `z`; hardest first, at most `rows`. Needs the losses.",
    ),
    "known_row": Rule(
        title="row that does not surprise the base model at all",
        why="It knows it by heart: a benchmark, a boilerplate text, or a repetition within the row.",
        remedy="Look where it comes from; do not measure with it.",
        severity="info",
        thresholds={"z": 3.5, "rows": 200},
        about="Robust z of the base's mean loss a token below minus `z`; oddest first, at most `rows`. Needs the "
        "losses.",
    ),
}
_AT_ONCE = 1_000
_CHARACTERS = 20_000
"""Of a text that is tokenized at once; longer ones are measured by their parts."""


class Fit(NamedTuple):
    """What was measured, over all rows."""

    rows: int
    tokens_N: NDArray[np.int32]
    """Of prompt and answer, by row number."""
    supervised_N: NDArray[np.int32]
    """Of the answer."""
    unknown: int
    coverage: int
    """Different tokens that occur."""
    shredded: tuple[tuple[str, int, int], ...]
    """Word, pieces, rows; the commonest first."""

    def cut(self, limit: int) -> tuple[int, int]:
        """Rows that a limit cuts, and the tokens that it takes."""
        over_N = np.maximum(0, self.tokens_N - limit)
        return int((over_N > 0).sum()), int(over_N.sum())


def measure(store: Store, policy: Policy, pieces: Pieces, *, unknown: str = "") -> Fit:
    """Tokenizes every row once, a thousand at a time."""
    rows = store.value("SELECT count(*) FROM rows")
    tokens_N, supervised_N = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    seen: set[str] = set()
    lost = 0
    sql = "SELECT row, prompt, answer FROM rows ORDER BY row"
    for batch in store.batches(sql, _AT_ONCE):
        for column, into in ((1, (tokens_N,)), (2, (tokens_N, supervised_N))):
            for row, found in _tokens([(item[0], item[column]) for item in batch], pieces):
                seen.update(found)
                lost += found.count(unknown) if unknown else 0
                for counts_N in into:
                    counts_N[row] += len(found)
    return Fit(rows, tokens_N, supervised_N, lost, len(seen), _shredded(store, policy, pieces))


def _tokens(texts: Sequence[tuple[int, str]], pieces: Pieces) -> Iterator[tuple[int, list[str]]]:
    parts = [(row, text[at : at + _CHARACTERS]) for row, text in texts for at in range(0, len(text), _CHARACTERS)]
    if parts:
        for (row, _), found in zip(parts, pieces([part for _, part in parts]), strict=True):
            yield row, list(found)


_WORD = re.compile(r"[^\W\d_]{5,40}")


def _shredded(store: Store, policy: Policy, pieces: Pieces) -> tuple[tuple[str, int, int], ...]:
    fewest = int(policy.number("shredded_term", "rows"))
    sql = (
        "SELECT word, count(*) AS n FROM (SELECT unnest(list_distinct(regexp_extract_all(prompt || ' ' || answer, "
        r"'\pL{5,40}'))) AS word FROM rows) GROUP BY word HAVING n >= ? ORDER BY n DESC, word LIMIT 200000"
    )
    found = []
    for batch in store.batches(sql, _AT_ONCE, [fewest]):
        # With a space before it, as in a sentence.
        for (word, rows), parts in zip(batch, pieces([f" {word}" for word, _ in batch]), strict=True):
            many = len(parts) >= policy.number("shredded_term", "pieces")
            if many and len(word) <= policy.number("shredded_term", "letters_a_piece") * len(parts):
                found.append((word, len(parts), rows))
    return tuple(found[: int(policy.number("shredded_term", "terms"))])


def look(
    store: Store,
    policy: Policy,
    *,
    fit: Fit | None = None,
    limit: int | None = None,
    losses: Mapping[int, float] | None = None,
) -> Iterator[Hit]:
    """Args:
    fit: what `measure` found; without it nothing is said of tokens.
    limit: tokens that an example may have.
    losses: row number -> mean loss a token of the base model on it.
    """
    if fit is not None:
        yield from _lengths(store, policy, fit, limit)
        yield from _terms(store, policy, fit)
    if losses:
        yield from _surprises(store, policy, losses)


def _lengths(store: Store, policy: Policy, fit: Fit, limit: int | None) -> Iterator[Hit]:
    if limit is not None:
        over = np.flatnonzero(fit.tokens_N > limit)
        for row, place in _ids(store, over.tolist()):
            tokens, answer = int(fit.tokens_N[row]), int(fit.supervised_N[row])
            seen = f"{tokens:,} tokens, {answer:,} of them answer; {tokens - limit:,} above the limit of {limit:,}"
            yield Hit("over_long", place, seen, score=float(tokens))
    total, supervised = int(fit.tokens_N.sum()), int(fit.supervised_N.sum())
    if 0 < supervised < policy.number("little_supervised", "share") * total:
        seen = f"{supervised:,} of {total:,} tokens are answers ({supervised / total:.2%})"
        yield Hit("little_supervised", store.value("SELECT min_by(id, row) FROM rows"), seen, score=supervised / total)
    if fit.unknown > policy.number("unknown_token", "share") * total:
        seen = f"{fit.unknown:,} of {total:,} tokens are unknown"
        yield Hit("unknown_token", store.value("SELECT min_by(id, row) FROM rows"), seen, score=fit.unknown / total)


def _terms(store: Store, policy: Policy, fit: Fit) -> Iterator[Hit]:
    for word, parts, rows in fit.shredded:
        place = store.value(
            "SELECT min_by(id, row) FROM rows WHERE contains(prompt, ?) OR contains(answer, ?)", [word, word]
        )
        yield Hit("shredded_term", place, f"“{mask(word)}” in {rows:,} rows becomes {parts} tokens", score=float(rows))


def _surprises(store: Store, policy: Policy, losses: Mapping[int, float]) -> Iterator[Hit]:
    row_N = np.array(list(losses), dtype=np.int64)
    loss_N = np.array(list(losses.values()), dtype=np.float64)
    finite = np.isfinite(loss_N)
    row_N, loss_N = row_N[finite], loss_N[finite]
    if not len(row_N):
        return
    middle = float(np.median(loss_N))
    z_N = (loss_N - middle) / max(1e-9, 1.4826 * float(np.median(np.abs(loss_N - middle))))
    for rule, signed_N in (("hard_row", z_N), ("known_row", -z_N)):
        order = np.argsort(-signed_N, kind="stable")[: int(policy.number(rule, "rows"))]
        order = order[signed_N[order] > policy.number(rule, "z")]
        places = dict(_ids(store, row_N[order].tolist()))
        for index in order:
            seen = f"mean loss {loss_N[index]:.2f} where {middle:.2f} is usual (z {z_N[index]:.1f})"
            yield Hit(rule, places[int(row_N[index])], seen, score=float(z_N[index]))


def _ids(store: Store, rows: list[int]) -> Iterator[tuple[int, str]]:
    for start in range(0, len(rows), 10_000):
        some = rows[start : start + 10_000]
        yield from store.db.execute(
            "SELECT row, id FROM rows WHERE row IN (SELECT unnest(?)) ORDER BY row", [some]
        ).fetchall()


def histogram(tokens_N: NDArray[np.int32]) -> list[tuple[int, int]]:
    """Rows by tokens, in powers of two: (below, rows)."""
    bins = Counter(int(tokens).bit_length() for tokens in tokens_N)
    return [(1 << bits, bins[bits]) for bits in sorted(bins)]
