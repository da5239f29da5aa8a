"""Cost against size: time and memory of Luthier's training over tokens, length of a document, and size of the model.

Tokens are random ids: what they say changes no cost. Every point is a process of its own, and its first step warms up.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.contenders.common import Job, Row
from benchmarks.field import LUTHIER
from benchmarks.runner import run_contender

STEP_TOKENS = 2048
DOCUMENT = 256
TOKENS = {"small": (1024, 4096, 16384, 65536, 204800), "smollm2": (1024, 4096, 16384)}
"""Model -> tokens trained in all, in documents of 256."""
CONTEXTS = (256, 1024, 2048, 4096, 8192)
"""Lengths of the documents of a step of 8,192 tokens."""
QUICK = {"small": (1024, 4096), "smollm2": (1024,)}
SMALL = {
    "vocab_size": 8192, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192, "tie_word_embeddings": True,
}  # fmt: skip


def measure(folder: Path, *, threads: int, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Runs every point. `folder`/work/smollm2 holds the larger model where the benchmark made it ready."""
    models = {"small": _small(folder / "work" / "small" / "model"), "smollm2": folder / "work" / "smollm2" / "model"}
    points: dict[str, list[dict[str, Any]]] = {"tokens": [], "context": []}
    for model, place in models.items():
        if not place.exists():
            continue
        for tokens in (QUICK if quick else TOKENS)[model]:
            batch = max(1, min(tokens, STEP_TOKENS) // DOCUMENT)
            job = _job(place, folder, threads, length=DOCUMENT, batch=batch, steps=tokens // (batch * DOCUMENT))
            points["tokens"].append({"model": model, "tokens": tokens, **_point(job, folder)})
        for length in CONTEXTS[: 1 if quick else None]:
            job = _job(place, folder, threads, length=length, batch=CONTEXTS[-1] // length, steps=1)
            points["context"].append({"model": model, "length": length, **_point(job, folder)})
    return points


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """p of cost ~ size^p, by least squares on logarithms; 1 is linear."""
    slope, _ = np.polyfit([math.log(x) for x in sizes], [math.log(y) for y in costs], 1)
    return float(slope)


def _point(job: Job, folder: Path) -> dict[str, Any]:
    run = run_contender(LUTHIER, job, pythons={"luthier": Path(sys.executable)}, folder=folder)
    result = run["result"]
    return {
        "seconds": sum(result["seconds"][1:]) if result else None,
        "peak_bytes": run["peak_bytes"],
        "loaded_bytes": result["loaded_bytes"] if result else None,
        "error": run["error"],
        "others": run["others"],
    }


def _job(place: Path, folder: Path, threads: int, *, length: int, batch: int, steps: int) -> Job:
    """`steps` timed steps of `batch` documents after one that warms up; the later half of a document is learnt."""
    vocabulary = json.loads((place / "config.json").read_text())["vocab_size"]
    draws = np.random.default_rng(0)
    count = batch * (steps + 1)
    weights = [0] * (length // 2) + [1] * (length - length // 2)
    rows = [Row(draws.integers(0, vocabulary, length).tolist(), weights) for _ in range(count)]
    path = folder / "work" / "scaling.json"
    path.write_text(json.dumps(rows, separators=(",", ":")))
    return Job(
        kind="lora", model=str(place), adapter=None, rows=str(path),
        steps=[list(range(a, a + batch)) for a in range(0, count, batch)],
        threads=threads, rate=2e-4, clip=1.0, rank=16, alpha=32.0, new_tokens=0, stop=[], options={},
    )  # fmt: skip


def _small(place: Path) -> Path:
    """A Llama of about 6 million weights, drawn at random."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if not place.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            LlamaForCausalLM(LlamaConfig(**SMALL)).to(torch.bfloat16).save_pretrained(place)
    return place
