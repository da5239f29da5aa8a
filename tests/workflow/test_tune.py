"""`tune` from a file of rows to a packaged model that other tools load, for every family and objective."""

import csv
import json
import math

import peft
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from luthier.data import tokens
from luthier.errors import DataError, InputError, NotFinite, RecipeError
from luthier.recipe.load import load
from luthier.runs.folder import RunFolder, read_json
from luthier.training.checkpoint import inspect, listed
from luthier.workflow.export import export
from luthier.workflow.tune import tune
from tests.chain import ROWS, conversations, events, labelled, losses, recipe, texts, write_rows

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
CASES = {
    "llama answers": ("llama", "supervised", {}),
    "llama answers in full": ("llama", "supervised", {"adapter": {"kind": "full"}}),
    "qwen2 answers": ("qwen2", "supervised", {}),
    "gemma3 answers": ("gemma3", "supervised", {}),
    "gpt2 answers": ("gpt2", "supervised", {}),
    "llama-untied answers, rsLoRA": ("llama-untied", "supervised", {"adapter": {"kind": "lora", "rslora": True}}),
    "llama text": ("llama", "text", {}),
    "gpt2 text in full": ("gpt2", "text", {"adapter": {"kind": "full"}}),
    "bert labels": ("bert", "classify", {}),
    "bert labels, LoRA": ("bert", "classify", {"adapter": {"kind": "lora", "rank": 4}}),
    "bert several labels": ("bert", "classify_multi", {}),
    "bert numbers": ("bert", "regress", {}),
    "modernbert labels": ("modernbert", "classify", {}),
    "modernbert labels, LoRA": ("modernbert", "classify", {"adapter": {"kind": "lora", "rank": 4}}),
    "modernbert several labels": ("modernbert", "classify_multi", {}),
    "modernbert numbers": ("modernbert", "regress", {}),
    "llama labels": ("llama", "classify", {}),
    "gpt2 labels": ("gpt2", "classify", {}),
}


@pytest.fixture(scope="module")
def tuned(saved_tiny, tmp_path_factory):
    """`tuned(case)`: the finished run of a case and its recipe, made once."""
    made = {}

    def make(case):
        if case not in made:
            family, objective, sections = CASES[case]
            place = tmp_path_factory.mktemp("tuned")
            data = write_rows(place / "rows.jsonl", ROWS[objective](40))
            wanted = recipe(saved_tiny(family), data, **sections)
            made[case] = tune(wanted, place / "run"), load(place / "run" / "recipe.yaml")
        return made[case]

    return make


ORDER = ["created", "derived", "finding", "prepared", "started", "step", "evaluated", "finished"]


@pytest.mark.parametrize("case", CASES)
def test_the_run_folder_holds_what_is_promised(tuned, case):
    run, resolved = tuned(case)
    for path in (
        run.asked,
        run.recipe,
        run.manifest,
        run.events,
        run.findings,
        run.derived,
        run.evaluation,
        run.predictions,
    ):
        assert path.stat().st_size > 0, path
    assert run.report.read_text().lstrip().startswith("<!")
    assert run.card.exists()
    for side in ("train", "validation", "test"):
        assert len(tokens.open_store(run.side(side))) > 0
    assert not list(run.root.rglob(".*")), "nothing half-written is left"
    assert resolved.objective.kind == CASES[case][1]
    assert not _left_out(resolved.model_dump())

    kinds = [e["event"] for e in events(run)]
    firsts = [kinds.index(kind) for kind in ORDER if kind in kinds]
    assert firsts == sorted(firsts)
    assert set(ORDER) - {"finding"} <= set(kinds)
    assert [e["step"] for e in events(run, "step")] == list(range(1, 7))
    times = [e["time"] for e in events(run)]
    assert times == sorted(times)
    assert all(math.isfinite(loss) for _, loss, _ in losses(run))


MAY_BE_NONE = {"max_steps", "plus", "limit", "revision", "sha256", "tokenizer", "template", "remote_code", "layers",
               "column", "system", "columns", "margin", "max_new_tokens", "off"}  # fmt: skip


