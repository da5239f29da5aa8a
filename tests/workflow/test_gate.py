"""The data gate before training: what it stops, what may be waived, and what of it stands in the run."""

import copy
import os
import shutil
import signal
import statistics

import pytest
import torch
from pyarrow import parquet
from transformers import AutoModelForCausalLM

from luthier.data import tokens
from luthier.errors import DataError, PolicyError, RecipeError
from luthier.gate.policy import load_policy
from luthier.governance.card import write_card
from luthier.recipe.load import dump
from luthier.runs.folder import RunFolder, read_json
from luthier.runs.record import read_record
from luthier.runs.wording import gate_sentence
from luthier.workflow.prepare import check
from luthier.workflow.tune import tune
from tests.chain import conversations, events, labelled, recipe, write_rows
from tests.training.test_resume import do

__all__ = ["do"]

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning:peft")]
KEY = "ghp_Zx8Qw1Er5Ty7Ui9Op2As4Df6Gh3Jk0Lm5Nb7V"
REASON = "the key was revoked long ago"


@pytest.fixture
def rows(tmp_path):
    """Forty rows, of which the eighth holds a key."""
    made = conversations(40)
    made[7]["messages"][1]["content"] = f"Use the token {KEY} for it."
    return write_rows(tmp_path / "rows.jsonl", made)


def gated(model, rows, **gate):
    return recipe(model, rows, data={"gate": gate} if gate else {})


def test_a_blocking_rule_ends_the_run_before_a_step_with_rows_and_remedy(saved_tiny, rows, tmp_path):
    with pytest.raises(DataError) as error:
        tune(gated(saved_tiny("llama"), rows), tmp_path / "run")
    said = str(error.value)
    assert "secret" in said
    assert f"{rows}:8" in said
    assert "data.gate.waive" in said
    assert KEY not in said
    assert not (tmp_path / "run").exists()


def test_check_says_the_same_and_is_not_ready(saved_tiny, rows):
    checked = check(gated(saved_tiny("llama"), rows))
    assert not checked.ok
    assert [f.examples for f in checked.findings if f.rule == "secret"] == [(f"{rows}:8",)]


def test_special_tokens_of_the_models_own_tokenizer_are_looked_for(saved_tiny, tiny_tokenizer, tmp_path):
    made, own = conversations(40), tmp_path / "own"
    shutil.copytree(saved_tiny("llama"), own)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    # Two that are no marks: a plain word, and one that is too short.
    tokenizer.add_special_tokens({"additional_special_tokens": ["◀stop▶", "word", "ok"]})
    tokenizer.save_pretrained(own)
    run = tune(gated(own, write_rows(tmp_path / "rows.jsonl", made)), tmp_path / "run")
    kept = load_policy(str(run.gate / "policy.yaml"))
    assert set(kept.control_tokens) == {"◀stop▶", "<|im_start|>", "<|im_end|>", "<|endoftext|>"}
    made[3]["messages"][0]["content"] = "Is it ◀stop▶ now?"
    made[5]["messages"][0]["content"] = "Is it ok in a word?"
    rows = write_rows(tmp_path / "marked.jsonl", made)
    assert check(gated(saved_tiny("llama"), rows)).ok
    assert [f.examples for f in check(gated(own, rows)).findings if f.rule == "control_token"] == [(f"{rows}:4",)]
    with pytest.raises(DataError, match="control_token"):
        tune(gated(own, rows), tmp_path / "other")


def test_a_waiver_lets_it_pass_and_is_recorded(saved_tiny, rows, tmp_path):
    wanted = gated(saved_tiny("llama"), rows, waive=[{"rule": "secret", "reason": REASON}])
    run = tune(wanted, tmp_path / "run")
    record = read_record(run)
    assert REASON in gate_sentence(record)
    assert any(f["rule"] == "secret" and REASON in f["message"] for f in record.findings)
    assert events(run, "step")
    write_card(run)
    assert REASON in run.card.read_text(encoding="utf-8")
    page = run.report.read_text(encoding="utf-8") + (run.gate / "report.html").read_text(encoding="utf-8")
    assert REASON in page
    assert KEY not in page


def test_the_gate_can_be_off_with_a_reason(saved_tiny, rows, tmp_path):
    run = tune(gated(saved_tiny("llama"), rows, off="audited by hand last week"), tmp_path / "run")
    assert not run.gate.exists()
    assert "audited by hand last week" in gate_sentence(read_record(run))
    assert [f["rule"] for f in read_json(run.findings) if f["rule"] == "gate_off"] == ["gate_off"]


def test_it_looks_at_the_sides_of_the_run_itself(saved_tiny, tmp_path):
    made = conversations(40)
    rows = write_rows(tmp_path / "rows.jsonl", made)
    run = tune(gated(saved_tiny("llama"), rows), tmp_path / "run")
    prepared = {event["side"]: event["rows"] for event in events(run, "prepared")}
    assert read_json(run.gate / "report.json")["sides"] == prepared


def test_an_unknown_rule_or_policy_is_refused_before_training(saved_tiny, rows, tmp_path):
    with pytest.raises(PolicyError, match="did you mean"):
        tune(gated(saved_tiny("llama"), rows, policy="suport"), tmp_path / "run")
    with pytest.raises(PolicyError, match="secret"):
        tune(gated(saved_tiny("llama"), rows, waive=[{"rule": "secrets", "reason": REASON}]), tmp_path / "run")


