"""Documents that begin alike: what is found, how it is laid out, and that a step is cut within its budget."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data import tokens
from luthier.data.pack import lay, microbatches, pack, pack_step
from luthier.data.prefixes import apart, prune, trie
from luthier.data.source import EpochSource, stream
from luthier.types import Sequence
from tests.chain import sequence

SHORT = [[1, 2, 3, 4], [1, 2, 3], [1, 2, 5], [6], [1, 2, 3]]
"""Two that part after two tokens, one that another continues, one alone, and one twice."""

documents = st.lists(st.lists(st.integers(3, 4), min_size=1, max_size=8), min_size=1, max_size=12)
"""Two tokens only: nearly everything shares something."""


def arrays(rows):
    return [np.asarray(row, dtype=np.int32) for row in rows]


def rendered(rows, *, seed=0):
    rng = np.random.default_rng(seed)
    return [sequence(row, rng.choice([0.0, 0.5, 1.0], len(row))) for row in rows]


def begun_alike(count=6, *, first=40, own=20, seed=0):
    """Documents with `first` tokens in common and some of their own."""
    rng = np.random.default_rng(seed)
    beginning = rng.integers(3, 400, first)
    return rendered([[*beginning, *rng.integers(3, 400, own + i)] for i in range(count)], seed=seed)


def written_out(batch):
    """Each document's tokens, positions and (target, weight) pairs, read from the row by the definition of a forest."""
    count = len(batch.bounds) - 1
    parents = batch.parents or (-1,) * count
    found = []
    for n, leaf in enumerate(batch.leaves or range(count)):
        chain = [leaf]
        while parents[chain[0]] >= 0:
            chain.insert(0, parents[chain[0]])
        row = [t for s in chain for t in range(batch.bounds[s], batch.bounds[s + 1])]
        own = (batch.sequence_S == n).nonzero()[:, 0]
        assert set(batch.select_S[own].tolist()) <= set(row)
        pairs = [(row.index(int(batch.select_S[s])) + 1, int(batch.target_S[s]), float(batch.weight_S[s])) for s in own]
        found.append((batch.tokens_T[row].tolist(), batch.positions_T[row].tolist(), pairs))
    return found


def meant(sequences):
    """The same of the sequences themselves."""
    return [
        (
            s.tokens_T.tolist(),
            list(range(len(s.tokens_T))),
            [(t, int(s.tokens_T[t]), float(s.weights_T[t])) for t in range(1, len(s.tokens_T)) if s.weights_T[t]],
        )
        for s in sequences
    ]


# The forest


def test_the_trie_of_five_short_documents():
    forest = trie(arrays(SHORT))
    assert list(zip(forest.starts, forest.ends, forest.parents, strict=True)) == [
        (0, 2, -1), (2, 3, 0), (3, 4, 1), (2, 3, 0), (0, 1, -1),
    ]  # fmt: skip
    assert forest.leaves == [2, 1, 3, 4, 1]
    assert forest.computed == 6


@settings(deadline=None, max_examples=200)
@given(rows=documents)
def test_the_trie_computes_each_distinct_beginning_once(rows):
    forest = trie(arrays(rows))
    assert forest.computed == len({tuple(row[:n]) for row in rows for n in range(1, len(row) + 1)})


@settings(deadline=None, max_examples=200)
@given(rows=documents, least=st.integers(1, 12), data=st.data())
def test_any_part_of_a_pruned_forest_holds_its_documents_whole(rows, least, data):
    sequences = rendered(rows)
    members = data.draw(st.lists(st.sampled_from(range(len(rows))), min_size=1, unique=True))
    forest = prune(trie(arrays(rows)), range(len(rows)), least=least)
    assert written_out(lay(sequences, (), forest)) == meant(sequences)
    part = prune(forest, members)
    some = [sequences[i] for i in members]
    batch = lay(some, (), part)
    assert written_out(batch) == meant(some)
    assert batch.documents == len(some)
    assert batch.tokens == part.computed <= batch.plain_tokens == sum(len(s.tokens_T) for s in some)
    # Depth first: a segment continues the one before it or one of its ancestors, or begins a tree.
    path = []
    for s, parent in enumerate(part.parents):
        while path and path[-1] != parent:
            path.pop()
        assert (path[-1] if path else -1) == parent
        path.append(s)


@settings(deadline=None, max_examples=100)
@given(rows=documents, least=st.integers(1, 12))
def test_every_split_of_a_pruned_forest_saves_what_it_has_to(rows, least):
    forest = prune(trie(arrays(rows)), range(len(rows)), least=least)
    for segment, (start, end) in enumerate(zip(forest.starts, forest.ends, strict=True)):
        children = forest.parents.count(segment)
        if children:
            assert (end - start) * (children - 1 + (segment in forest.leaves)) >= least


# What is worth it


def test_few_common_tokens_are_packed_plainly():
    sequences = begun_alike(2, first=15, own=8)
    batch, plain = pack(sequences, share=True), pack(sequences)
    assert (batch.parents, batch.leaves, batch.bounds) == ((), (), plain.bounds) == ((), (), (0, 23, 47))
    assert batch.tokens == batch.plain_tokens == 47


def test_a_beginning_that_is_small_beside_the_rest_is_packed_plainly():
    assert pack(begun_alike(2, first=20, own=400), share=True).parents == ()
    assert pack(begun_alike(2, first=60, own=400), share=True).parents == (-1, 0, 0)


