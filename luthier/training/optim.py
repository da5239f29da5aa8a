"""AdamW, the learning rate as a pure function of the step, and clipping by the global norm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from luthier.recipe import Training


def adamw(
    parameters: Mapping[str, nn.Parameter], training: Training, *, rate: float, plus: float | None = None
) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101, algorithm 2); decay on matrices only.

    A group's `scale` is what its learning rate is of the step's rate.

    Args:
        plus: LoRA+ (Hayou et al., arXiv 2402.12354): the rate of every adapter's B in units of A's.
    """
    fast = {} if plus is None else {name: p for name, p in parameters.items() if name.endswith(".lora_B")}
    matrices = [p for name, p in parameters.items() if p.ndim >= 2 and name not in fast]
    vectors = [p for p in parameters.values() if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": training.weight_decay, "scale": 1.0},
        {"params": vectors, "weight_decay": 0.0, "scale": 1.0},
        {"params": list(fast.values()), "weight_decay": training.weight_decay, "scale": plus},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=rate, betas=(training.beta1, training.beta2), eps=1e-8, fused=True
    )


def rate_at(step: int, steps: int, *, peak: float, warmup: float, schedule: str) -> float:
    """The rate of 0-based `step` out of `steps`: a linear rise over the first `warmup * steps`, then the schedule's
    decay.

    The last step has a small rate that is not zero, so that no step is wasted.
    """
    rising = math.ceil(warmup * steps)
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1 - done)
    return peak * 0.5 * (1 + math.cos(math.pi * done))


def global_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Euclidean norm of all gradients together."""
    norms = [p.grad.norm() for p in parameters if p.grad is not None]
    return float(torch.stack(norms).norm()) if norms else 0.0


def clip(parameters: Iterable[nn.Parameter], norm: float, limit: float) -> None:
    """Scales gradients so that their global norm is at most `limit`; 0 leaves them."""
    if limit and norm > limit:
        for p in parameters:
            if p.grad is not None:
                p.grad.mul_(limit / norm)