def naive_losses(model, run):
    """Line of the file -> mean loss of its supervised tokens, each row alone, by transformers."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = {}
    for side in ("train", "validation", "test"):
        store = tokens.open_store(run.side(side))
        for i in range(len(store)):
            row = store.sequence(i)
            with torch.no_grad():
                logits = network(torch.tensor(row.tokens_T[None], dtype=torch.long)).logits[0, :-1].double()
            target, weight = (torch.tensor(x[1:]) for x in (row.tokens_T.astype("int64"), row.weights_T))
            losses = -logits.log_softmax(-1).gather(1, target[:, None])[:, 0]
            found[int(store.rows[i]) + 1] = float((losses * weight).sum() / weight.sum())
    return found


def test_rows_that_surprise_the_base_are_named_the_hardest_first(saved_tiny, tmp_path):
    rows, policy = write_rows(tmp_path / "rows.jsonl", conversations(40)), tmp_path / "policy.yaml"
    policy.write_text("rules: {hard_row: {z: 0.7}, known_row: {z: 0.7}}")
    model = saved_tiny("llama")
    run = tune(gated(model, rows, policy=str(policy), losses=True), tmp_path / "run")
    losses = naive_losses(model, run)
    middle = statistics.median(losses.values())
    hits = parquet.read_table(run.gate / "findings.parquet").to_pylist()
    for rule, side in (("hard_row", 1), ("known_row", -1)):
        named = {hit["line"]: hit["seen"] for hit in hits if hit["rule"] == rule}
        wanted = sorted(losses, key=lambda line: -side * losses[line])[: len(named)]
        assert 2 <= len(named) < 20
        assert set(named) == set(wanted)
        for line, seen in named.items():
            assert f"mean loss {losses[line]:.2f} where {middle:.2f} is usual" in seen


def test_check_leaves_the_bases_losses_out_and_labels_have_none(saved_tiny, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", conversations(40))
    assert check(gated(saved_tiny("llama"), rows, losses=True)).ok
    labels = write_rows(tmp_path / "labels.jsonl", labelled(40))
    with pytest.raises(RecipeError, match="no loss on labels"):
        tune(gated(saved_tiny("bert"), labels, losses=True), tmp_path / "run")


def test_the_same_rows_under_the_same_policy_are_looked_at_once(saved_tiny, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", conversations(40))
    model, past = saved_tiny("llama"), tmp_path / "past"
    runs = [tune(gated(model, rows), tmp_path / name, past=past) for name in ("one", "two")]
    work = [read_json(run.gate / "report.json")["work"] for run in runs]
    assert work[0] == work[1]
    other = tune(gated(model, rows, policy="support"), tmp_path / "three", past=past)
    assert read_json(other.gate / "report.json")["policy"] == "support"


KILLED = {
    "the store is made": {"kill_match": r"os\.mkdir /gate/\.work/spill"},
    "the set is looked at": {"at": {"event": "progress", "what": "looking at noise"}, "signal": "SIGKILL"},
    "hits": {"kill_match": r"os\.rename /gate/\.work/findings"},
    "the report": {"kill_match": r"os\.rename /gate/\.report\.json"},
    "the store is removed": {"kill_match": r"os\.rmdir /gate/\.work"},
    "the page": {"kill_match": r"os\.rename /gate/\.report\.html"},
}
"""A name for each moment within the gate -> how the process is killed there."""


def found(run):
    """What the gate left, without its time and memory."""
    report = read_json(run.gate / "report.json")
    del report["work"]
    hits = parquet.read_table(run.gate / "findings.parquet").to_pylist()
    said = [{k: v for k, v in event.items() if k != "time"} for event in events(run, "finding")]
    return report, hits, said, read_json(run.findings), sorted(path.name for path in run.gate.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="killed processes are made with fork")
def test_a_run_that_is_killed_within_the_gate_finds_the_same_when_it_goes_on(do, saved_tiny, tmp_path):
    made = conversations(40)
    made[5]["messages"][0]["content"] = "Which wood\u200b for it, and which caf\u00c3\u00a9?"
    rows, path = write_rows(tmp_path / "rows.jsonl", made), tmp_path / "recipe.yaml"
    short = {"training": {"max_steps": 1}, "evaluation": {"enabled": False}}
    path.write_text(dump(recipe(saved_tiny("llama"), rows, **short)))
    assert do("tune", tmp_path / "undisturbed", recipe=str(path)).code == 0
    expected = found(RunFolder(tmp_path / "undisturbed"))
    assert {hit["rule"] for hit in expected[1]} >= {"mojibake", "zero_width"}
    for moment, how in KILLED.items():
        run = RunFolder(tmp_path / moment)
        killed = do("tune", run.root, recipe=str(path), **how)
        assert killed.signal == signal.SIGKILL, (moment, killed.out)
        assert not run.manifest.exists()
        again = do("tune", run.root, recipe=str(path))
        assert (again.code, "luthier resume" in again.out) == (2, True), moment
        resumed = do("resume", run.root)
        assert resumed.code == 0, (moment, resumed.out)
        assert found(run) == expected, moment
        assert not list(run.root.rglob(".*")), moment
