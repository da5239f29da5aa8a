"""Log-probabilities of the model without its adapter: those of a fresh pass to the bit, found again by their hash."""

import numpy as np
import pytest
import torch

from luthier.data.pack import pack
from luthier.data.source import stream
from luthier.models import adapters
from luthier.models.policy import policy
from luthier.recipe import Lora
from luthier.training.reference import reference_logprobs
from tests.training.test_frozen import store_of


def subject_of(tiny, family, dtype):
    model = tiny(family, dtype=dtype)
    adapters.attach(model, Lora(rank=3), seed=0)
    subject = policy(model)
    subject.dtype = dtype
    return subject


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_was_kept_is_what_a_fresh_pass_gives_to_the_bit(tiny, tmp_path, family, dtype):
    store, past = store_of(tmp_path / "train"), tmp_path / "past"
    asked = [0, 3, 4, 7, 11]
    for name in ("first", "second"):
        # The second model is trained, and only its base counts.
        subject = subject_of(tiny, family, dtype)
        if name == "second":
            for _, layer in adapters.lora_layers(subject.model):
                torch.nn.init.normal_(layer.lora_B)
        kept = reference_logprobs(
            subject, store, asked, budget=60, file=tmp_path / f"{name}.npy", past=past, key="the same"
        )
    assert [path.name for path in tmp_path.glob("*.npy")] == ["first.npy"]
    with subject.inference(base=True):
        for batch in stream(store, np.asarray(asked), 60):
            assert torch.equal(kept.of(batch), subject.listen(batch).logprobs_S)


def test_before_the_first_step_policy_and_reference_agree_whatever_the_packing(tiny, tmp_path):
    store = store_of(tmp_path / "train", alike=20)
    subject = subject_of(tiny, "llama", torch.float64)
    reference = reference_logprobs(subject, store, range(len(store)), budget=70, file=tmp_path / "unused.npy")
    assert not (tmp_path / "unused.npy").exists()
    documents = [store.sequence(i) for i in (5, 2, 9)]
    with subject.inference():
        for share in (False, True):
            batch = pack(documents, indices=[5, 2, 9], share=share)
            torch.testing.assert_close(reference.of(batch), subject.listen(batch).logprobs_S, rtol=1e-12, atol=1e-12)


def test_another_key_and_a_changed_file_are_computed_anew(tiny, tmp_path):
    store, past = store_of(tmp_path / "train"), tmp_path / "past"
    subject = subject_of(tiny, "llama", torch.float32)

    def kept(name, key):
        return reference_logprobs(
            subject, store, range(4), budget=60, file=tmp_path / f"{name}.npy", past=past, key=key
        ).logprobs

    first = kept("a", "one")
    np.save(tmp_path / "a.npy", first + 1)
    assert np.array_equal(kept("b", "one"), first)
    assert np.array_equal(kept("c", "two"), first)
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["a.npy", "b.npy", "c.npy"]
