"""Frozen lower layers: computed once they give what they give every time, nothing of the backward pass goes into them,
and where they cannot be kept it is said why."""

import math
import os
import shutil

import numpy as np
import pytest
import torch

from luthier.data import tokens
from luthier.data.pack import pack
from luthier.data.source import EpochSource, stream
from luthier.models import adapters
from luthier.models.load import Head
from luthier.models.policy import policy
from luthier.objectives import OBJECTIVES
from luthier.recipe import Full, Lora, Training
from luthier.training.frozen import KeptSource, choose, keep
from luthier.training.loop import mean_loss, train
from luthier.training.optim import adamw
from tests.chain import sequence

LABELS = Head(2, "single_label_classification", ("soft", "hard"))
UPPER = Lora(rank=3, layers=[1])


def store_of(folder, count=12, *, labels=False, alike=0, seed=0):
    """Random sequences, each beginning with the same `alike` tokens."""
    rng = np.random.default_rng(seed)
    begin = rng.integers(3, 400, alike)
    rows = []
    for i in range(count):
        n = int(rng.integers(5, 25))
        ids = np.concatenate([begin, rng.integers(3, 400, n)])
        weights = np.concatenate([np.zeros(alike), rng.choice([0.0, 0.5, 1.0], n)])
        rows.append((i, sequence(ids, weights, (float(i % 2),) if labels else ())))
    tokens.write(folder, rows)
    return tokens.open_store(folder)


def prepared(tiny, family, adapter, *, dtype=torch.float64, head=None):
    model = tiny(family, dtype=dtype, head=head)
    subject = policy(model, sequence=head is not None)
    subject.dtype = dtype
    adapters.attach(model, adapter, seed=0, head=subject.head.modules if subject.head else ())
    return subject


def kept_by(subject, store, folder, layers):
    return keep(subject, store, folder, "train", layers=layers, budget=90, progress=lambda batches, _: batches)


CASES = {
    "llama": ("llama", UPPER, None, 1),
    "qwen2": ("qwen2", UPPER, None, 1),
    "gemma3": ("gemma3", UPPER, None, 1),
    "gpt2": ("gpt2", UPPER, None, 1),
    "gpt2 in full above": ("gpt2", Full(freeze_layers=1), None, 1),
    "llama in full above": ("llama-untied", Full(freeze_layers=1), None, 1),
    "llama labels, head and norm alone": ("llama", Full(freeze_layers=2), LABELS, 2),
    "bert labels, head alone": ("bert", Full(freeze_layers=2), LABELS, 2),
    "bert labels": ("bert", Lora(rank=3, layers=[1]), LABELS, 1),
    "modernbert labels, head and norm alone": ("modernbert", Full(freeze_layers=2), LABELS, 2),
    "modernbert labels": ("modernbert", UPPER, LABELS, 1),
}


