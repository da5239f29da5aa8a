"""Where a step of Luthier's training goes, by kind of work, as torch's profiler sees it.

    python -m benchmarks.profile_step JOB       prints one JSON line

Self time of each operator on the main thread. A function of ours that calls compiled code counts with its whole time
under its own name, since nothing inside it is a torch operator.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.contenders.common import Job, read_job
from benchmarks.runner import run_module

CATEGORIES: dict[str, tuple[str, ...]] = {
    "linear layers with their norm or gate, compiled": ("_project", "_gated"),
    "matrix products": ("::mm", "::addmm", "::bmm", "::baddbmm", "mkldnn", "onednn", "gemm", "lora", "linear"),
    "attention": ("attention", "attend", "flash", "softmax"),
    "vocabulary head": ("logprob", "logsumexp", "scatter", "gather", "head"),
    "norms": ("norm",),
    "feed-forward's activation": ("swiglu", "silu", "gelu", "mlp", "gate"),
    "rotary positions": ("rope", "rotary", "::sin", "::cos"),
    "optimizer": ("adam", "optimizer", "foreach"),
    "copies and casts": ("::copy_", "::to", "::cat", "::clone", "::contiguous", "::stack", "::fill_", "::zero_"),
    "other elementwise work": ("::mul", "::add", "::neg", "::sub", "::div", "::sum", "::exp", "::pow", "::mean"),
}
"""Kind of work -> parts of the names of its operators; the first row that fits takes an operator. Matrix products that
a function of ours makes through torch are counted as such."""
REST = "other operators"
OUTSIDE = "between operators (Python, data)"


def category(name: str) -> str:
    lowered = name.lower()
    return next((kind for kind, parts in CATEGORIES.items() if any(part in lowered for part in parts)), REST)


def measure(job: Job, folder: Path) -> dict[str, Any]:
    """Profiles one step of the job in a process of its own."""
    path = folder / "job.json"
    path.write_text(json.dumps(asdict(replace(job, steps=job.steps[:3], options={}))))
    return run_module(Path(sys.executable), "benchmarks.profile_step", [str(path)], threads=job.threads)


def main() -> None:
    from torch.profiler import ProfilerActivity, profile

    from benchmarks.contenders.luthier_train import policy_of, recipe_of, source_of
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
        steps = train(policy, source, OBJECTIVES[recipe.objective.kind], optimizer, recipe.training)
        next(steps)
        plain = next(steps).seconds if len(job.steps) > 2 else None
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            began = time.perf_counter()
            report = next(steps)
            seconds = time.perf_counter() - began
    events = [(e.key, e.self_cpu_time_total / 1e6, e.count) for e in profiled.key_averages()]
    kinds: dict[str, float] = {}
    for key, taken, _ in events:
        kinds[category(key)] = kinds.get(category(key), 0.0) + taken
    kinds[OUTSIDE] = max(0.0, seconds - sum(kinds.values()))
    print(
        json.dumps(
            {
                "seconds": seconds,
                "tokens": report.tokens,
                "units": report.units,
                "plain_seconds": plain,
                "kinds": kinds,
                "top": sorted(events, key=lambda e: -e[1])[:15],
            }
        )
    )


if __name__ == "__main__":
    main()
