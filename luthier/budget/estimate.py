"""Memory before the first step: counted from the model's sizes and the longest microbatch. A rough figure, said as
one."""

from __future__ import annotations

from dataclasses import dataclass

PYTHON_BYTES = 450e6
"""The interpreter with torch and transformers loaded; measured on Linux, torch 2.13, November 2026."""
OPTIMIZER_BYTES = 24
"""A weight trained with AdamW: itself, its gradient and two moments in float32, and the two moments once more while a
checkpoint is written."""
HEAD_TILE = 256
"""Positions whose logits exist at once, in float32, about three copies of them."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what they are for."""

    program: int
    frozen_weights: int
    trained_weights: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        return self.program + self.frozen_weights + self.trained_weights + self.activations + self.head


def memory(
    *,
    weights: int,
    trained: int,
    precision_bytes: int,
    hidden: int,
    intermediate: int,
    layers: int,
    vocabulary: int,
    microbatch_tokens: int,
) -> Memory:
    """Counts what a step keeps.

    Args:
        weights: weights of the whole model; trained: how many of them, or beside them, are trained.
        precision_bytes: bytes of a number in the computation.
        vocabulary: 0 where no logits are computed.
        microbatch_tokens: tokens of the largest microbatch.
    """
    # Saved for the backward pass by token and layer: about 14 vectors of the hidden size and 4 of the inner size.
    per_token = layers * (14 * hidden + 4 * intermediate) * precision_bytes
    return Memory(
        program=int(PYTHON_BYTES),
        frozen_weights=(weights - trained if trained > weights // 2 else weights) * precision_bytes,
        trained_weights=trained * OPTIMIZER_BYTES,
        activations=microbatch_tokens * per_token,
        head=3 * HEAD_TILE * vocabulary * 4,
    )
