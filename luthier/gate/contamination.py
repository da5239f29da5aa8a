"""Runs of words that a row shares with texts that must not be trained on: benchmarks, acceptance tests.

The texts are held as hashes, 16 bytes a word; the rows are read once, a batch at a time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.gate.rows import Hit
from luthier.gate.text import Hashes, bare, key, normal, runs

if TYPE_CHECKING:
    from luthier.gate.policy import Policy
    from luthier.gate.store import Store

_BATCH = 2_000
_FEW = 10
"""Rows; in fewer, no run of words is boilerplate."""


class Reference(NamedTuple):
    """A text that must not have been trained on."""

    place: str
    """`file:line`."""
    text: str


class _Index(NamedTuple):
    """Runs of `width` words of references, sorted, each with the position of its reference."""

    width: int
    hash_S: Hashes
    reference_S: NDArray[np.int64]


class _References(NamedTuple):
    places: list[str]
    size: list[int]
    """Runs of each."""
    short: frozenset[int]
    whole: dict[int, int]
    """Keys of those that are too short for runs."""
    indexes: list[_Index]


def contamination(store: Store, policy: Policy, against: Iterable[Reference]) -> Iterator[Hit]:
    """One hit for each row of train and validation: the reference of which it has most."""
    words, short = (int(policy.number("contamination", name)) for name in ("words", "short_words"))
    references = _references(against, words=words, short=short)
    if not references.places:
        return
    shared, rows_with = _shared(store, references)
    most = max(_FEW, policy.number("contamination", "common") * store.value("SELECT count(*) FROM rows"))
    common = {run for run, rows in rows_with.items() if rows > most}
    least = policy.number("contamination", "short_share")
    for row, found in shared.items():
        scored = []
        for reference, seen in found.items():
            share = len(seen - common) / references.size[reference]
            if share > 0 and (share >= least or reference not in references.short):
                scored.append((share, -reference))
        if scored:
            share, reference = max(scored)
            place = references.places[-reference]
            yield Hit(
                "contamination",
                row,
                f"{100 * share:.0f}\u202f% of the runs of words of {place}",
                score=share,
                other=place,
            )


def _references(against: Iterable[Reference], *, words: int, short: int) -> _References:
    places: list[str] = []
    size: list[int] = []
    whole: dict[int, int] = {}
    forms: dict[int, list[tuple[int, str]]] = {words: [], short: []}
    for place, text in against:
        form = bare(normal(text))
        if not form:
            continue
        count = form.count(" ") + 1
        width = words if count >= 2 * words else short
        if count < width:
            whole.setdefault(key(form), len(places))
        else:
            forms[width].append((len(places), form))
        places.append(place)
        size.append(max(count - width + 1, 1))
    indexes = [_index(width, some) for width, some in forms.items() if some]
    brief = frozenset(reference for reference, _ in forms[short]) if short < words else frozenset()
    return _References(places, size, brief, whole, indexes)


def _index(width: int, forms: Sequence[tuple[int, str]]) -> _Index:
    start_K, hash_S = runs([form for _, form in forms], width)
    reference_S = np.repeat(np.array([reference for reference, _ in forms], dtype=np.int64), np.diff(start_K))
    order = np.argsort(hash_S, kind="stable")
    return _Index(width, hash_S[order], reference_S[order])


def _shared(store: Store, references: _References) -> tuple[dict[str, dict[int, set[int]]], Counter[int]]:
    """The runs that each row shares with each reference, and in how many rows each of these runs is."""
    shared: dict[str, dict[int, set[int]]] = defaultdict(lambda: defaultdict(set))
    rows_with: Counter[int] = Counter()
    sql = "SELECT id, prompt[lead + 1:], answer FROM rows WHERE side <> 'test'"
    for batch in store.batches(sql, _BATCH):
        asked = [bare(normal(prompt)) for _, prompt, _ in batch]
        answers = [bare(normal(answer)) for *_, answer in batch]
        for (row, *_), form, answer in zip(batch, asked, answers, strict=True):
            if (reference := references.whole.get(key(form or answer))) is not None:
                shared[row][reference].add(-1)
        texts = [f"{form} {answer}".strip() for form, answer in zip(asked, answers, strict=True)]
        for index in references.indexes:
            start_K, hash_S = runs(texts, index.width)
            low_S, high_S = (np.searchsorted(index.hash_S, hash_S, side) for side in _SIDES)
            seen: set[tuple[str, int]] = set()
            for at in np.flatnonzero(high_S > low_S).tolist():
                row, run = batch[int(np.searchsorted(start_K, at, "right")) - 1][0], int(hash_S[at])
                if (row, run) not in seen:
                    seen.add((row, run))
                    rows_with[run] += 1
                    for reference in index.reference_S[low_S[at] : high_S[at]].tolist():
                        shared[row][reference].add(run)
    return shared, rows_with


_SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")
