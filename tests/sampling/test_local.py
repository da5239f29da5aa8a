"""The sampler: greedy answers are transformers' own token for token, samples follow the distribution, neighbours do not matter.

transformers is asked one prompt at a time, without padding, so that nothing of its batching enters the comparison.
"""

import numpy as np
import pytest
import torch

from luthier.data.pack import pack
from luthier.models.policy import policy
from luthier.sampling.local import Decoding, generate
from luthier.types import Sequence

WRITERS = ["llama", "llama-untied", "qwen2", "gemma3", "gpt2"]
NEW = 12


def prompts(vocabulary, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocabulary, n).tolist() for n in lengths]


def theirs(model, prompt, stop):
    """transformers' greedy continuation of one prompt."""
    for module in model.modules():
        if hasattr(getattr(module, "config", None), "_attn_implementation"):
            module.config._attn_implementation = "sdpa"
    out = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=NEW, eos_token_id=sorted(stop) or None, pad_token_id=0,
        use_cache=True,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


def ours(model, asked, stop=frozenset(), *, batch=16, **more):
    decoding = Decoding(max_new_tokens=NEW, stop=frozenset(stop), **more)
    found = {c.index: c for c in generate(policy(model), asked, decoding, batch=batch)}
    assert sorted(found) == list(range(len(asked)))
    return [found[i] for i in range(len(asked))]


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_greedy_answers_are_those_of_transformers(tiny, family, batch):
    model = tiny(family, dtype=torch.float64).eval()
    # More prompts than rows, so that rows are refilled; some longer than Gemma's sliding window.
    asked = prompts(model.config.vocab_size, [5, 1, 21, 9, 14, 3, 40])
    expected = [theirs(model, prompt, set()) for prompt in asked]
    assert [list(c.tokens) for c in ours(model, asked, batch=batch)] == expected


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_stop_token_ends_an_answer_and_stays_in_it(tiny, family):
    model = tiny(family, dtype=torch.float64).eval()
    asked = prompts(model.config.vocab_size, [6, 11, 4])
    free = [list(c.tokens) for c in ours(model, asked)]
    stop = {free[0][4]}
    stopped = ours(model, asked, stop)
    expected = [theirs(model, prompt, stop) for prompt in asked]
    assert [list(c.tokens) for c in stopped] == expected
    for completion in stopped:
        ended = completion.tokens[-1] in stop
        assert completion.finish == ("stop" if ended else "length")
        assert ended or len(completion.tokens) == NEW


@pytest.mark.parametrize("family", WRITERS)
def test_recorded_logprobs_are_those_of_the_training_pass(tiny, family):
    model = tiny(family, dtype=torch.float64).eval()
    asked = prompts(model.config.vocab_size, [7, 18])
    for prompt, completion in zip(asked, ours(model, asked), strict=True):
        tokens = np.array([*prompt, *completion.tokens], dtype=np.int32)
        weights = np.zeros(len(tokens), dtype=np.float32)
        weights[len(prompt) :] = 1
        with torch.no_grad():
            trained = policy(model).listen(pack([Sequence("x", tokens, weights)])).logprobs_S
        # Norms and rotary angles are float32 inside of some families, so the last bits of float64 can differ.
        torch.testing.assert_close(torch.tensor(completion.logprobs).double(), trained, rtol=1e-5, atol=1e-5)


def test_an_answer_does_not_depend_on_its_neighbours(tiny):
    model = tiny("llama", dtype=torch.float64).eval()
    asked = prompts(model.config.vocab_size, [6, 13, 4, 9])
    together = [c.tokens for c in ours(model, asked, temperature=1.0, seed=3)]
    alone = [c.tokens for c in ours(model, asked, temperature=1.0, seed=3, batch=1)]
    assert together == alone
    assert together != [c.tokens for c in ours(model, asked, temperature=1.0, seed=4)]


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_samples_follow_the_softmax_at_their_temperature(tiny, temperature):
    from scipy.stats import chisquare

    model = tiny("llama").eval()
    subject = policy(model)
    prompt = prompts(model.config.vocab_size, [5])[0]
    draws = 3000
    decoding = Decoding(max_new_tokens=1, stop=frozenset(), temperature=temperature, seed=1)
    counts = np.zeros(model.config.vocab_size)
    for completion in generate(subject, [prompt] * draws, decoding, batch=500):
        counts[completion.tokens[0]] += 1
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt]), luthier_layout=_whole(prompt)).logits[0, -1].double()
    expected = (logits / temperature).softmax(-1).numpy() * draws
    order = np.argsort(-expected)
    bins = np.array_split(order, 40)
    observed = np.array([counts[b].sum() for b in bins])
    wanted = np.array([expected[b].sum() for b in bins])
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 1e-4


def _whole(prompt):
    from luthier.models.attention import Layout

    return Layout(bounds=(0, len(prompt)))


def test_tokens_are_told_as_they_appear(tiny):
    model = tiny("llama").eval()
    asked = prompts(model.config.vocab_size, [4, 8])
    seen = {0: [], 1: []}
    decoding = Decoding(max_new_tokens=NEW, stop=frozenset())
    done = list(generate(policy(model), asked, decoding, on_token=lambda i, token: seen[i].append(token)))
    assert {c.index: list(c.tokens) for c in done} == seen


def test_no_prompts_give_no_answers(tiny):
    assert list(generate(policy(tiny("llama")), [], Decoding(max_new_tokens=3, stop=frozenset()))) == []
