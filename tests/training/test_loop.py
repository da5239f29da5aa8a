"""The loop and its optimizer: hand values, and that a step's result depends on the recipe and its number alone."""

import math

import numpy as np
import pytest
import torch

from luthier.batch import Signals
from luthier.data import tokens
from luthier.data.pack import pack
from luthier.data.render import Renderer
from luthier.data.source import EpochSource, stream
from luthier.errors import NotFinite
from luthier.models import adapters
from luthier.models.policy import policy
from luthier.objectives import OBJECTIVES, Objective
from luthier.recipe import Full, Lora, Training
from luthier.sampling.local import Decoding, generate
from luthier.training.loop import mean_loss, train
from luthier.training.optim import adamw, clip, global_norm, rate_at
from luthier.types import Message
from tests.chain import Steps, sequence

SUPERVISED = OBJECTIVES["supervised"]


def random_store(folder, count=10, *, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        n = int(rng.integers(4, 20))
        rows.append((i, sequence(rng.integers(3, 400, n), rng.choice([0.0, 0.5, 1.0], n))))
    tokens.write(folder / "train", rows)
    return tokens.open_store(folder / "train")


def prepared(tiny, adapter, *, family="llama", dtype=torch.float64, **settings):
    """Policy, optimizer and settings at the start of training."""
    model = tiny(family, dtype=dtype)
    adapters.attach(model, adapter, seed=0)
    training = Training(**{"rate": 1e-2, "warmup": 0.2, **settings})
    return policy(model), adamw(adapters.trained(model), training, rate=training.rate), training


def weights(of):
    return {name: p.detach().clone() for name, p in adapters.trained(of.model).items()}


def source(store, training, **more):
    settings = {"batch_examples": 4, "microbatch_tokens": 64, "epochs": 2, "seed": 0, **more}
    return EpochSource(store, **settings)


# The rate


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1.0, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125)]),
    ],
)
def test_rate_rises_over_a_third_of_six_steps_and_then_follows_its_schedule(schedule, expected):
    found = [rate_at(step, 6, peak=2.0, warmup=1 / 3, schedule=schedule) for step in range(6)]
    assert found == pytest.approx([2.0 * share for share in expected])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 3, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.99])
def test_no_step_is_wasted_on_a_rate_of_zero(schedule, steps, warmup):
    found = [rate_at(step, steps, peak=1.0, warmup=warmup, schedule=schedule) for step in range(steps)]
    assert min(found) > 0
    assert max(found) == pytest.approx(1.0)


# Clipping


def test_clip_scales_to_the_limit_and_leaves_smaller_gradients_alone():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    a.grad, b.grad = torch.tensor([3.0]), torch.tensor([4.0])
    assert global_norm([a, b]) == pytest.approx(5.0)
    clip([a, b], 5.0, 10.0)
    assert (a.grad.item(), b.grad.item()) == (3.0, 4.0)
    clip([a, b], 5.0, 0.0)
    assert (a.grad.item(), b.grad.item()) == (3.0, 4.0)
    clip([a, b], 5.0, 1.0)
    assert (a.grad.item(), b.grad.item()) == pytest.approx((0.6, 0.8))


def test_the_report_gives_the_norm_before_clipping(tiny, tmp_path):
    store = random_store(tmp_path)
    norms = []
    for limit in (0.0, 1e-3):
        ours, optimizer, training = prepared(tiny, Full(), clip=limit)
        norms.append(next(train(ours, source(store, training), SUPERVISED, optimizer, training)).grad_norm)
    assert norms[0] == norms[1] > 1e-3


# A number that is none


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("adapter", [Full(), Lora(rank=2)], ids=["full", "lora"])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(tiny, tmp_path, bad, adapter):
    steps = []

    def loss(signals: Signals, batch):
        steps.append(None)
        return SUPERVISED.loss(signals, batch) * (bad if len(steps) > 2 else 1.0)

    store = random_store(tmp_path)
    ours, optimizer, training = prepared(tiny, adapter)
    run = train(
        ours, source(store, training, microbatch_tokens=10_000), Objective(loss, SUPERVISED.units, "token"), optimizer,
        training,
    )  # fmt: skip
    next(run)
    next(run)
    before, moments = weights(ours), [s["exp_avg"].clone() for s in optimizer.state.values()]
    with pytest.raises(NotFinite, match="not a finite number") as caught:
        next(run)
    assert caught.value.where == "step 3"
    assert caught.value.exit_code == 4
    after = weights(ours)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(torch.equal(a, s["exp_avg"]) for a, s in zip(moments, optimizer.state.values(), strict=True))


