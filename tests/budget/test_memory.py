"""Counted memory: what must rise with what, and what torch itself counts for the same layers."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luthier.budget.memory import Row, Sizes, layer_bytes, memory, weight_bytes
from luthier.data.pack import pack
from luthier.models import adapters
from luthier.models.attention import Layout
from luthier.models.policy import fast_stack, policy
from luthier.recipe import Full, Lora
from luthier.types import Sequence

SMALL = Sizes(
    path="gated", layers=4, hidden=64, queries=64, keys=32, heads=4, intermediate=96, vocabulary=448, norms=0,
    normed=False, weights=200_000, linear=150_000, largest=64 * 96, trained=10_000, full=False, below=0,
    ranks=28, number=4, stored=4,
)  # fmt: skip
counts = st.integers(1, 5000)


@given(tokens=counts, read=counts, more=counts)
def test_more_tokens_never_take_less_memory(tokens: int, read: int, more: int) -> None:
    row = Row(tokens + read, read, tokens * tokens)
    larger = Row(row.tokens + more, row.read, row.pairs)
    for recompute in (False, True):
        one, two = (memory(SMALL, each, recompute=recompute) for each in (row, larger))
        assert one.train < two.train
        assert one.phases.keys() == two.phases.keys()
        assert one.peak == max(one.phases.values())


@given(tokens=st.integers(64, 5000))
def test_recomputing_takes_less_and_frozen_layers_keep_nothing(tokens: int) -> None:
    row = Row(tokens, tokens // 2, tokens * tokens)
    plain = memory(SMALL, row, recompute=False)
    assert memory(SMALL, row, recompute=True).activations < plain.activations
    assert memory(replace(SMALL, below=2), row, recompute=False).activations < plain.activations
    assert memory(replace(SMALL, below=4), row, recompute=False).activations == 0


def test_a_quantised_base_takes_a_byte_or_half_of_one_a_weight() -> None:
    rest = (SMALL.weights - SMALL.linear) * 4
    assert weight_bytes(SMALL) == SMALL.weights * 4
    assert weight_bytes(replace(SMALL, quantise="int8")) == SMALL.linear + rest
    # QLoRA: four bits, and one float32 scale for each 64 weights.
    assert weight_bytes(replace(SMALL, quantise="nf4")) == SMALL.linear * (0.5 + 4 / 64) + rest


@pytest.mark.parametrize(
    ("family", "adapter", "path", "norms"),
    [
        ("llama", Lora(rank=4), "gated", 0),
        ("gemma3", Lora(rank=4), "gated", 2),
        ("llama", Full(), "gated", 0),
        ("gpt2", Lora(rank=4), "centred", 0),
        ("gpt2", Full(), "centred", 0),
    ],
)
def test_a_layer_keeps_what_is_counted(tiny, family, adapter, path, norms) -> None:
    """The bytes of all tensors that autograd saves, each storage once, grow with a layer as `layer_bytes` says."""
    model = tiny(family)
    adapters.attach(model, adapter, seed=0)
    subject = policy(model)
    if fast_stack(subject.backbone) is None:
        pytest.skip("no compiler: the layers run by themselves")
    model.train()
    config = model.config
    inner = config.intermediate_size if family != "gpt2" else 4 * config.n_embd
    keys = 32 if family != "gpt2" else 64
    sizes = replace(
        SMALL, path=path, layers=2, keys=keys, intermediate=inner, norms=norms, normed=norms > 0,
        ranks=4 * (7 if path == "gated" else 4) if isinstance(adapter, Lora) else 0,
    )  # fmt: skip
    grown = [_saved(subject, tokens) for tokens in (96, 192)]
    expected = [2 * layer_bytes(sizes, tokens, tokens) for tokens in (96, 192)]
    assert grown[1] - grown[0] == pytest.approx(expected[1] - expected[0], rel=0.1)


def _saved(subject, tokens: int) -> int:
    ids = torch.arange(tokens).numpy() % 448
    batch = pack([Sequence("0", ids.astype("int32"), torch.ones(tokens).numpy())])
    parameters = {p.untyped_storage().data_ptr() for p in subject.model.parameters()}
    found: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in parameters:
            found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        states = subject.hidden(batch.tokens_T, batch.positions_T, Layout(bounds=batch.bounds))
    total = sum(found.values())
    states.sum().backward()
    return total
