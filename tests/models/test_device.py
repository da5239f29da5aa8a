"""Where a model computes: what a machine without a GPU says, and that batches and adapters do not depend on it."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luthier.data.pack import pack
from luthier.errors import RecipeError
from luthier.machine import first_gpu
from luthier.models.device import chosen, notes, repeatable
from tests.chain import sequence

needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@needs_none
def test_a_machine_without_a_gpu_says_so() -> None:
    assert chosen("auto") == chosen("cpu") == torch.device("cpu")
    assert notes(torch.device("cpu")) == ()
    with pytest.raises(RecipeError, match="no GPU"):
        chosen("cuda")


def test_a_batch_is_moved_whole() -> None:
    rows = [sequence([5, 6, 7, n], [0.0, 1.0, 1.0, 1.0]) for n in (8, 9)]
    batch = pack(rows, indices=[3, 4], share=True)
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    tensors = [moved.tokens_T, moved.positions_T, moved.select_S, moved.target_S, moved.weight_S, moved.sequence_S]
    assert all(x.is_meta for x in (*tensors, *moved.columns.values()))
    assert (moved.bounds, moved.parents, moved.leaves) == (batch.bounds, batch.parents, batch.leaves)


def test_a_processor_is_left_as_it_is() -> None:
    with repeatable(torch.device("cpu")):
        assert not torch.are_deterministic_algorithms_enabled()


def driver(*, cards: int, answers: int = 0) -> Any:
    """A driver of Nvidia's that answers as written in its reference: 0 for success, results through pointers."""

    def put(value: int) -> Callable[..., int]:
        def call(pointer: Any, *_: Any) -> int:
            pointer._obj.value = value
            return 0

        return call

    def name(buffer: Any, size: int, _: Any) -> int:
        assert size == len(buffer)
        buffer.value = b"NVIDIA A100"
        return 0

    def attribute(pointer: Any, which: int, _: Any) -> int:
        return put({75: 8, 76: 6}[which])(pointer)

    return SimpleNamespace(
        cuInit=lambda flags: answers,
        cuDeviceGetCount=put(cards),
        cuDeviceGet=put(0),
        cuDeviceGetName=name,
        cuDeviceTotalMem_v2=put(40 * 10**9),
        cuDeviceGetAttribute=attribute,
    )


def test_the_driver_tells_the_card() -> None:
    found = first_gpu(driver(cards=1))
    assert found == ("NVIDIA A100", 40 * 10**9, (8, 6))
    assert found.bf16


@pytest.mark.parametrize("given", [driver(cards=0), driver(cards=1, answers=100)], ids=["no card", "no answer"])
def test_a_driver_without_a_card_is_no_gpu(given: Any) -> None:
    assert first_gpu(given) is None
