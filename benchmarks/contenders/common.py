"""What every contender shares: the job it is given, the batches it runs, and the one line that it prints.

Imports nothing beyond the standard library, numpy and torch, so that it runs in Luthier's environment and in the
peers'. All contenders get the same token ids, the same examples in the same order and the same starting weights; the
first step is the same eight (or 32) examples for all of them, it warms up, and it is never timed.
"""

from __future__ import annotations

import importlib.metadata
import json
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "luthier")


class Row(NamedTuple):
    """One example as Luthier's own preparation renders it."""

    tokens: list[int]
    weights: list[int]
    """1 where the token is a target."""
    label: int | None = None


@dataclass(frozen=True)
class Job:
    """One run of one contender."""

    kind: str
    """lora, classify or generate."""
    model: str
    """Folder with safetensors that all contenders load."""
    adapter: str | None
    """PEFT folder with the adapter that all contenders start from."""
    rows: str
    steps: list[list[int]]
    """Rows of each step; the first step warms up."""
    threads: int
    rate: float
    clip: float
    rank: int
    alpha: float
    new_tokens: int
    stop: list[int]
    options: dict[str, Any]
    device: str = "cpu"
    """cpu or cuda."""

    def load_rows(self) -> list[Row]:
        return [Row(*row) for row in json.loads(Path(self.rows).read_text())]


def read_job() -> Job:
    """The job whose file is the only argument; sets the number of threads."""
    import torch

    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    return job


def arranged(steps: list[list[int]], lengths: list[int], *, across: bool) -> list[list[int]]:
    """The examples of each step; with `across`, sorted by length over all steps but the first.

    Sorting the whole run pads least of all groupings. It changes which examples meet in a step, so losses then agree
    over the run and not at each step.
    """
    if not across:
        return steps
    rest = sorted((i for step in steps[1:] for i in step), key=lambda i: (-lengths[i], i))
    sizes = [len(step) for step in steps[1:]]
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return [steps[0], *(rest[a : a + size] for a, size in zip(starts, sizes, strict=True))]


def peak_bytes() -> int:
    """Peak memory of this process so far: on the GPU, as torch's allocator counts it, where it computes there; else
    resident, as the operating system counts it."""
    if on_gpu := gpu_bytes():
        return on_gpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def gpu_bytes() -> int:
    """Peak memory on the GPU; 0 where nothing was computed there."""
    import torch

    return int(torch.cuda.max_memory_allocated())


def finished(job: Job) -> None:
    """Waits for a GPU, which is told what to do and does it later."""
    if job.device == "cuda":
        import torch

        torch.cuda.synchronize()


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def say(*, loaded_bytes: int, **values: Any) -> None:
    """Prints the result as the last line of standard output.

    Args:
        loaded_bytes: peak memory once weights are loaded, before the first step.
        values: for training `seconds`, `losses` (the mean over `units`, before the step changes a weight), `tokens`
            (real ones), `positions` (computed ones), one number a step; for generation `seconds` and `completions`.
    """
    print(
        json.dumps({"loaded_bytes": loaded_bytes, "gpu_bytes": gpu_bytes(), "versions": versions(), **values}),
        flush=True,
    )