def test_a_gradient_that_is_no_number_stops_though_the_loss_is_one(tiny, tmp_path):
    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return g * math.nan

    objective = Objective(lambda s, b: Poison.apply(SUPERVISED.loss(s, b)), SUPERVISED.units, "token")
    ours, optimizer, training = prepared(tiny, Full())
    before = weights(ours)
    with pytest.raises(NotFinite):
        next(train(ours, source(random_store(tmp_path), training), objective, optimizer, training))
    assert all(torch.equal(p, before[name]) for name, p in weights(ours).items())


# What a step depends on


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("adapter", [Full(), Lora(rank=2)], ids=["full", "lora"])
def test_the_cut_into_microbatches_does_not_change_the_weights(tiny, tmp_path, adapter, family):
    store = random_store(tmp_path)
    # A bias on keys shifts all scores of a query alike: its gradient is zero but for rounding, which Adam then divides
    # by itself. Its epsilon of 1e-8 turns 1e-18 into 1e-12.
    tolerance = 1e-12 if family == "llama" else 1e-10
    results = []
    for budget in (1, 30, 10_000):
        ours, optimizer, training = prepared(tiny, adapter, family=family)
        steps = source(store, training, microbatch_tokens=budget, max_steps=3)
        reports = list(train(ours, steps, SUPERVISED, optimizer, training))
        results.append((weights(ours), [r.loss for r in reports], [r.tokens for r in reports]))
    for found, step_losses, counted in results[1:]:
        assert step_losses == pytest.approx(results[0][1], rel=1e-12)
        assert counted == results[0][2]
        for name, value in found.items():
            torch.testing.assert_close(value, results[0][0][name], rtol=0, atol=tolerance)


@pytest.mark.parametrize("adapter", [Full(), Lora(rank=2)], ids=["full", "lora"])
def test_shared_beginnings_change_what_is_computed_and_not_the_weights(tiny, tmp_path, adapter):
    rng = np.random.default_rng(0)
    beginning = rng.integers(3, 400, 50)
    ids = [np.concatenate([beginning[: 50 - 5 * (i % 3)], rng.integers(3, 400, 8 + i)]) for i in range(8)]
    rows = [sequence(t, rng.choice([0.0, 0.5, 1.0], len(t))) for t in ids]
    tokens.write(tmp_path / "train", list(enumerate(rows)))
    store = tokens.open_store(tmp_path / "train")
    results = []
    for share, budget in ((False, 10_000), (True, 10_000), (True, 120)):
        ours, optimizer, training = prepared(tiny, adapter)
        steps = source(store, training, microbatch_tokens=budget, share=share)
        reports = list(train(ours, steps, SUPERVISED, optimizer, training))
        results.append((weights(ours), [r.loss for r in reports], [(r.tokens, r.computed) for r in reports]))
    (plain, plain_losses, plain_counts), *others = results
    assert all(tokens_ == computed for tokens_, computed in plain_counts)
    # The norms of Llama round to float32 inside, where a last bit of float64 can surface.
    for found, step_losses, counts in others:
        assert step_losses == pytest.approx(plain_losses, rel=1e-6)
        assert [t for t, _ in counts] == [t for t, _ in plain_counts]
        assert all(computed < 0.8 * tokens_ for tokens_, computed in counts)
        for name, value in found.items():
            torch.testing.assert_close(value, plain[name], rtol=0, atol=1e-4)


def test_a_smaller_last_step_counts_what_is_there(tiny, tmp_path):
    store = random_store(tmp_path, 5)
    ours, optimizer, training = prepared(tiny, Full())
    steps = source(store, training, epochs=1)
    assert [len(steps.examples(n)) for n in range(len(steps))] == [4, 1]
    last = steps.step(1)
    expected = mean_loss(ours, last, SUPERVISED)
    (report,) = list(train(ours, steps, SUPERVISED, optimizer, training, start=1))
    assert report.step == 2
    assert report.units == SUPERVISED.units(last[0])
    assert report.loss == pytest.approx(expected, rel=1e-12)


def test_an_epoch_shows_every_example_once_and_the_next_in_another_order(tmp_path):
    store = random_store(tmp_path)
    steps = EpochSource(store, batch_examples=4, microbatch_tokens=64, epochs=2, seed=3)
    order = [int(i) for n in range(len(steps)) for i in steps.examples(n)]
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10))
    assert order[:10] != order[10:]
    again = EpochSource(store, batch_examples=4, microbatch_tokens=64, epochs=2, seed=3)
    assert [int(i) for i in again.examples(4)] == [int(i) for i in steps.examples(4)]


