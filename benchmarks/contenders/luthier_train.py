"""Luthier's training loop on a prepared token store, with the settings that `luthier tune` would use.

options.share      documents that begin alike share the computation of their common beginning
options.precision  of a classifier's computation; its weights are float32
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.common import Job, Row, peak_bytes, read_job, say


def recipe_of(job: Job) -> Any:
    """The recipe of the job, with nothing left to derive: microbatches are as large as `luthier tune` makes them."""
    from luthier.recipe.load import build
    from luthier.workflow.forecast import USUAL_TOKENS

    lora = job.kind == "lora"
    labels = None if lora else labels_of(job.model)
    return build(
        {
            "model": {"source": job.model, "precision": job.options.get("precision", "bf16" if lora else "fp32")},
            "data": {"train": [job.rows]},
            "objective": {"kind": "supervised"} if lora else {"kind": "classify", "labels": labels},
            "adapter": {"kind": "lora", "rank": job.rank, "alpha": job.alpha} if lora else {"kind": "full"},
            "training": {
                "batch_examples": len(job.steps[0]),
                "max_steps": len(job.steps),
                "rate": job.rate,
                "schedule": "constant",
                "warmup": 0.0,
                "clip": job.clip,
                "microbatch_tokens": max(USUAL_TOKENS, *(len(row.tokens) for row in job.load_rows())),
                "recompute": False,
                "threads": job.threads,
                "device": job.device,
            },
        },
        where="benchmark",
    )


def labels_of(model: str) -> list[str]:
    names = json.loads((Path(model) / "config.json").read_text())["id2label"]
    return [names[str(i)] for i in range(len(names))]


def sequence_of(n: int, row: Row) -> Any:
    from luthier.types import Sequence

    return Sequence(
        id=str(n),
        tokens_T=np.asarray(row.tokens, dtype=np.int32),
        weights_T=np.asarray(row.weights, dtype=np.float32),
        label=() if row.label is None else (float(row.label),),
    )


def source_of(job: Job, recipe: Any, folder: Path) -> Any:
    """An epoch source whose own order is the job's, so that the examples of each step are those of all contenders."""
    from luthier.data import tokens
    from luthier.data.source import EpochSource

    rows = job.load_rows()
    wanted = [i for step in job.steps for i in step]
    order = np.random.default_rng([recipe.training.seed, 0]).permutation(len(wanted))
    placed = {int(place): rows[i] for place, i in zip(order, wanted, strict=True)}
    tokens.write(folder / "train", ((n, sequence_of(n, placed[n])) for n in range(len(wanted))))
    store = tokens.open_store(folder / "train")
    training = recipe.training
    source = EpochSource(
        store,
        batch_examples=training.batch_examples,
        microbatch_tokens=training.budget,
        epochs=1,
        seed=training.seed,
        share=job.options.get("share", False),
    )
    for n, step in enumerate(job.steps):
        got = [store.sequence(int(i)).tokens_T.tolist() for i in source.examples(n)]
        assert got == [rows[i].tokens for i in step], "the source has another order than the job"
    return source


def policy_of(job: Job, recipe: Any) -> Any:
    """The policy with the job's adapter: built from the same seed, and compared with the file that peers load."""
    from safetensors.numpy import load_file

    from luthier.models.peft_files import save_adapter
    from luthier.models.sources import resolve
    from luthier.workflow.build import build

    policy, _ = build(recipe, resolve(job.model))
    if job.adapter is not None:
        with tempfile.TemporaryDirectory() as name:
            save_adapter(Path(name), policy.model, recipe.adapter, base=job.model)
            ours = load_file(Path(name) / "adapter_model.safetensors")
        theirs = load_file(Path(job.adapter) / "adapter_model.safetensors")
        same = ours.keys() == theirs.keys() and all(np.array_equal(ours[k], theirs[k]) for k in ours)
        assert same, "the adapter begins with other numbers than the peers'"
    return policy


def main() -> None:
    from luthier.models.adapters import trained
    from luthier.objectives import OBJECTIVES
    from luthier.training.loop import train
    from luthier.training.optim import adamw

    job = read_job()
    recipe = recipe_of(job)
    with tempfile.TemporaryDirectory() as name:
        source = source_of(job, recipe, Path(name))
        policy = policy_of(job, recipe)
        optimizer = adamw(trained(policy.model), recipe.training, rate=job.rate)
        loaded = peak_bytes()
        reports = list(train(policy, source, OBJECTIVES[recipe.objective.kind], optimizer, recipe.training))
    rows = job.load_rows()
    say(
        loaded_bytes=loaded,
        seconds=[report.seconds for report in reports],
        losses=[report.loss for report in reports],
        units=[report.units for report in reports],
        tokens=[sum(len(rows[i].tokens) for i in step) for step in job.steps],
        positions=[report.tokens for report in reports],
    )


if __name__ == "__main__":
    main()