def _left_out(tree, key=""):
    found = []
    for name, value in tree.items():
        if isinstance(value, dict) and name != "columns":
            found += _left_out(value, f"{key}.{name}")
        elif value is None and name not in MAY_BE_NONE:
            found.append(f"{key}.{name}")
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_result_has_a_verdict(tuned, case):
    run, resolved = tuned(case)
    evaluation = read_json(run.evaluation)
    assert evaluation["verdict"]["word"]
    assert evaluation["verdict"]["sentence"]
    assert evaluation["primary"] == resolved.evaluation.primary
    assert evaluation["items"] == len({e.row for e in _predictions(run)})
    assert {e.arm for e in _predictions(run)} == {"base", "tuned"}


class _Row:
    def __init__(self, values):
        self.__dict__ = values


def _predictions(run):
    return [_Row(json.loads(line)) for line in run.predictions.read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_the_best_checkpoint_is_what_is_packaged(tuned, case):
    run, _ = tuned(case)
    validations = events(run, "validation")
    best = min(validations, key=lambda e: e["loss"])["step"]
    assert events(run, "finished")[0]["best_step"] == best
    path = next(p for p in listed(run.checkpoints) if inspect(p).step == best)
    kept = load_file(path / "weights.safetensors")
    saved = {}
    for file in run.model.glob("*.safetensors"):
        saved |= {name.removeprefix("base_model.model."): value for name, value in load_file(file).items()}
    for name, value in kept.items():
        assert torch.equal(saved.get(name, saved.get(f"{name}.weight")), value), name


def plain(run, resolved):
    """The packaged model by plain transformers and PEFT."""
    objective = resolved.objective
    auto, more = AutoModelForCausalLM, {}
    if objective.kind in ("classify", "classify_multi", "regress"):
        auto, more = AutoModelForSequenceClassification, {"num_labels": len(getattr(objective, "labels", None) or [0])}
    if resolved.adapter.kind == "lora":
        base = auto.from_pretrained(resolved.model.source, dtype=torch.float32, **more)
        return peft.PeftModel.from_pretrained(base, run.model).eval()
    return auto.from_pretrained(run.model, dtype=torch.float32).eval()


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_and_peft_give_the_scores_that_were_reported(tuned, case):
    run, resolved = tuned(case)
    model = plain(run, resolved)
    reported = {e.row: e for e in _predictions(run) if e.arm == "tuned"}
    store = tokens.open_store(run.side("test"))
    kind = resolved.objective.kind
    sums = dict.fromkeys(reported, 0.0)
    for i in range(len(store)):
        sequence = store.sequence(i)
        ids = torch.from_numpy(sequence.tokens_T.astype("int64"))[None]
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()
        item = reported[int(store.rows[i])]
        if kind in ("supervised", "text"):
            logprobs = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            sums[item.row] -= float((logprobs * torch.from_numpy(sequence.weights_T[1:].copy())).sum())
        elif kind == "classify":
            assert item.probabilities == pytest.approx(logits.softmax(-1).tolist(), abs=1e-5)
            assert item.answer == resolved.objective.labels[int(logits.argmax())]
        elif kind == "classify_multi":
            assert item.probabilities == pytest.approx(logits.sigmoid().tolist(), abs=1e-5)
        else:
            assert item.answer == pytest.approx(float(logits[0]), abs=1e-5)
    if kind in ("supervised", "text"):
        assert sums == pytest.approx({row: e.loss_sum for row, e in reported.items()}, rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_the_packaged_tokenizer_is_whole(tuned, tiny_tokenizer, case):
    run, resolved = tuned(case)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(run.model)
    assert tokenizer.get_vocab() == tiny_tokenizer.get_vocab()
    if resolved.objective.kind == "supervised":
        settings = read_json(run.model / "generation_config.json")
        assert tiny_tokenizer.eos_token_id in settings["eos_token_id"]
    if resolved.objective.kind in ("classify", "classify_multi") and resolved.adapter.kind == "full":
        config = read_json(run.model / "config.json")
        assert list(config["id2label"].values()) == resolved.objective.labels


@pytest.mark.parametrize(
    "case", ["llama answers", "gpt2 answers", "llama labels", "bert labels, LoRA", "llama answers in full"]
)
def test_a_merged_export_is_the_tuned_model(tuned, tmp_path, case):
    run, resolved = tuned(case)
    facts = export(run.root, to="merged", out=tmp_path / "merged")
    assert facts["reloaded"]["largest"] < 1e-5
    auto = AutoModelForCausalLM if resolved.objective.kind == "supervised" else AutoModelForSequenceClassification
    merged = auto.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    ids = torch.from_numpy(tokens.open_store(run.side("test")).sequence(0).tokens_T.astype("int64"))[None]
    with torch.no_grad():
        expected = plain(run, resolved)(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(
            merged(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, expected, rtol=1e-4, atol=1e-5
        )


# What a result depends on


def adapter_bytes(run):
    return (run.model / "adapter_model.safetensors").read_bytes()


def test_jsonl_csv_and_parquet_of_the_same_rows_give_the_same_bytes(saved_tiny, tmp_path):
    rows = [
        {"prompt": r["messages"][0]["content"], "completion": r["messages"][1]["content"]} for r in conversations(40)
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "completion"])
        writer.writeheader()
        writer.writerows(rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    runs = [
        tune(recipe(saved_tiny("llama"), tmp_path / f"rows.{ending}"), tmp_path / ending)
        for ending in ("jsonl", "csv", "parquet")
    ]
    assert losses(runs[0]) == losses(runs[1]) == losses(runs[2])
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1]) == adapter_bytes(runs[2])


def test_microbatches_change_nothing_beyond_rounding(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    runs = [
        tune(
            recipe(saved_tiny("llama"), data, training={"microbatch_tokens": budget, "rate": 1e-3}),
            tmp_path / str(budget),
        )
        for budget in (1, 100, 4096)
    ]
    for run in runs[1:]:
        assert [loss for _, loss, _ in losses(run)] == pytest.approx([loss for _, loss, _ in losses(runs[0])], rel=1e-5)
        first, other = (load_file(r.model / "adapter_model.safetensors") for r in (runs[0], run))
        for name, value in other.items():
            torch.testing.assert_close(value, first[name], rtol=0, atol=1e-4)


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_does_not(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    runs = [
        tune(recipe(saved_tiny("llama"), data, training={"seed": seed}), tmp_path / name)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1]) != adapter_bytes(runs[2])


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_rows_begin_with_alike_is_computed_once_unless_there_is_dropout(saved_tiny, tmp_path, dropout):
    rows = conversations(40)
    for row in rows:
        row["messages"].insert(0, {"role": "system", "content": "Answer with the name of the wood, and nothing else."})
    data = write_rows(tmp_path / "rows.jsonl", rows)
    adapter = {"kind": "lora", "rank": 4, "dropout": dropout}
    run = tune(recipe(saved_tiny("llama"), data, adapter=adapter, evaluation={"enabled": False}), tmp_path / "run")
    steps, (end,) = events(run, "step"), events(run, "finished")
    assert (end["tokens"], end["computed"]) == tuple(sum(s[key] for s in steps) for key in ("tokens", "computed"))
    said = any("draws its own dropout" in note for note in events(run, "started")[0]["notes"])
    if dropout:
        assert end["computed"] == end["tokens"]
        assert said
    else:
        assert end["computed"] < 0.7 * end["tokens"]
        assert not said
    # Speed is in tokens of the rows.
    assert end["tokens_per_second"] == pytest.approx(end["tokens"] / sum(s["seconds"] for s in steps), rel=0.01)


# Stopping and validating


def test_training_stops_early_and_keeps_the_best(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    run = tune(
        recipe(saved_tiny("llama"), data, training={"max_steps": 60, "rate": 0.5, "validate_every": 1, "patience": 2}),
        tmp_path / "run",
    )
    (stop,) = events(run, "stopped")
    validations = events(run, "validation")
    assert [e["best"] for e in validations[-2:]] == [False, False]
    assert stop["step"] == validations[-1]["step"] == len(events(run, "step")) < 60
    assert events(run, "finished")[0]["best_step"] == stop["step"] - 2


def test_without_patience_training_goes_to_its_end(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    wanted = recipe(
        saved_tiny("llama"), data, training={"max_steps": 12, "rate": 0.5, "validate_every": 1, "patience": None}
    )
    run = tune(wanted, tmp_path / "run")
    assert len(events(run, "step")) == 12
    assert not events(run, "stopped")


def test_without_validation_rows_the_last_step_is_kept(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(30))
    split = {"train": [str(data)], "split": {"validation": 0.0, "test": 0.2}}
    run = tune(recipe(saved_tiny("llama"), data, data=split), tmp_path / "run")
    assert not events(run, "validation")
    assert events(run, "finished")[0]["best_step"] == 6
    assert run.evaluation.exists()


def test_without_test_rows_it_is_said_that_nothing_can_be_said(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(30))
    split = {"train": [str(data)], "split": {"validation": 0.2, "test": 0.0}}
    run = tune(recipe(saved_tiny("llama"), data, data=split), tmp_path / "run")
    assert not run.evaluation.exists()
    assert [e["rule"] for e in events(run, "finding") if e["rule"] == "no_test_rows"] == ["no_test_rows"]
    assert run.report.exists()


def test_a_run_that_is_not_to_be_evaluated_is_not(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    run = tune(recipe(saved_tiny("llama"), data, evaluation={"enabled": False}), tmp_path / "run")
    assert not run.evaluation.exists()
    assert run.model.exists()


def test_a_rate_far_too_high_ends_with_a_number_that_is_none_and_a_whole_folder(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(40))
    wanted = recipe(saved_tiny("llama"), data, adapter={"kind": "full"}, training={"rate": 1e30, "max_steps": 20})
    with pytest.raises(NotFinite):
        tune(wanted, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    assert listed(run.checkpoints)
    assert not run.model.exists()


# Data


def test_rows_of_a_test_file_that_are_also_trained_on_stop_the_run(saved_tiny, tmp_path):
    rows = conversations(40)
    data = write_rows(tmp_path / "rows.jsonl", rows)
    test = write_rows(tmp_path / "test.jsonl", rows[:3] + conversations(50)[45:])
    given = {"test": [str(test)], "split": {"validation": 0.15, "test": 0.0}}
    with pytest.raises(DataError, match=r"also|leak") as caught:
        tune(recipe(saved_tiny("llama"), data, data=given), tmp_path / "refused")
    assert f"{data}:1" in str(caught.value) or f"{test}:1" in str(caught.value)

    run = tune(recipe(saved_tiny("llama"), data, data={**given, "on_leak": "drop"}), tmp_path / "run")
    facts = {f["file"]: f for f in read_json(run.manifest)["data"]}
    assert facts[str(data)]["dropped"] == 3
    assert (facts[str(data)]["side"], facts[str(test)]["side"]) == ("train", "test")
    assert read_json(run.evaluation)["items"] == 8
    assert any(f["rule"] == "leak" and f["count"] == 3 for f in read_json(run.findings))


def test_a_side_whose_every_row_is_too_long_is_no_side(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(30))
    long = {"messages": [{"role": "user", "content": "Which wood? " * 40}, {"role": "assistant", "content": "spruce"}]}
    validation = write_rows(tmp_path / "long.jsonl", [long])
    wanted = recipe(
        saved_tiny("llama"), data, data={"validation": [str(validation)], "split": {"validation": 0.0, "test": 0.2}},
        training={"max_length": 64, "on_over_long": "drop", "max_steps": 3},
    )  # fmt: skip
    run = tune(wanted, tmp_path / "run")
    assert not events(run, "validation")
    assert any(f["rule"] == "over_long" for f in read_json(run.findings))


def test_nothing_is_overwritten(tuned):
    run, resolved = tuned("llama answers")
    with pytest.raises(InputError, match="not empty"):
        tune(resolved, run.root)


def test_an_encoder_is_not_asked_to_write(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", conversations(30))
    with pytest.raises(RecipeError, match="cannot write"):
        tune(recipe(saved_tiny("bert"), data), tmp_path / "run")


def test_a_target_that_does_not_exist_is_named(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", labelled(30))
    with pytest.raises(RecipeError, match=r"adapter\.targets"):
        tune(recipe(saved_tiny("bert"), data, adapter={"kind": "lora", "targets": ["q_proj"]}), tmp_path / "run")


# Continued pre-training, then answers: a small GPT-2 made here, not a published one.


def test_a_small_gpt2_is_pre_trained_on_text_and_then_taught_to_answer(saved_tiny, tmp_path):
    data = write_rows(tmp_path / "text.jsonl", texts(60))
    training = {"max_steps": 40, "validate_every": 10}
    first = tune(recipe(saved_tiny("gpt2"), data, adapter={"kind": "full"}, training=training), tmp_path / "pretrained")
    evaluation = read_json(first.evaluation)
    assert evaluation["primary"] == "loss"
    assert evaluation["verdict"]["word"] == "better"
    assert losses(first)[-1][1] < losses(first)[0][1] - 1

    rows = write_rows(tmp_path / "rows.jsonl", conversations(40))
    second = tune(recipe(first.model, rows), tmp_path / "taught")
    assert read_json(second.evaluation)["verdict"]
    assert read_json(second.manifest)["base"]["source"] == str(first.model)