@pytest.mark.parametrize("alike", [0, 40], ids=["", "shared beginnings"])
@pytest.mark.parametrize("case", CASES)
def test_training_on_kept_states_is_training(tiny, tmp_path, case, alike):
    family, adapter, head, expected = CASES[case]
    store = store_of(tmp_path / "train", labels=head is not None, alike=alike)
    objective = OBJECTIVES["classify" if head else "supervised"]
    training = Training(rate=1e-2, batch_examples=4, microbatch_tokens=90, epochs=3)
    found = {}
    for way in ("plain", "kept"):
        subject = prepared(tiny, family, adapter, head=head)
        optimizer = adamw(adapters.trained(subject.model), training, rate=training.rate)
        source = EpochSource(store, batch_examples=4, microbatch_tokens=90, epochs=3, seed=0, share=subject.shares)
        validation = list(stream(store, np.arange(len(store)), 90, share=subject.shares))
        if way == "kept":
            chosen = choose(subject, tokens=int(store.offsets[-1]), passes=3, folder=tmp_path, probe=store)
            assert (chosen.layers, chosen.why_not) == (expected, "")
            kept = kept_by(subject, store, tmp_path / "frozen", chosen.layers)
            assert sum(p.stat().st_size for p in (tmp_path / "frozen").iterdir()) == chosen.bytes
            source, validation = KeptSource(source, kept), [kept.onto(batch) for batch in validation]
        losses = [report.loss for report in train(subject, source, objective, optimizer, training)]
        end = {name: p.detach().clone() for name, p in adapters.trained(subject.model).items()}
        found[way] = (losses, mean_loss(subject, validation, objective), end)
    assert found["kept"][0] == pytest.approx(found["plain"][0], rel=1e-12)
    assert found["kept"][1] == pytest.approx(found["plain"][1], rel=1e-12)
    for name, value in found["plain"][2].items():
        torch.testing.assert_close(found["kept"][2][name], value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_the_same_row_they_are_equal_to_the_bit(tiny, tmp_path, family, dtype):
    store = store_of(tmp_path / "train")
    subject = prepared(tiny, family, UPPER, dtype=dtype)
    whole = pack([store.sequence(i) for i in range(len(store))], indices=range(len(store)))
    kept = keep(subject, store, tmp_path, "train", layers=1, budget=100_000, progress=lambda batches, _: batches)
    with subject.inference():
        assert torch.equal(subject.listen(kept.onto(whole)).logprobs_S, subject.listen(whole).logprobs_S)


def test_a_state_is_the_same_whether_its_beginning_was_shared_or_not(tiny, tmp_path):
    store = store_of(tmp_path / "train", alike=30)
    subject = prepared(tiny, "llama", UPPER)
    kept = kept_by(subject, store, tmp_path / "frozen", 1)
    documents = [store.sequence(i) for i in range(len(store))]
    shared, apart = (pack(documents, indices=range(len(store)), share=share) for share in (True, False))
    assert shared.tokens < apart.tokens
    with subject.inference():
        for batch in (shared, apart):
            expected = subject.below(batch, 1).states_TH
            torch.testing.assert_close(kept.onto(batch).below.states_TH, expected, rtol=1e-12, atol=1e-12)


# The backward pass


def functions(tensor):
    """How often each kind of function stands in the graph behind a tensor."""
    seen, waiting, counts = set(), [tensor.grad_fn], {}
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        counts[node.name()] = counts.get(node.name(), 0) + 1
        waiting += [following for following, _ in node.next_functions]
    return counts


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2", "bert", "modernbert"])
def test_the_backward_pass_ends_at_the_lowest_trained_layer(tiny, tmp_path, family, recompute):
    head = LABELS if family in ("bert", "modernbert") else None
    batch = pack([store_of(tmp_path / "train", labels=head is not None).sequence(0)])
    subject = prepared(tiny, family, UPPER, head=head)
    subject.recompute = recompute
    subject.model.train()
    below = subject.below(batch, 1).states_TH
    assert below.grad_fn is None
    assert not below.requires_grad
    loss = OBJECTIVES["classify" if head else "supervised"].loss(subject.listen(batch), batch)
    if family == "llama" and not recompute:
        attentions = {name: count for name, count in functions(loss).items() if "Attention" in name}
        assert list(attentions.values()) == [1], "one of two layers has a graph"
    loss.backward()
    with_gradient = {name for name, p in subject.model.named_parameters() if p.grad is not None}
    assert with_gradient == set(adapters.trained(subject.model))
    assert not any(".0." in name and "lora" in name for name in with_gradient)


@pytest.mark.parametrize("family", ["gpt2", "bert", "modernbert", "llama"])
def test_frozen_layers_freeze_everything_in_front_of_them(tiny, family):
    head = None if family in ("gpt2", "llama") else LABELS
    subject = prepared(tiny, family, Full(freeze_layers=1), head=head)
    short = pack([sequence([5, 6, 7], [0, 1, 1])])
    assert not subject.below(short, 1).states_TH.requires_grad
    assert subject.below(short, 2).states_TH.requires_grad


# Where they are not kept


def test_where_the_lowest_layer_is_trained_there_is_nothing_to_keep(tiny, tmp_path):
    store = store_of(tmp_path / "train")
    for adapter in (Lora(rank=2), Full(), Lora(rank=2, layers=[0])):
        chosen = choose(prepared(tiny, "llama", adapter), tokens=99, passes=3, folder=tmp_path, probe=store)
        assert (chosen.layers, chosen.why_not) == (0, "")


def test_trained_embeddings_leave_nothing_to_keep(tiny, tmp_path):
    subject = prepared(tiny, "llama-untied", UPPER)
    subject.model.model.embed_tokens.weight.requires_grad_(True)
    chosen = choose(subject, tokens=99, passes=3, folder=tmp_path, probe=store_of(tmp_path / "train"))
    assert (chosen.layers, chosen.why_not) == (0, "")


def test_a_single_pass_dropout_and_a_small_disk_are_said(tiny, tmp_path):
    store = store_of(tmp_path / "train")
    subject = prepared(tiny, "llama", UPPER)
    assert "once" in choose(subject, tokens=99, passes=1, folder=tmp_path, probe=store).why_not
    much = 2 * shutil.disk_usage(tmp_path).free
    assert "free disk" in choose(subject, tokens=much, passes=3, folder=tmp_path, probe=store).why_not
    subject.model.model.layers[0].self_attn.attention_dropout = 0.1
    assert "dropout" in choose(subject, tokens=99, passes=3, folder=tmp_path, probe=store).why_not


def test_dropout_above_them_does_not_matter(tiny, tmp_path):
    subject = prepared(tiny, "llama", Lora(rank=2, layers=[1], dropout=0.3))
    store = store_of(tmp_path / "train")
    assert choose(subject, tokens=99, passes=3, folder=tmp_path, probe=store).layers == 1


# What is found on the disk


def test_kept_states_are_found_again_and_others_are_not(tiny, tmp_path):
    store, folder = store_of(tmp_path / "train"), tmp_path / "frozen"
    subject = prepared(tiny, "llama", UPPER)
    asked = []

    def progress(batches, count):
        asked.append(count)
        return batches

    def again(store, subject):
        return keep(subject, store, folder, "train", layers=1, budget=90, progress=progress)

    first = again(store, subject)
    with torch.no_grad():
        for layer in (layer for _, layer in adapters.lora_layers(subject.model)):
            layer.lora_B.add_(1)
    second = again(store, subject)
    assert np.array_equal(first.states, second.states)
    assert asked == [len(store)], "the adapter above is no part of them"
    again(store_of(tmp_path / "other", seed=1), subject)
    with torch.no_grad():
        subject.model.model.layers[0].mlp.down_proj.weight[0, 0] += 1
    again(store, subject)
    assert len(asked) == 3
    assert all(os.stat(path).st_mode & 0o077 == 0 for path in folder.iterdir()), "for nobody else to read"


def test_a_pass_that_was_stopped_leaves_nothing_to_be_taken_for_whole(tiny, tmp_path):
    store, folder = store_of(tmp_path / "train"), tmp_path / "frozen"
    subject = prepared(tiny, "llama", UPPER)

    def stop(batches, _):
        yield next(iter(batches))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keep(subject, store, folder, "train", layers=1, budget=40, progress=stop)
    kept = kept_by(subject, store, folder, 1)
    assert not math.isnan(float(kept.onto(pack([store.sequence(11)], indices=[11])).below.states_TH.sum()))
    assert [path.suffix for path in folder.iterdir()] == [".bin"]