def test_a_batch_says_what_it_saves():
    batch = pack(begun_alike(3, first=40, own=20), share=True)
    assert sorted(b - a for a, b in pairwise(batch.bounds)) == [20, 21, 22, 40]
    assert (batch.tokens, batch.plain_tokens, batch.documents) == (40 + 63, 120 + 63, 3)


def test_equal_documents_stand_once_and_count_each():
    sequences = [*begun_alike(1, first=10, own=6)] * 3
    batch = pack(sequences, share=True)
    assert (batch.tokens, batch.plain_tokens, batch.documents) == (16, 48, 3)
    assert (batch.parents, batch.leaves) == ((), (0, 0, 0))
    assert written_out(batch) == meant(sequences)


def test_the_last_common_token_predicts_the_first_of_each_branch():
    beginning = list(range(10, 50))
    ones = np.ones(43)
    batch = pack([sequence([*beginning, x, x, x], ones) for x in (5, 6, 7)], share=True)
    assert batch.target_S[batch.select_S == 39].tolist() == [5, 6, 7]
    assert batch.sequence_S[batch.select_S == 39].tolist() == [0, 1, 2]
    assert (batch.select_S == 20).sum() == 3


def test_columns_stay_with_their_documents():
    sequences = [Sequence("x", s.tokens_T, s.weights_T, (float(i),)) for i, s in enumerate(begun_alike(4))][::-1]
    batch = pack(sequences, indices=[9, 7, 5, 3], share=True)
    assert batch.parents
    assert batch.columns["index_N"].tolist() == [9, 7, 5, 3]
    assert batch.columns["label_NC"].tolist() == [[3.0], [2.0], [1.0], [0.0]]


# The cut into microbatches


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40), budget=st.integers(1, 600))
def test_microbatches_hold_every_document_once_within_the_budget_and_largest_first(lengths, budget):
    groups = microbatches(apart(lengths), budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in group) for group in groups]
    assert totals == sorted(totals, reverse=True)
    assert all(total <= budget or len(group) == 1 for total, group in zip(totals, groups, strict=True))


@settings(deadline=None, max_examples=200)
@given(rows=documents, budget=st.integers(1, 30))
def test_shared_microbatches_too(rows, budget):
    forest = trie(arrays(rows))
    groups = microbatches(forest, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(rows)))
    totals = [prune(forest, group).computed for group in groups]
    assert totals == sorted(totals, reverse=True)
    for total, group in zip(totals, groups, strict=True):
        longest = max((rows[i] for i in group), key=len)
        held = all(longest[: len(rows[i])] == rows[i] for i in group)
        assert total <= budget or held
    assert groups == microbatches(forest, budget)


def test_common_beginnings_meet_and_are_counted_once():
    one, two = begun_alike(4, first=100, own=20, seed=1), begun_alike(4, first=100, own=20, seed=2)
    mixed = [s for pair in zip(one, two, strict=True) for s in pair]
    batches = pack_step(mixed, indices=range(8), budget=190, share=True)
    assert [sorted(b.columns["index_N"].tolist()) for b in batches] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert [(b.tokens, b.plain_tokens) for b in batches] == [(186, 486)] * 2
    assert len(pack_step(mixed, indices=range(8), budget=190, share=False)) == 8


def test_a_tree_that_is_too_large_is_cut_and_begins_anew_in_each_part():
    batches = pack_step(begun_alike(6, first=100, own=20), indices=range(6), budget=170, share=True)
    assert [b.documents for b in batches] == [3, 3]
    assert all(b.tokens <= 170 and b.bounds[1] == 100 for b in batches)


def test_a_step_that_shares_nothing_is_laid_end_to_end():
    rng = np.random.default_rng(0)
    sequences = rendered([rng.integers(3, 400, 30).tolist() for _ in range(5)])
    (batch,) = pack_step(sequences, indices=range(5), budget=1000, share=True)
    assert (batch.parents, batch.leaves) == ((), ())
    assert written_out(batch) == meant(sequences)


# The source


@pytest.mark.parametrize("budget", [70, 150, 10_000])
def test_sharing_changes_neither_the_examples_nor_the_targets_of_a_step(tmp_path, budget):
    tokens.write(tmp_path / "train", list(enumerate(begun_alike(10))))
    store = tokens.open_store(tmp_path / "train")
    kinds = [
        EpochSource(store, batch_examples=4, microbatch_tokens=budget, epochs=1, seed=0, share=share)
        for share in (False, True)
    ]
    for n in range(len(kinds[0])):
        plain, forest = ({_facts(b, i) for b in kind.step(n) for i in range(b.documents)} for kind in kinds)
        assert plain == forest
    assert sum(b.tokens for b in kinds[1].step(0)) <= sum(b.plain_tokens for b in kinds[0].step(0))
    streamed = {_facts(b, i) for b in stream(store, np.arange(10), budget, share=True) for i in range(b.documents)}
    assert streamed == {_facts(b, i) for b in stream(store, np.arange(10), budget) for i in range(b.documents)}


def _facts(batch, n):
    row, positions, pairs = written_out(batch)[n]
    return int(batch.columns["index_N"][n]), tuple(row), tuple(positions), tuple(pairs)
