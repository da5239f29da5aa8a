"""Which documents begin with the same tokens: a forest of segments, each of which has to be computed once only.

The forest is the compressed trie of the documents. A segment holds the tokens that the same set of documents has in
common; a document is the chain of segments from a root to its leaf. Only equal tokens count, so a text that is cut into
other tokens where two documents part is not shared there. No loop runs over tokens.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

WORTH_TOKENS = 16
"""What a split must save. Each segment costs one more attention call in every layer, whatever its length; a pair of
documents with 16 tokens in common took as long shared as plain (SmolLM2-135M with LoRA, one core of a CPU)."""
WORTH_SHARE = 1.05
"""Plain tokens / computed tokens from which on a forest is used. Attention to what is shared is still computed for each
document, so a step gains less than its tokens: in the same measurement nothing at 1.07, and 1.2 times at 1.24."""


class Forest(NamedTuple):
    """Segments with parents before children and every tree in one piece, depth first."""

    starts: list[int]
    """For each segment the depth at which it begins: tokens between the document's start and its own."""
    ends: list[int]
    """The depth at which it ends."""
    parents: list[int]
    """The segment that it continues, or -1."""
    owners: list[int]
    """One of the documents that it is a part of."""
    leaves: list[int]
    """For each document the segment that it ends in. Equal documents end in the same, and a document that another one
    continues in an inner one."""

    @property
    def computed(self) -> int:
        """Tokens that are computed when every segment is computed once."""
        return sum(self.ends) - sum(self.starts)

    def chain(self, document: int) -> list[int]:
        """Segments of a document from its first to its last."""
        found = []
        segment = self.leaves[document]
        while segment >= 0:
            found.append(segment)
            segment = self.parents[segment]
        return found[::-1]


def shared(documents: Several[NDArray[np.int32]]) -> Forest | None:
    """The forest of what is worth sharing, or None where plain packing is as good: the one place that decides it."""
    forest = prune(trie(documents), range(len(documents)), least=WORTH_TOKENS)
    plain = sum(len(tokens) for tokens in documents)
    return forest if plain >= WORTH_SHARE * forest.computed else None


def apart(lengths: Several[int]) -> Forest:
    """The forest that shares nothing: each document one segment, in the order given."""
    numbers = list(range(len(lengths)))
    return Forest([0] * len(lengths), list(lengths), [-1] * len(lengths), numbers, numbers.copy())


def trie(documents: Several[NDArray[np.int32]]) -> Forest:
    """The whole compressed trie, whatever a segment saves."""
    # Big-endian bytes of numbers that are not negative sort as the numbers do, a prefix before what continues it.
    keys = [tokens.astype(">i4").tobytes() for tokens in documents]
    order = sorted(range(len(documents)), key=keys.__getitem__)
    common = [0, *(_common(documents[a], documents[b]) for a, b in pairwise(order))]
    forest = Forest([], [], [], [], [0] * len(documents))
    path: list[int] = []
    for document, begin, ends in zip(order, common, _cuts(common, [len(documents[i]) for i in order]), strict=True):
        while path and forest.ends[path[-1]] > begin:
            path.pop()
        for end in ends:
            forest.starts.append(forest.ends[path[-1]] if path else 0)
            forest.ends.append(end)
            forest.parents.append(path[-1] if path else -1)
            forest.owners.append(document)
            path.append(len(forest.ends) - 1)
        forest.leaves[document] = path[-1]
    return forest


def _common(a: NDArray[np.int32], b: NDArray[np.int32]) -> int:
    """How many tokens two documents begin with alike."""
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax())
    return first if differs[first] else n


def _cuts(common: list[int], lengths: list[int]) -> list[list[int]]:
    """For each document in sorted order the depths at which its new segments end: where a later document leaves it, and
    its own end. Those depths are the falling minima of what follows, which a stack holds from right to left."""
    cuts: list[list[int]] = [[] for _ in common]
    minima: list[int] = []
    for k in reversed(range(len(common))):
        found = {lengths[k]} if lengths[k] > common[k] else set()
        while minima and minima[-1] >= common[k]:
            depth = minima.pop()
            if depth > common[k]:
                found.add(depth)
        minima.append(common[k])
        cuts[k] = sorted(found)
    return cuts


def prune(forest: Forest, members: Several[int], *, least: int = 1) -> Forest:
    """The forest of some of its documents, renumbered in the order given, without segments that save fewer than `least`
    tokens. What is left out is computed anew in each of its branches."""
    owners: dict[int, int] = {}
    ending: set[int] = set()
    branches = [0] * len(forest.ends)
    for place, document in enumerate(members):
        segment = forest.leaves[document]
        branches[segment] += segment not in ending
        ending.add(segment)
        while segment >= 0 and segment not in owners:
            owners[segment] = place
            segment = forest.parents[segment]
            branches[segment] += segment >= 0
    pruned = Forest([], [], [], [], [])
    # Where the children of a segment, and the documents that end in it, find themselves.
    above: dict[int, int] = {-1: -1}
    ends_in: dict[int, int] = {}
    for segment in sorted(owners):
        parent = above[forest.parents[segment]]
        start, end = pruned.ends[parent] if parent >= 0 else 0, forest.ends[segment]
        worth = (branches[segment] - 1) * (end - start) >= least
        above[segment] = len(pruned.ends) if worth else parent
        if worth or segment in ending:
            ends_in[segment] = len(pruned.ends)
            pruned.starts.append(start)
            pruned.ends.append(end)
            pruned.parents.append(parent)
            pruned.owners.append(owners[segment])
    pruned.leaves.extend(ends_in[forest.leaves[document]] for document in members)
    return pruned


class _Piece(NamedTuple):
    """Documents that stay together."""

    tokens: int
    """What they compute beyond the depth at which they hang."""
    documents: list[int]


def microbatches(forest: Forest, budget: int) -> list[list[int]]:
    """Divides the documents of one step into groups of at most `budget` computed tokens.

    At the roots, and at each segment whose branches do not fit together, pieces are joined by first fit, longest
    first; without shared segments that is all there is to it. The largest group comes first, so a shortage of memory
    shows in the first microbatch. A document longer than the budget stands alone, but for others that it holds whole.
    Which examples share a step is not decided here, so the result of the step does not depend on it.
    """
    hanging: list[list[_Piece]] = [[] for _ in forest.ends]
    for document, leaf in enumerate(forest.leaves):
        hanging[leaf].append(_Piece(0, [document]))
    roots: list[_Piece] = []
    for segment in reversed(range(len(forest.ends))):
        own = forest.ends[segment] - forest.starts[segment]
        parent = forest.parents[segment]
        joined = _first_fit(hanging[segment], budget - forest.ends[segment])
        above = hanging[parent] if parent >= 0 else roots
        above.extend(_Piece(own + piece.tokens, piece.documents) for piece in joined)
    return [sorted(piece.documents) for piece in sorted(_first_fit(roots, budget), key=lambda piece: -piece.tokens)]


def _first_fit(pieces: list[_Piece], room: int) -> list[_Piece]:
    joined: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: (-piece.tokens, min(piece.documents))):
        for at, other in enumerate(joined):
            # What computes nothing of its own goes with anything, even with what is too long already.
            if not piece.tokens or other.tokens + piece.tokens <= room:
                joined[at] = _Piece(other.tokens + piece.tokens, other.documents + piece.documents)
                break
        else:
            joined.append(piece)
    return joined
