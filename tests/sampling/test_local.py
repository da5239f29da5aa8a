"""The local engine against `generate` of transformers, the training pass and the distribution it draws from."""

import csv
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, MistralConfig, Qwen3Config

from luthier.data.pack import pack
from luthier.models import adapters
from luthier.models.attention import KeyValues, Layout
from luthier.models.load import load_model, load_tokenizer
from luthier.models.policy import policy
from luthier.recipe import Lora
from luthier.sampling.local import Decoding, generate
from tests.chain import sequence

FAMILIES = ["llama", "qwen2", "gemma3", "gpt2"]
NEW = 14


def prompts(count, *, seed=0, longest=30):
    """Ragged prompts, some of one token, some longer than Gemma's window of 8."""
    rng = np.random.default_rng(seed)
    return [rng.integers(3, 400, int(n)).tolist() for n in rng.integers(1, longest, count)]


def by_transformers(model, given, stop, new=NEW):
    """One prompt at a time, greedily."""
    found = []
    for ids in given:
        out = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=new, eos_token_id=list(stop) or None, pad_token_id=0, use_cache=True,
        )  # fmt: skip
        found.append(tuple(out[0, len(ids) :].tolist()))
    return found


def by_us(made, given, decoding, **more):
    return {c.index: c for c in generate(made, given, decoding, **more)}


def some_stops(written):
    """Tokens that really come up in the middle of completions, so that rows end at different times."""
    seen = Counter(token for tokens in written for token in tokens[2:-2])
    return frozenset(token for token, _ in seen.most_common(3))


def windowed():
    """A Mistral whose every layer sees 8 tokens, and a Qwen3, which norms each head."""
    sizes = {
        "vocab_size": 448, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.1, "max_position_embeddings": 512,
    }  # fmt: skip
    return {"mistral": MistralConfig(**sizes, sliding_window=8), "qwen3": Qwen3Config(**sizes)}