def test_dropout_depends_on_the_seed_and_the_step_alone(tiny, tmp_path):
    store = random_store(tmp_path)

    def run(start, seed=0):
        ours, optimizer, training = prepared(tiny, Lora(rank=2, dropout=0.5), seed=seed)
        with torch.no_grad():
            for _, layer in adapters.lora_layers(ours.model):
                layer.lora_B.normal_(generator=torch.Generator().manual_seed(0))
        steps = train(ours, source(store, training), SUPERVISED, optimizer, training, start=start)
        return next(steps).loss

    torch.manual_seed(123)
    first = run(3)
    torch.manual_seed(456)
    assert run(3) == first
    assert run(3, seed=1) != first

    # Weights that stand still: step 3 has the same loss whether the steps before it were taken or not.
    ours, optimizer, training = prepared(tiny, Lora(rank=2, dropout=0.5), rate=1e-300)
    with torch.no_grad():
        for _, layer in adapters.lora_layers(ours.model):
            layer.lora_B.normal_(generator=torch.Generator().manual_seed(0))
    assert [r.loss for r in train(ours, source(store, training), SUPERVISED, optimizer, training)][3] == first


def test_a_step_without_a_supervised_token_changes_nothing(tiny):
    ours, optimizer, training = prepared(tiny, Full(), weight_decay=0.1)
    before = weights(ours)
    steps = Steps([[[sequence([5, 6, 7], [0, 0, 0])]], [[sequence([5, 6, 7], [0, 0, 1])], [sequence([8, 9], [0, 0])]]])
    run = train(ours, steps, SUPERVISED, optimizer, training)
    report = next(run)
    assert (report.units, report.loss, report.grad_norm) == (0.0, 0.0, 0.0)
    assert all(torch.equal(p, before[name]) for name, p in weights(ours).items())
    assert next(run).units == 1.0


def test_weight_decay_is_for_matrices_only(tiny):
    ours, _, _ = prepared(tiny, Full())
    optimizer = adamw(adapters.trained(ours.model), Training(weight_decay=0.1), rate=1.0)
    decays = {p.ndim: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {2: 0.1, 1: 0.0}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_mean_loss_does_not_depend_on_batching_and_takes_no_dropout(tiny, tmp_path, family):
    store = random_store(tmp_path)
    ours, _, _ = prepared(tiny, Lora(rank=2, dropout=0.5), family=family)
    ours.model.train()
    every = np.arange(len(store))
    found = [
        mean_loss(ours, stream(store, every, budget, window=window), SUPERVISED)
        for budget, window in ((1, 3), (50, 256), (9999, 1))
    ]
    one_by_one = [pack([store.sequence(i)]) for i in reversed(range(len(store)))]
    assert found == pytest.approx([mean_loss(ours, one_by_one, SUPERVISED)] * 3, rel=1e-12)
    assert ours.model.training


# It learns


# The random output layer of so small a model cannot be sure of any token, so it is trained beside the adapter.
@pytest.mark.parametrize("adapter", [Full(), Lora(rank=8, alpha=16, modules_to_save=["lm_head"])], ids=["full", "lora"])
def test_six_conversations_are_learnt_by_heart_stop_token_included(tiny, tiny_tokenizer, tmp_path, adapter):
    renderer = Renderer(tiny_tokenizer)
    answers = ["spruce", "maple it is", "ebony", "willow, or lime", "none", "pear"]
    turns = [[Message("user", f"Which wood for part {i}?"), Message("assistant", a)] for i, a in enumerate(answers)]
    rendered = [renderer.render(conversation(i, messages), turns="all") for i, messages in enumerate(turns)]
    tokens.write(tmp_path / "train", list(enumerate(rendered)))
    store = tokens.open_store(tmp_path / "train")
    ours, optimizer, training = prepared(
        tiny, adapter, family="llama-untied", dtype=torch.float32, rate=1e-2, warmup=0.05, batch_examples=6
    )
    steps = EpochSource(store, batch_examples=6, microbatch_tokens=4096, epochs=120, seed=0)
    reports = list(train(ours, steps, SUPERVISED, optimizer, training))
    assert reports[-1].loss < 0.05 < reports[0].loss
    prompts = [renderer.prompt(messages) for messages in turns]
    decoding = Decoding(max_new_tokens=24, stop=frozenset(renderer.stop_tokens()))
    found = {c.index: c for c in generate(ours, prompts, decoding, batch=4)}
    written = [tiny_tokenizer.decode(list(found[i].tokens), skip_special_tokens=True).strip() for i in range(6)]
    assert written == answers
    assert {c.finish for c in found.values()} == {"stop"}
    assert {c.tokens[-1] for c in found.values()} <= set(renderer.stop_tokens())


def conversation(index, messages):
    from luthier.types import Conversation, Provenance

    return Conversation(str(index), tuple(messages), Provenance("test", index + 1, ""))
