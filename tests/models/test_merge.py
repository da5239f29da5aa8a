"""Base and adapter against the merged model, through files that plain transformers loads."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.errors import ModelError
from luthier.export.merge import merge
from luthier.models import adapters
from luthier.models.policy import policy
from luthier.recipe import Lora

FAMILIES = ["llama", "llama-untied", "qwen2", "gemma3", "gpt2"]
DOCUMENTS = [list(range(5, 30)), list(range(40, 52))]


def adapted(tiny, family, *, rslora=False, dtype=torch.float32):
    model = tiny(family, dtype=dtype).eval()
    adapters.attach(model, Lora(rank=4, alpha=9, rslora=rslora), seed=1)
    generator = torch.Generator().manual_seed(2)
    for _, layer in adapters.lora_layers(model):
        layer.lora_B.data.normal_(std=0.2, generator=generator)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rslora", [False, True])
def test_a_merged_folder_gives_the_adapters_logits_in_plain_transformers(tiny, tmp_path, family, rslora):
    model = adapted(tiny, family, rslora=rslora)
    subject = policy(model)
    with subject.inference():
        before = subject.next_logits(_states(subject, DOCUMENTS[0]))
        base = tiny(family)
    found = merge(subject, DOCUMENTS)
    assert found.largest < 1e-4
    assert found.same_choice == 1
    assert not list(adapters.lora_layers(model))
    model.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        after = plain(input_ids=torch.tensor([DOCUMENTS[0]])).logits[0]
        untouched = base(input_ids=torch.tensor([DOCUMENTS[0]])).logits[0]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(untouched, before, atol=1e-3), "the adapter changes something"


def _states(subject, ids):
    from luthier.models.attention import Layout

    return subject.hidden(torch.tensor(ids), torch.arange(len(ids)), Layout(bounds=(0, len(ids))))


def test_a_merge_in_bf16_stays_within_its_stated_bound(tiny):
    found = merge(policy(adapted(tiny, "llama", dtype=torch.bfloat16)), DOCUMENTS)
    assert 0 < found.largest < 1.0


def test_a_wrong_merge_is_refused(tiny):
    model = adapted(tiny, "llama")
    layer = next(layer for _, layer in adapters.lora_layers(model))
    right = layer.update
    layer.update = lambda: 3 * right()
    with pytest.raises(ModelError, match="does not compute what base and adapter compute"):
        merge(policy(model), DOCUMENTS)
