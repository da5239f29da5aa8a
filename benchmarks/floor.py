"""The floor under a step: how fast this machine multiplies matrices, and what a workload cannot do without.

    python -m benchmarks.floor THREADS      prints {"bf16": FLOP/s, "fp32": FLOP/s}, the best shape of each type

The floor of a token is its matrix work alone: 4 FLOP for each frozen weight of the body (forward, and the gradient of
its input) or 6 where the weight is trained too, 6 for each adapter weight, and the head's share at supervised
positions. Attention's own products are given beside it and are not part of the bar: no attention runs at the rate of a
large GEMM. Norms, activations, softmax and the optimizer are counted as nothing.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from benchmarks.contenders.common import Job

SHAPES = ((2048, 576, 1536), (2048, 1536, 576), (2048, 576, 576), (512, 384, 1536), (2048, 2048, 2048))
"""(tokens, in, out): those of the two models, and a square one."""
OUTSIDE = ("embed", "lm_head", "classifier", "pooler")
"""Parts of a name that keep a matrix out of the body: looked up, or counted with the head."""


class Sizes(NamedTuple):
    """Numbers of weights that a token passes through."""

    body: int
    adapter: int
    head: int
    attention: int
    """Layers x heads x head size: times the length of a document, the products of one token's attention."""


class Work(NamedTuple):
    """FLOP of one real token."""

    body: float
    adapter: float
    head: float
    attention: float

    @property
    def floor(self) -> float:
        """All but attention."""
        return self.body + self.adapter + self.head


def gemm_rates(*, seconds: float = 0.4) -> dict[str, float]:
    """FLOP/s of the best shape for each type, each the median over `seconds`."""
    return {
        name: max(_rate(shape, dtype, seconds) for shape in SHAPES)
        for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    }


def _rate(shape: tuple[int, int, int], dtype: torch.dtype, seconds: float) -> float:
    rows, inputs, outputs = shape
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 3:
        began = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        taken.append(time.perf_counter() - began)
    return 2 * rows * inputs * outputs / statistics.median(taken)


def sizes(job: Job) -> Sizes:
    """Counts the weights in the job's files."""
    config = json.loads((Path(job.model) / "config.json").read_text())
    shapes = _shapes(Path(job.model) / "model.safetensors")
    body = sum(a * b for name, (a, b) in shapes.items() if not any(part in name for part in OUTSIDE))
    head = config["vocab_size"] * config["hidden_size"] if job.kind != "classify" else 0
    adapter = _shapes(Path(job.adapter) / "adapter_model.safetensors") if job.adapter else {}
    heads = config["num_attention_heads"] * (
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    )
    return Sizes(body, sum(a * b for a, b in adapter.values()), head, config["num_hidden_layers"] * heads)


def _shapes(path: Path) -> dict[str, tuple[int, int]]:
    with safe_open(path, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return {name: shape for name, shape in found.items() if len(shape) == 2}


def work(size: Sizes, *, kind: str, supervised: float, length: float) -> Work:
    """FLOP of a real token in training.

    Args:
        kind: lora (the body frozen, the head frozen) or classify (all trained, no vocabulary).
        supervised: share of tokens that the head is needed for.
        length: mean document length, each document weighted by its tokens.
    """
    trained = kind == "classify"
    # A causal token sees half its document; backward recomputes the scores: 7 products of 2 x length / 2.
    attention = (14 if trained else 7) * size.attention * length
    return Work((6 if trained else 4) * size.body, 6 * size.adapter, 4 * size.head * supervised, attention)


def decoding_work(size: Sizes, *, prompt_tokens: int, new_tokens: int) -> float:
    """FLOP of answering: every token passes the body once, every new token needs the head."""
    return 2.0 * size.body * (prompt_tokens + new_tokens) + 2.0 * size.head * new_tokens


def report(job: Job, facts: dict[str, Any]) -> dict[str, float]:
    """FLOP by part and real token, for the page; for generation by new token, with its prompt's share."""
    size = sizes(job)
    if job.kind == "generate":
        prompts = job.steps[1]
        rows = job.load_rows()
        new = job.new_tokens * len(prompts)
        total = decoding_work(size, prompt_tokens=sum(len(rows[i].tokens) for i in prompts), new_tokens=new)
        return {"body": 2.0 * size.body, "head": 2.0 * size.head, "floor": total / new}
    done = work(size, kind=job.kind, supervised=facts["supervised"], length=facts["mean_length"])
    return {**done._asdict(), "floor": done.floor}


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(json.dumps(gemm_rates()))
