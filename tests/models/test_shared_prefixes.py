"""What documents begin with alike, computed once: loss and every gradient as when each is computed by itself.

In float64 on tiny random models. A segment that does not see its whole chain, a position that restarts, a window
counted from the wrong end or a gradient that reaches a shared token from one branch alone is wrong by far more than
rounding.
"""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.data.pack import lay, pack
from luthier.data.prefixes import prune, trie
from luthier.models import adapters
from luthier.models.load import Head
from luthier.models.policy import policy
from luthier.objectives import OBJECTIVES
from luthier.recipe import Full, Lora
from luthier.types import Sequence

FAMILIES = ["llama", "qwen2", "gemma3", "gpt2"]
"""Grouped queries, tied and untied, biases, a sliding window of 8 tokens, learnt positions."""
TOLERANCE = 1e-10


class Norm(torch.nn.Module):
    """RMS norm (Zhang and Sennrich, arXiv 1910.07467) in the type of its input. transformers' own round to float32
    inside, where a last bit of float64 can surface as one of float32."""

    def __init__(self, weight, eps, one):
        super().__init__()
        self.weight, self.one = weight, one
        self.eps = self.variance_epsilon = eps

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (self.weight + self.one)


def in_float64(model):
    """The model in float64 throughout, every weight trained."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__.endswith("RMSNorm"):
                gemma = type(child).__name__.startswith("Gemma")
                eps = child.eps if gemma else child.variance_epsilon
                setattr(module, name, Norm(child.weight, eps, float(gemma)))
    return model.double().train().requires_grad_(True)


@st.composite
def forks(draw):
    """Documents that fork from each other anywhere, also where one ends, and some that are equal."""
    seed = draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    found = [rng.integers(3, 448, draw(st.integers(1, 24)))]
    for _ in range(draw(st.integers(1, 6))):
        trunk = found[draw(st.integers(0, len(found) - 1))]
        kept = trunk[: draw(st.integers(0, len(trunk)))]
        own = rng.integers(3, 448, draw(st.integers(0 if len(kept) else 1, 14)))
        found.append(np.concatenate([kept, own]))
    return [
        Sequence("x", t.astype(np.int32), rng.choice([0.0, 0.5, 1.0], len(t)).astype(np.float32), (float(i % 3),))
        for i, t in enumerate(found)
    ]


def forked(sequences, least=1):
    """All of it shared, also what is not worth it."""
    numbers = range(len(sequences))
    return lay(sequences, numbers, prune(trie([s.tokens_T for s in sequences]), numbers, least=least))


def step(subject, batches, objective):
    """Loss and gradients of a step."""
    subject.model.zero_grad(set_to_none=True)
    loss = sum(objective.loss(subject.listen(batch), batch) for batch in batches)
    loss.backward()
    gradients = {n: p.grad.clone() for n, p in subject.model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients


def assert_same(ours, theirs, tolerance):
    """Relative to the largest entry of each tensor: a sum of terms that cancel has the rounding of its terms."""
    torch.testing.assert_close(ours[0], theirs[0], rtol=tolerance, atol=1e-14)
    assert ours[1].keys() == theirs[1].keys()
    # What is zero but for rounding, as a bias on keys, has no size of its own.
    floor = max(float(g.abs().max()) for g in theirs[1].values())
    for name, gradient in theirs[1].items():
        size = max(float(gradient.abs().max()), 1e-3 * floor)
        gap = float((ours[1][name] - gradient).abs().max())
        assert gap <= tolerance * size, f"{name}: {gap / size if size else gap:.3g}"


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences=forks(), least=st.sampled_from([1, 1, 8]))
def test_loss_and_every_gradient_equal_plain_packing_and_one_by_one(tiny, family, sequences, least):
    subject, objective = policy(in_float64(tiny(family))), OBJECTIVES["supervised"]
    if not any(s.weights_T[1:].any() for s in sequences):
        return
    once = step(subject, [forked(sequences, least)], objective)
    assert_same(once, step(subject, [pack(sequences)], objective), TOLERANCE)
    assert_same(once, step(subject, [pack([s]) for s in sequences], objective), TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sequences=forks())
def test_scores_of_a_head_equal_plain_packing(tiny, family, sequences):
    model = tiny(family, head=Head(3, "single_label_classification", ("a", "b", "c")))
    subject, objective = policy(in_float64(model), sequence=True), OBJECTIVES["classify"]
    once = step(subject, [forked(sequences)], objective)
    assert_same(once, step(subject, [pack(sequences)], objective), TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_an_adapter_has_the_same_gradients(tiny, family):
    model = in_float64(tiny(family))
    adapters.attach(model, Lora(rank=3), seed=0)
    for _, layer in adapters.lora_layers(model):
        torch.nn.init.normal_(layer.lora_B, std=0.1)
    sequences = answers_to_one_prompt(5)
    batch = pack(sequences, share=True)
    assert batch.parents == (-1, 0, 0, 0, 0, 0)
    subject, objective = policy(model.train()), OBJECTIVES["supervised"]
    assert_same(step(subject, [batch], objective), step(subject, [pack(sequences)], objective), 1e-10)


def answers_to_one_prompt(count, *, prompt=40, seed=0):
    rng = np.random.default_rng(seed)
    beginning = rng.integers(3, 448, prompt)
    found = []
    for i in range(count):
        tokens = np.concatenate([beginning, rng.integers(3, 448, 12 + i)]).astype(np.int32)
        weights = (np.arange(len(tokens)) >= prompt).astype(np.float32)
        found.append(Sequence("x", tokens, weights))
    return found


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_answer_does_not_change_its_sibling_by_one_bit(tiny, family, dtype):
    subject = policy(tiny(family, dtype=dtype))
    sequences = answers_to_one_prompt(4)
    changed = list(sequences)
    tokens = sequences[1].tokens_T.copy()
    tokens[45:] = tokens[45:][::-1]
    changed[1] = Sequence("x", tokens, sequences[1].weights_T)
    with subject.inference():
        batches = [pack(rows, share=True) for rows in (sequences, changed)]
        before, after = (subject.listen(batch).logprobs_S for batch in batches)
    own = batches[0].sequence_S == 1
    assert all(batch.parents == (-1, 0, 0, 0, 0) for batch in batches)
    assert torch.equal(before[~own], after[~own])
    assert not torch.equal(before[own], after[own])


def test_two_runs_of_a_step_have_the_same_gradients_to_the_bit(tiny):
    """Shared tokens collect gradients from every branch; their order may not depend on threads."""
    subject = policy(tiny("llama").train().requires_grad_(True))
    batch = pack(answers_to_one_prompt(48), share=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, *others = [step(subject, [batch], OBJECTIVES["supervised"]) for _ in range(3)]
    finally:
        torch.set_num_threads(threads)
    for other in others:
        assert all(torch.equal(first[1][name], other[1][name]) for name in first[1])


# Which models share


@pytest.mark.parametrize(
    ("family", "dropout", "expected"),
    [
        ("llama", 0.0, True),
        ("gpt2", 0.0, True),
        ("llama", 0.1, False),
        ("bert", 0.0, False),
        ("modernbert", 0.0, False),
    ],
)
def test_only_causal_models_without_dropout_share(tiny, family, dropout, expected):
    model = tiny(family)
    adapters.attach(model, Lora(rank=2, dropout=dropout), seed=0)
    assert policy(model).shares is expected


def test_dropout_of_the_models_own_stops_sharing(tiny):
    model = tiny("llama")
    adapters.attach(model, Full(), seed=0)
    assert policy(model).shares
    model.model.layers[1].self_attn.attention_dropout = 0.1
    assert not policy(model).shares
    model = tiny("gpt2")
    model.transformer.h[0].mlp.dropout.p = 0.1
    assert not policy(model).shares
