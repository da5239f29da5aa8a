"""Packed rows, the supervised-only head and the fused adapter against plain transformers, one document at a time.

The naive side shares no code with the fast side: attention written out as in the paper, full logits, `log_softmax`,
autograd's own products. transformers' eager attention would not do: it takes its softmax in float32 whatever the model
computes in. Shape suffixes:  T tokens  V vocabulary
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface

from luthier.data.pack import microbatches, pack
from luthier.models import adapters
from luthier.models.load import Head
from luthier.models.policy import policy, verify
from luthier.objectives import OBJECTIVES
from luthier.recipe import Lora
from luthier.types import Sequence

WRITERS = ["llama", "llama-untied", "qwen2", "gemma3", "gpt2"]
READERS = ["bert", "modernbert", "llama", "gpt2"]


def documents(lengths, vocabulary, *, seed=0, labels=0, share=0.5):
    rng = np.random.default_rng(seed)
    found = []
    for n in lengths:
        weights = rng.choice([0.0, 0.5, 1.0], size=n, p=[1 - share, share / 2, share / 2]).astype(np.float32)
        label = (float(rng.integers(labels)),) if labels else ()
        found.append(Sequence("x", rng.integers(3, vocabulary, n).astype(np.int32), weights, label))
    return found


def naive_attention(module, query, key, value, mask, *, scaling, dropout=0.0, sliding_window=None, **_):
    """softmax(q k^T s + mask) v (Vaswani et al., arXiv 1706.03762, equation 1), heads repeated for grouped queries."""
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    distance = torch.arange(query.shape[2])[:, None] - torch.arange(query.shape[2])
    seen = distance >= 0 if getattr(module, "is_causal", True) else torch.ones_like(distance, dtype=torch.bool)
    if sliding_window is not None:
        seen = seen & (distance.abs() < sliding_window)
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def naively(model):
    """The model with the attention above."""
    AttentionInterface.register("naive", naive_attention)
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            module.config._attn_implementation = "naive"
    return model


def naive_loss(model, sequences):
    """Sum of w (-log p) over targets, by the model's own forward pass, one document at a time."""
    total = 0.0
    naively(model)
    for s in sequences:
        tokens = torch.from_numpy(s.tokens_T.astype(np.int64))
        logits_TV = model(input_ids=tokens[None], use_cache=False).logits[0]
        if len(tokens) > 1:
            logprobs = logits_TV[:-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
            total = total - (logprobs * torch.from_numpy(s.weights_T[1:]).to(logprobs.dtype)).sum()
    return total


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def clear(model):
    for p in model.parameters():
        p.grad = None


def assert_same(ours, naive, tolerance=1e-11):
    assert ours.keys() == naive.keys()
    for name in naive:
        torch.testing.assert_close(ours[name], naive[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("family", WRITERS)
def test_packed_loss_and_every_gradient_equal_one_document_at_a_time(tiny, family):
    model = tiny(family, dtype=torch.float64).train()
    model.requires_grad_(True)
    sequences = documents([9, 1, 17, 5, 12], model.config.vocab_size)
    naive = naive_loss(model, sequences)
    naive.backward()
    expected = gradients(model)
    clear(model)
    batch = pack(sequences)
    loss = OBJECTIVES["supervised"].loss(policy(model).listen(batch), batch)
    loss.backward()
    # Gemma's norms round to float32 inside, so a difference in the last bit of float64 can surface there as one of
    # float32.
    tolerance = 1e-6 if family == "gemma3" else 1e-11
    torch.testing.assert_close(loss, naive, rtol=tolerance, atol=tolerance)
    assert_same(gradients(model), expected, tolerance)


@pytest.mark.parametrize("family", READERS)
def test_packed_scores_equal_one_document_at_a_time(tiny, family):
    model = tiny(family, dtype=torch.float64, head=Head(3, "single_label_classification", ("a", "b", "c"))).eval()
    sequences = documents([9, 3, 17, 5], model.config.vocab_size, labels=3)
    naively(model)
    alone = torch.cat([model(input_ids=torch.from_numpy(s.tokens_T.astype(np.int64))[None]).logits for s in sequences])
    batch = pack(sequences)
    packed = policy(model, sequence=True).listen(batch).scores_NC
    torch.testing.assert_close(packed, alone, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", WRITERS)
def test_a_document_does_not_change_its_neighbour_by_one_bit(tiny, family):
    model = policy(tiny(family))
    first, second = documents([14, 14], model.model.config.vocab_size, seed=1)
    other = documents([14], model.model.config.vocab_size, seed=2)[0]
    with model.inference():
        alone = model.listen(pack([first, second]))
        changed = model.listen(pack([Sequence("y", other.tokens_T, first.weights_T), second]))
    count = int((second.weights_T[1:] != 0).sum())
    assert torch.equal(alone.logprobs_S[-count:], changed.logprobs_S[-count:])


@pytest.mark.parametrize("family", WRITERS)
def test_the_own_forward_pass_agrees(tiny, family):
    assert verify(policy(tiny(family, dtype=torch.float64))) < 1e-6


def test_a_planted_leak_is_caught(tiny):
    from luthier.errors import ModelError

    model = tiny("llama")
    leaky = policy(model)
    layer = model.model.layers[0]
    layer.register_forward_hook(lambda _m, _i, out: out + 0.5 * out.mean(1, keepdim=True))
    with pytest.raises(ModelError, match=r"see each other|does not reproduce"):
        verify(leaky)


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_fused_adapter_has_the_gradients_of_the_formula(tiny, family, rslora):
    model = tiny(family, dtype=torch.float64)
    settings_ = Lora(rank=3, alpha=7, rslora=rslora)
    adapters.attach(model, settings_, seed=0)
    scale = 7 / (3**0.5 if rslora else 3)
    for path, layer in adapters.lora_layers(model):
        assert layer.scale == pytest.approx(scale), path
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    sequences = documents([11, 6], model.config.vocab_size)
    batch = pack(sequences)
    loss = OBJECTIVES["supervised"].loss(policy(model).listen(batch), batch)
    loss.backward()
    fused = gradients(model)
    clear(model)

    def literal(self, x):
        update = x @ self.lora_A.t() @ self.lora_B.t()
        return self.base(x) + self.scale * update

    class Literal(adapters.LoraLinear):
        forward = literal

    for _, layer in adapters.lora_layers(model):
        layer.__class__ = Literal
    naive = OBJECTIVES["supervised"].loss(policy(model).listen(batch), batch)
    naive.backward()
    torch.testing.assert_close(loss, naive, rtol=1e-12, atol=1e-12)
    assert_same(gradients(model), fused)
    assert all(".lora_" in name for name in fused), "the base stays frozen"


def test_an_adapter_changes_nothing_at_the_start_and_nothing_when_left_out(tiny):
    model = tiny("llama", dtype=torch.float64)
    batch = pack(documents([13, 8], model.config.vocab_size))
    subject = policy(model)
    with subject.inference():
        before = subject.listen(batch).logprobs_S
        adapters.attach(model, Lora(rank=4), seed=0)
        assert torch.equal(subject.listen(batch).logprobs_S, before)
        for _, layer in adapters.lora_layers(model):
            torch.nn.init.normal_(layer.lora_B)
        assert not torch.allclose(subject.listen(batch).logprobs_S, before)
    with subject.inference(base=True):
        assert torch.equal(subject.listen(batch).logprobs_S, before)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    budget=st.integers(1, 600),
)
def test_microbatches_hold_every_example_once_within_the_budget_and_largest_first(lengths, budget):
    groups = microbatches(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in group) for group in groups]
    assert totals == sorted(totals, reverse=True)
    assert all(total <= budget or len(group) == 1 for total, group in zip(totals, groups, strict=True))
