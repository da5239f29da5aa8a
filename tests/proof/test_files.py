"""Resume, adapter and merge on small models; and that each planted fault is found and named."""

import json

import numpy as np
import pytest
import torch

from luthier.models import adapters
from luthier.models.peft_files import save_adapter
from luthier.models.policy import policy
from luthier.objectives import OBJECTIVES
from luthier.proof import gradients
from luthier.proof.files import Start, adapter, merge, resume
from luthier.recipe import Lora, Training
from luthier.training.checkpoint import save_checkpoint
from luthier.training.optim import adamw
from tests.chain import Steps
from tests.models.test_peft_methods import FAMILY, METHODS, PROMPTS, filled
from tests.models.test_peft_methods import adapter as chosen
from tests.proof.subjects import ADAPTERS, HEAD, READERS, TIGHT, WRITERS, adapted, document

IDS = [list(range(5, 30)), list(range(40, 52))]
TRAINING = Training(rate=1e-2)


def steps(count=4):
    rng = np.random.default_rng(0)
    return Steps([[[document(rng, n) for n in (9, 14, 5)], [document(rng, 11)]] for _ in range(count)])


def begin(tiny, family, wanted, dtype=torch.float32):
    def fresh():
        made = policy(tiny(family, dtype=dtype))
        adapters.attach(made.model, wanted, seed=0)
        return Start(made, adamw(adapters.trained(made.model), TRAINING, rate=1e-2))

    return fresh


def resumed(fresh, **more):
    return resume(fresh, steps(), objective=OBJECTIVES["supervised"], training=TRAINING, **more)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("wanted", [*ADAPTERS.values(), Lora(rank=3, dropout=0.3)], ids=[*ADAPTERS, "dropout"])
def test_going_on_gives_the_same_bits(tiny, family, wanted):
    proof = resumed(begin(tiny, family, wanted))
    assert proof.passed, proof
    assert (proof.largest, proof.bound) == (0.0, 0.0)


def test_a_bf16_base_goes_on_to_the_same_bits(tiny):
    assert resumed(begin(tiny, "llama", Lora(rank=3), torch.bfloat16)).passed


def test_a_checkpoint_without_moments_is_found(tiny):
    def forgetful(folder, parameters, optimizer, progress):
        return save_checkpoint(folder, parameters, torch.optim.SGD(parameters.values()), progress)

    proof = resumed(begin(tiny, "llama", Lora(rank=3)), save=forgetful)
    assert proof.passed is False
    assert proof.largest > 0
    assert "the checkpoint lacks something" in proof.detail


def test_a_start_that_is_drawn_anew_is_found(tiny):
    seeds = iter(range(3))

    def fresh():
        made = policy(tiny("llama"))
        adapters.attach(made.model, Lora(rank=3), seed=next(seeds))
        return Start(made, adamw(adapters.trained(made.model), TRAINING, rate=1e-2))

    assert resumed(fresh).passed is False


def saving(wanted, head=()):
    return lambda folder, made: save_adapter(folder, made.model, wanted, base="a base", head=head)


@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize("family", [*WRITERS, *READERS])
def test_peft_computes_what_we_compute(tiny, family, name):
    wanted, reader = ADAPTERS[name], family in READERS
    made = adapted(tiny, family, wanted)
    head = made.head.modules if reader else ()
    proof = adapter(
        made,
        IDS,
        base=lambda: tiny(family, dtype=torch.float64, head=HEAD if reader else None),
        save=saving(wanted, head),
    )
    assert proof.passed, proof
    assert proof.largest <= TIGHT


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("method", METHODS)
def test_peft_computes_what_we_compute_with_its_other_methods(tiny, method):
    family = FAMILY.get(method, "llama")
    proof = adapter(filled(tiny, method), IDS, base=lambda: tiny(family), save=saving(chosen(method)))
    assert proof.passed, proof


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("method", ["oft", "vera", *PROMPTS])
def test_gradients_hold_with_pefts_other_methods(tiny, method):
    rng = np.random.default_rng(0)
    rows = [document(rng, n) for n in (90, 140, 60)]
    for check in (gradients.packing, gradients.sharing, gradients.accumulation):
        proof = check(filled(tiny, method, dtype=torch.float64), rows, kind="supervised")
        assert proof.passed, proof


def test_a_folder_that_says_another_scale_is_found(tiny):
    wanted = ADAPTERS["lora"]

    def wrong(folder, made):
        saving(wanted)(folder, made)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 6}))

    proof = adapter(adapted(tiny, "llama", wanted), IDS, base=lambda: tiny("llama", dtype=torch.float64), save=wrong)
    assert proof.passed is False
    assert "PEFT computes something else" in proof.detail


def test_a_folder_that_peft_cannot_load_is_found(tiny):
    wanted = ADAPTERS["lora"]

    def wrong(folder, made):
        saving(wanted)(folder, made)
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["no_such_layer"]}))

    proof = adapter(adapted(tiny, "llama", wanted), IDS, base=lambda: tiny("llama", dtype=torch.float64), save=wrong)
    assert proof.passed is False
    assert "PEFT cannot load the saved folder" in proof.detail


@pytest.mark.parametrize("name", ["lora", "dora"])
@pytest.mark.parametrize("family", WRITERS)
def test_merged_weights_compute_what_base_and_adapter_compute(tiny, family, name):
    proof = merge(adapted(tiny, family, ADAPTERS[name]), IDS)
    assert proof.passed, proof
    assert proof.largest <= TIGHT


def test_a_merge_that_leaves_a_layer_out_is_found(tiny):
    def forgetful(model):
        path, layer = next(adapters.lora_layers(model))
        adapters.set_submodule(model, path, layer.base)
        adapters.merge(model)

    proof = merge(adapted(tiny, "llama", ADAPTERS["lora"]), IDS, merge=forgetful)
    assert proof.passed is False
    assert "merged weights, in float64, compute something else" in proof.detail
