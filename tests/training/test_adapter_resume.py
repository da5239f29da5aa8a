"""Every way to adapt a model goes on from a checkpoint as if it had not been stopped, and through whole runs."""

import pytest
import torch

from luthier.errors import ModelError, RecipeError
from luthier.export.merge import outputs
from luthier.models import adapters
from luthier.models.policy import policy
from luthier.objectives import OBJECTIVES
from luthier.recipe import Lora, Training
from luthier.recipe.load import dump
from luthier.runs.folder import RunFolder
from luthier.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from luthier.training.loop import train
from luthier.training.optim import adamw
from luthier.workflow.export import export
from luthier.workflow.tune import tune
from tests.chain import Steps, conversations, events, recipe, sequence, write_rows
from tests.models.test_peft_methods import METHODS, adapter
from tests.training.test_resume import assert_as_undisturbed, do, finish, result

__all__ = ["do"]

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

OURS = {
    "dora": (Lora(rank=4, dora=True, dropout=0.3), "none"),
    "pissa, LoRA+": (Lora(rank=4, init="pissa", plus=8), "none"),
    "pissa by iteration": (Lora(rank=4, init="pissa_niter_16"), "none"),
    "olora": (Lora(rank=4, init="olora"), "none"),
    "orthogonal": (Lora(rank=4, init="orthogonal"), "none"),
    "int8": (Lora(rank=4), "int8"),
    "nf4, loftq, dora": (Lora(rank=4, init="loftq", loftq_iterations=2, dora=True), "nf4"),
    "nf4, pissa": (Lora(rank=4, init="pissa"), "nf4"),
}
CASES = {**OURS, **dict.fromkeys(METHODS, (None, "none"))}
ROWS = Steps([[[sequence([5 + i, 17, 300 + i, 42, 99], [0, 0, 1, 1, 1])]] for i in range(4)])
TRAINING = Training(rate=1e-2, warmup=0)


def start(tiny, case):
    chosen, quantise = CASES[case]
    model = tiny("llama-untied" if case == "trainable_tokens" else "llama")
    subject = policy(model)
    adapters.attach(model, chosen or adapter(case), seed=0, quantise=quantise)
    parameters = adapters.trained(model)
    return subject, parameters, adamw(parameters, TRAINING, rate=1e-2, plus=getattr(chosen, "plus", None))


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_holds_all_that_the_next_step_depends_on(tiny, tmp_path, case):
    subject, parameters, optimizer = start(tiny, case)
    losses = []
    for report in train(subject, ROWS, OBJECTIVES["supervised"], optimizer, TRAINING):
        losses.append(report.loss)
        if report.step == 2:
            path = save_checkpoint(tmp_path, parameters, optimizer, Progress(step=2))
    assert losses[-1] != losses[0]
    # Whatever was drawn before the run goes on is not part of it.
    torch.rand(5)
    other, again, fresh = start(tiny, case)
    assert load_checkpoint(path, again, fresh).step == 2
    reports = train(other, ROWS, OBJECTIVES["supervised"], fresh, TRAINING, start=2)
    assert [r.loss for r in reports] == losses[2:]
    assert set(again) == set(parameters)
    for name, parameter in parameters.items():
        assert torch.equal(again[name], parameter), name


ON = ["q_proj", "v_proj", "down_proj"]
RUNS = {
    "dora, pissa, LoRA+": {"adapter": {"kind": "lora", "rank": 4, "init": "pissa", "dora": True, "plus": 4}},
    "nf4": {"adapter": {"kind": "lora", "rank": 4}, "model": {"quantise": "nf4"}},
    "loftq": {"adapter": {"kind": "lora", "rank": 4, "init": "loftq"}, "model": {"quantise": "nf4"}},
    "vera": {"adapter": {"kind": "peft", "method": "vera", "settings": {"target_modules": ON}}},
    "prefix": {"adapter": {"kind": "peft", "method": "prefix_tuning", "settings": {"num_virtual_tokens": 4}}},
    "prompt": {"adapter": {"kind": "peft", "method": "p_tuning", "settings": {"num_virtual_tokens": 4}}},
}


def wanted(saved_tiny, place, sections):
    data = write_rows(place / "rows.jsonl", conversations(24))
    return recipe(
        saved_tiny("llama"),
        data,
        training={"checkpoint_every": 2, "validate_every": 3, "batch_examples": 3},
        **sections,
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", RUNS)
def test_a_killed_run_gives_the_bytes_of_one_that_was_not(do, saved_tiny, tmp_path, case):
    path = tmp_path / "recipe.yaml"
    path.write_text(dump(wanted(saved_tiny, tmp_path, RUNS[case])))
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    ended = do("tune", tmp_path / "whole" / "run", recipe=str(path))
    assert ended.code == 0, ended.out
    ended = do("tune", tmp_path / "cut" / "run", recipe=str(path), at={"event": "step", "step": 5}, signal="SIGKILL")
    assert ended.signal == 9, ended.out
    finish(do, tmp_path / "cut" / "run", str(path))
    assert_as_undisturbed(tmp_path / "cut" / "run", result(tmp_path / "whole" / "run"))


@pytest.mark.parametrize("case", ["dora, pissa, LoRA+", "nf4", "vera"])
def test_a_run_says_what_it_chose_and_its_export_is_merged(saved_tiny, tmp_path, case):
    run = tune(wanted(saved_tiny, tmp_path, RUNS[case]), tmp_path / "run")
    (started,) = events(run, "started")
    expected = {"dora, pissa, LoRA+": "plain LoRA of rank 8", "nf4": "in nf4", "vera": "PEFT's own modules"}[case]
    assert any(expected in note for note in started["notes"])
    words = {"dora, pissa, LoRA+": "DoRA of rank 4", "nf4": "the base was in nf4", "vera": "vera by PEFT"}[case]
    assert words in run.card.read_text()
    facts = export(run.root, to="merged", out=tmp_path / "merged")
    assert facts["merge"]["largest"] < 1e-4
    assert facts["reloaded"]["largest"] < 1e-5
    assert RunFolder(run.root).evaluation.exists()


def test_a_prompt_is_exported_as_an_adapter_and_not_merged(saved_tiny, tmp_path):
    run = tune(wanted(saved_tiny, tmp_path, RUNS["prefix"]), tmp_path / "run")
    with pytest.raises(ModelError, match="cannot be merged"):
        export(run.root, to="merged", out=tmp_path / "merged")
    assert "adapter_config.json" in export(run.root, to="adapter", out=tmp_path / "adapter")["files"]


REFUSED = {
    "trains its weights": {"adapter": {"kind": "full"}, "model": {"quantise": "nf4"}},
    "cannot stand on": {"adapter": {"kind": "peft", "method": "vera"}, "model": {"quantise": "int8"}},
    "makes up for a quantised base": {"adapter": {"kind": "lora", "init": "loftq"}},
    "has no effect with": {"adapter": {"kind": "lora", "loftq_iterations": 3}},
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_is_read(why):
    with pytest.raises(RecipeError) as caught:
        recipe("a model", "rows.jsonl", **REFUSED[why])
    assert why in str(caught.value)


def test_outputs_of_a_quantised_base_are_near_to_those_of_the_base(tiny):
    base, other = policy(tiny("llama")), policy(tiny("llama"))
    adapters.attach(other.model, Lora(rank=2), seed=0, quantise="int8")
    gap = (outputs(base, [[5, 17, 300, 42]]) - outputs(other, [[5, 17, 300, 42]])).abs().max()
    assert 0 < gap < 0.1