def more(family, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(windowed()[family], attn_implementation="eager", dtype=torch.float32)
    return model.to(dtype).eval()


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_greedy_decoding_of_further_families(family):
    given = prompts(12, seed=6)
    expected = by_transformers(more(family, torch.float64), given, ())
    found = by_us(policy(more(family, torch.float64)), given, Decoding(NEW, frozenset()), batch=5)
    assert [found[i].tokens for i in range(len(given))] == expected


def with_adapter(model, **settings):
    adapters.attach(model, Lora(rank=5, **settings), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.trained(model).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model.double()


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_need_not_be_merged(tiny, family, dora):
    given = prompts(8, seed=7)
    found = by_us(policy(with_adapter(tiny(family), dora=dora)), given, Decoding(NEW, frozenset()), batch=3)
    merged = with_adapter(tiny(family), dora=dora)
    adapters.merge(merged)
    assert [found[i].tokens for i in range(8)] == by_transformers(merged, given, ())
    without = by_transformers(tiny(family, dtype=torch.float64), given, ())
    assert [found[i].tokens for i in range(8)] != without


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_the_step_in_one_call_is_the_modules_own(tiny, family, dtype, tolerance):
    made = policy(tiny(family, dtype=dtype))
    cache = KeyValues(20, 40)
    # More rows than a vector has lanes, in places with gaps, beyond Gemma's window.
    cache.slots_B = torch.tensor([*range(9), *range(10, 20)])
    cache.lengths_B = torch.arange(1, 20)
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        keys, values = cache.layer(i, torch.empty(2, 1, 16, dtype=dtype))
        keys.copy_(torch.randn(keys.shape, generator=generator))
        values.copy_(torch.randn(values.shape, generator=generator))
    tokens = torch.randint(3, 400, (19,), generator=generator)
    with made.inference():
        slow = made.hidden(tokens[:, None], cache.lengths_B[:, None], Layout(cache=cache))[:, 0]
        kept = {i: tuple(x.clone() for x in pair) for i, pair in cache.layers.items()}
        fast = made.decoder(cache)(tokens)
    # Gemma's norms round to float32 inside whatever the model computes in.
    bound = 1e-5 if family == "gemma3" and dtype == torch.float64 else tolerance
    assert float(slow.abs().max()) > 1
    assert float((fast - slow).abs().max()) < bound
    for i, pair in cache.layers.items():
        assert all(torch.allclose(x, y, rtol=0, atol=bound) for x, y in zip(pair, kept[i], strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_decoding_is_that_of_transformers_token_for_token(tiny, family, dtype):
    given = prompts(20)
    plain = tiny(family, dtype=dtype)
    free = by_transformers(plain, given, ())
    stop = some_stops(free)
    expected = by_transformers(plain, given, stop)
    assert len({len(tokens) for tokens in expected}) > 2
    made = policy(tiny(family, dtype=dtype))
    for batch in (1, 3, 16):
        found = by_us(made, given, Decoding(NEW, stop), batch=batch)
        assert [found[i].tokens for i in range(len(given))] == expected
        for completion in found.values():
            ended = completion.tokens[-1] in stop
            assert completion.finish == ("stop" if ended else "length")
            assert ended or len(completion.tokens) == NEW


# Gemma's norms round to float32 inside whatever the model computes in.
@pytest.mark.parametrize(
    ("family", "tolerance"), [("llama", 1e-10), ("qwen2", 1e-10), ("gpt2", 1e-10), ("gemma3", 1e-5)]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_logprobs_are_those_of_the_training_forward_pass(tiny, family, tolerance, temperature):
    given = prompts(7, seed=1)
    made = policy(tiny(family, dtype=torch.float64))
    for completion in generate(made, given, Decoding(NEW, frozenset(), temperature=temperature), batch=3):
        prompt = given[completion.index]
        weights = [0] * len(prompt) + [1] * NEW
        with made.inference():
            logprobs = made.listen(pack([sequence([*prompt, *completion.tokens], weights)])).logprobs_S
        assert logprobs.tolist() == pytest.approx(list(completion.logprobs), rel=tolerance, abs=tolerance)


def test_the_logprobs_of_samples_are_at_their_temperature(tiny):
    made = policy(tiny("llama", dtype=torch.float64))
    prompt = [5, 6, 7]
    (completion,) = generate(made, [prompt], Decoding(1, frozenset(), temperature=0.5))
    expected = (next_logits(made, prompt) / 0.5).log_softmax(-1)[completion.tokens[0]]
    assert completion.logprobs[0] == pytest.approx(float(expected), rel=1e-12)


def next_logits(made, prompt):
    with made.inference():
        hidden = made.hidden(torch.tensor(prompt), torch.arange(len(prompt)), Layout(bounds=(0, len(prompt))))
        return made.next_logits(hidden[-1:])[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax_at_the_temperature(tiny, temperature):
    made = policy(tiny("llama"))
    prompt, count = [5, 17, 300], 4000
    decoding = Decoding(1, frozenset(), temperature=temperature, seed=1)
    drawn = Counter(c.tokens[0] for c in generate(made, [prompt] * count, decoding, batch=500))
    expected = ((next_logits(made, prompt).double() / temperature).softmax(-1) * count).tolist()
    # Tokens that are expected less than ten times are counted together.
    often = [token for token, n in enumerate(expected) if n >= 10]
    observed = [*(drawn[t] for t in often), count - sum(drawn[t] for t in often)]
    wanted = [*(expected[t] for t in often), count - sum(expected[t] for t in often)]
    assert len(often) > 20
    assert chisquare(observed, wanted).pvalue > 1e-3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_completion_does_not_depend_on_its_neighbours(tiny, family, temperature):
    made = policy(tiny(family, dtype=torch.float64))
    given = prompts(9, seed=2)
    decoding = Decoding(NEW, frozenset({7, 8, 9}), temperature=temperature, seed=5)
    among = by_us(made, given, decoding, batch=4)
    for batch in (1, 9):
        again = by_us(made, given, decoding, batch=batch)
        assert [again[i].tokens for i in range(9)] == [among[i].tokens for i in range(9)]
    # Other prompts behind it: the first three are answered as before.
    fewer = by_us(made, given[:3], decoding, batch=4)
    assert [fewer[i].tokens for i in range(3)] == [among[i].tokens for i in range(3)]


def test_samples_depend_on_the_seed_and_on_the_place_in_the_list(tiny):
    made = policy(tiny("llama"))

    def drawn(seed):
        found = by_us(made, [[5, 6]] * 4, Decoding(NEW, frozenset(), temperature=1.0, seed=seed))
        return [found[i].tokens for i in range(4)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert len(set(drawn(0))) == 4


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_tokens_are_told_as_they_appear(tiny, batch):
    made = policy(tiny("llama"))
    given = prompts(7, seed=3)
    told = {i: [] for i in range(len(given))}
    ended = []

    def on_token(index, token):
        assert index not in ended, "a token came after its completion"
        told[index].append(token)

    stop = some_stops(by_transformers(tiny("llama"), given, ()))
    for completion in generate(made, given, Decoding(NEW, stop), batch=batch, on_token=on_token):
        ended.append(completion.index)
        assert tuple(told[completion.index]) == completion.tokens
    assert sorted(ended) == list(range(len(given)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [2, 4, 7])
def test_samples_of_a_prompt_do_not_depend_on_how_they_were_admitted(tiny, family, batch):
    made = policy(tiny(family, dtype=torch.float64))
    given = prompts(4, seed=8)
    decoding = Decoding(NEW, frozenset({7, 8, 9}), temperature=1.0, seed=3)
    together = {(c.index, c.sample): c for c in generate(made, given, decoding, samples=5, batch=20)}
    assert sorted(together) == [(i, k) for i in range(4) for k in range(5)]
    assert len({c.tokens for c in together.values()}) > 15
    few = {(c.index, c.sample): c for c in generate(made, given, decoding, samples=5, batch=batch)}
    assert {at: c.tokens for at, c in few.items()} == {at: c.tokens for at, c in together.items()}
    # The first sample is what a single one would be.
    alone = by_us(made, given, decoding)
    assert all(alone[i].tokens == together[i, 0].tokens for i in range(4))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_begin_alike_are_answered_as_each_by_itself(tiny, family):
    system = prompts(1, seed=9, longest=3)[0] * 30
    given = [[*system, *rest] for rest in prompts(6, seed=10)]
    given += [given[0], system, [*given[0], 5, 6, 7]]
    expected = by_transformers(tiny(family, dtype=torch.float64), given, ())
    found = by_us(policy(tiny(family, dtype=torch.float64)), given, Decoding(NEW, frozenset()), batch=9)
    assert [found[i].tokens for i in range(len(given))] == expected


def test_completions_longer_than_the_room_that_was_set_aside(tiny):
    made = policy(tiny("llama", dtype=torch.float64))
    given = prompts(3, seed=11)
    expected = by_transformers(tiny("llama", dtype=torch.float64), given, (), new=300)
    found = by_us(made, given, Decoding(300, frozenset()), batch=2)
    assert [found[i].tokens for i in range(3)] == expected


@pytest.mark.slow
@pytest.mark.models
@pytest.mark.shared_data
def test_a_real_model_answers_real_prompts_as_with_transformers(smollm2, shared_data):
    with (shared_data / "mts-dialog" / "MTS-Dialog-TestSet-1-MEDIQA-Chat-2023.csv").open() as file:
        dialogues = [row["dialogue"] for row in csv.DictReader(file)][:20]
    tokenizer = load_tokenizer(smollm2)
    given = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)["input_ids"]
        for text in dialogues
    ]
    model = load_model(smollm2, head=None, dtype=torch.float32, seed=0).model.eval()
    stop = (tokenizer.eos_token_id,)
    found = by_us(policy(model), given, Decoding(24, frozenset(stop)), batch=16)
    model.set_attn_implementation("sdpa")
    expected = by_transformers(model, given, stop, new=24)
    assert [found[i].tokens for i in range(20)] == expected


def test_one_new_token_and_no_prompt(tiny):
    made = policy(tiny("llama"))
    assert list(generate(made, [], Decoding(NEW, frozenset()))) == []
    found = by_us(made, prompts(5), Decoding(1, frozenset()), batch=2)
    assert {(len(c.tokens), len(c.logprobs), c.finish) for c in found.values()} == {(1, 1, "length")}


def test_prompts_that_fill_several_prefills(tiny):
    made = policy(tiny("llama", dtype=torch.float64))
    rng = np.random.default_rng(4)
    given = [rng.integers(3, 400, 300).tolist() for _ in range(30)]
    together = by_us(made, given, Decoding(3, frozenset()), batch=30)
    assert [together[i].tokens for i in (0, 13, 29)] == [
        by_us(made, [given[i]], Decoding(3, frozenset()))[0].tokens for i in (0, 13, 29)
    ]


def test_the_model_is_left_as_it_was(tiny):
    model = tiny("llama").train()
    made = policy(model)
    list(generate(made, prompts(3), Decoding(2, frozenset())))
    assert model.training
    assert model.config.use_cache is False
