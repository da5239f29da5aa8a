"""A run on a GPU: equal to the processor's within rounding, equal to itself to the bit, and what it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from luthier import machine
from luthier.data import tokens
from luthier.data.source import EpochSource
from luthier.models import adapters
from luthier.models.policy import Policy, policy, verify
from luthier.models.quantised import dense, to_nf4
from luthier.objectives import OBJECTIVES
from luthier.recipe import Full, Lora, Training
from luthier.sampling.local import Decoding, generate
from luthier.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from luthier.training.loop import train
from luthier.training.optim import adamw
from tests.chain import sequence

pytestmark = pytest.mark.gpu

SUPERVISED = OBJECTIVES["supervised"]
TRAINING = Training(rate=1e-2, batch_examples=4, microbatch_tokens=64, epochs=1)


def begun(model: Any, place: torch.device | str, adapter: Any = None) -> tuple[Policy, torch.optim.Optimizer]:
    model = model.to(place)
    adapters.attach(model, adapter or Lora(rank=4), seed=0)
    return policy(model), adamw(adapters.trained(model), TRAINING, rate=1e-2)


def source(folder: Path, *, share: bool = True) -> EpochSource:
    rng = np.random.default_rng(0)
    beginning = rng.integers(3, 400, 12)
    rows = [np.concatenate([beginning, rng.integers(3, 400, int(rng.integers(4, 20)))]) for _ in range(16)]
    weighted = [(i, sequence(row, rng.choice([0.0, 0.5, 1.0], len(row)))) for i, row in enumerate(rows)]
    tokens.write(folder / "train", weighted)
    store = tokens.open_store(folder / "train")
    return EpochSource(store, batch_examples=4, microbatch_tokens=64, epochs=1, seed=0, share=share)


def losses(given: tuple[Policy, torch.optim.Optimizer], steps: EpochSource, start: int = 0) -> list[float]:
    return [r.loss for r in train(given[0], steps, SUPERVISED, given[1], TRAINING, start=start)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3", "gpt2"])
@pytest.mark.parametrize("adapter", [Lora(rank=4), Lora(rank=4, dora=True), Full()], ids=["lora", "dora", "full"])
def test_training_goes_as_on_the_processor(
    card: torch.device, tiny: Callable[..., Any], tmp_path: Path, family: str, adapter: Any
) -> None:
    steps = source(tmp_path)
    on_cpu, on_card = (losses(begun(tiny(family), place, adapter), steps) for place in ("cpu", card))
    assert np.allclose(on_cpu, on_card, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_our_way_through_the_layers_agrees_with_the_models_own(
    card: torch.device, tiny: Callable[..., Any], dtype: torch.dtype
) -> None:
    verify(policy(tiny("llama", dtype=dtype).to(card)))


def test_weights_in_float32_are_trained_under_products_in_bf16(
    card: torch.device, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    steps, (ours, optimizer) = source(tmp_path), begun(tiny("llama"), card, Full())
    ours.dtype = torch.bfloat16
    found = losses((ours, optimizer), steps)
    assert all(p.dtype == torch.float32 for p in ours.model.parameters())
    assert np.allclose(found, losses(begun(tiny("llama"), "cpu", Full()), steps), rtol=5e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(
    card: torch.device, tiny: Callable[..., Any], tmp_path: Path, dtype: torch.dtype
) -> None:
    steps = source(tmp_path)
    whole = losses(begun(tiny("llama", dtype=dtype), card), steps)
    stopped, optimizer = begun(tiny("llama", dtype=dtype), card)
    reports = train(stopped, steps, SUPERVISED, optimizer, TRAINING)
    first = [next(reports).loss for _ in range(2)]
    reports.close()
    parameters = adapters.trained(stopped.model)
    path = save_checkpoint(tmp_path / "checkpoints", parameters, optimizer, Progress(step=2))
    again, fresh = begun(tiny("llama", dtype=dtype), card)
    load_checkpoint(path, adapters.trained(again.model), fresh)
    assert first + losses((again, fresh), steps, start=2) == whole


def test_answers_are_the_processors(card: torch.device, tiny: Callable[..., Any]) -> None:
    prompts = [[5, 9, 17, 30], [5, 9, 40], [100]]
    decoding = Decoding(max_new_tokens=8, stop=frozenset())

    def answers(place: torch.device | str) -> list[tuple[int, ...]]:
        found = generate(policy(tiny("llama").to(place)), prompts, decoding, samples=2)
        return [c.tokens for c in sorted(found, key=lambda c: (c.index, c.sample))]

    assert answers(card) == answers("cpu")


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_is_the_same_on_both(
    card: torch.device, tiny: Callable[..., Any], tmp_path: Path, kind: str
) -> None:
    steps, found = source(tmp_path), []
    for place in ("cpu", card):
        model = tiny("llama").to(place)
        adapters.attach(model, Lora(rank=4), seed=0, quantise=kind)
        found.append(losses((policy(model), adamw(adapters.trained(model), TRAINING, rate=1e-2)), steps))
    assert np.allclose(*found, rtol=1e-3)


def test_bitsandbytes_opens_our_bytes_to_the_same_weights(card: torch.device) -> None:
    pytest.importorskip("bitsandbytes")
    packed, scales = to_nf4(torch.linspace(-1, 1, 70 * 96).view(70, 96))
    ours = dense(packed, scales, (70, 96), kind="nf4")
    assert torch.equal(dense(packed.to(card), scales.to(card), (70, 96), kind="nf4").cpu(), ours)


def test_the_card_is_told_without_torch(card: torch.device) -> None:
    found, theirs = machine.gpu(), torch.cuda.get_device_properties(card)
    assert found is not None
    assert (found.name, found.capability) == (theirs.name, (theirs.major, theirs.minor))
    assert found.memory_bytes == pytest.approx(theirs.total_memory, rel=0.05)


@pytest.mark.models
def test_speed_and_memory_of_a_small_model(card: torch.device, smollm2: Any, tmp_path: Path) -> None:
    """Prints what `pytest -s` shows; fails only where a step keeps more than it should."""
    from luthier.models.load import load_model

    model = load_model(smollm2, head=None, dtype=torch.bfloat16, seed=0, remote_code=False).model
    ours, optimizer = begun(model, card, Lora(rank=16))
    rng = np.random.default_rng(0)
    rows = [(i, sequence(rng.integers(3, 40_000, 512), np.ones(512))) for i in range(64)]
    tokens.write(tmp_path / "train", rows)
    store = tokens.open_store(tmp_path / "train")
    steps = EpochSource(store, batch_examples=8, microbatch_tokens=4096, epochs=1, seed=0)
    torch.cuda.reset_peak_memory_stats(card)
    reports = list(train(ours, steps, SUPERVISED, optimizer, TRAINING))
    timed = reports[3:]
    speed = sum(r.tokens for r in timed) / sum(r.seconds for r in timed)
    print(f"\n{torch.cuda.get_device_name(card)}: {speed:,.0f} tokens/s, {reports[-1].memory_bytes / 1e9:.2f} GB")
    # Weights 0.27 GB, 4,096 tokens at about 0.5 MB, two tiles of logits.
    assert reports[-1].memory_bytes < 6e9
