"""Base and adapter folded into one set of weights, with the difference that the folding makes, measured.

The sum is done in float32 and rounded once to the base's type. What rounding costs is stated, not assumed: the logits
of base + adapter and of the merged model are compared on the same tokens before the folder is said to be done.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.batch import wide
from luthier.errors import ModelError
from luthier.models import adapters
from luthier.models.attention import Layout
from luthier.models.policy import Policy

BOUND = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 1.0}
"""Largest change of a logit that rounding explains, by the type of the merged weights. bf16 keeps 8 bits: logits near
20 are spaced 0.125 apart, and an adapter's update can fall below the spacing of the weight that it is added to."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the merged model's outputs are from those of base and adapter."""

    largest: float
    """Largest absolute difference of a logit, or score."""
    mean: float
    same_choice: float
    """Share of positions at which both choose the same token or label."""
    positions: int


def outputs(policy: Policy, documents: list[list[int]]) -> Tensor:
    """Logits of every position of every document, or scores of every document."""
    found = []
    with policy.inference():
        for ids in documents:
            tokens = torch.tensor(ids)
            hidden = policy.hidden(tokens, torch.arange(len(ids)), Layout(bounds=(0, len(ids))))
            found.append(policy.scores(hidden, (0, len(ids))) if policy.head else policy.next_logits(hidden))
    return wide(torch.cat(found))


def merge(policy: Policy, documents: list[list[int]]) -> Difference:
    """Merges the adapter of `policy` in place.

    Args:
        documents: token ids on which the two forms are compared.

    Raises:
        ModelError: the merged model differs by more than rounding.
    """
    before = outputs(policy, documents)
    adapters.merge(policy.model)
    return difference(before, outputs(policy, documents), dtype=policy.model.get_input_embeddings().weight.dtype)


def difference(before: Tensor, after: Tensor, *, dtype: torch.dtype) -> Difference:
    """Compares two forms of one model.

    Raises:
        ModelError: they differ by more than rounding in `dtype`.
    """
    gap = (before - after).abs()
    found = Difference(
        largest=float(gap.max()),
        mean=float(gap.mean()),
        same_choice=float((before.argmax(-1) == after.argmax(-1)).float().mean()),
        positions=len(before),
    )
    if not found.largest <= BOUND[dtype]:
        raise ModelError(
            "the merged model does not compute what base and adapter compute",
            got=f"logits differ by up to {found.largest:.3g}; rounding to {dtype} explains {BOUND[dtype]:g}",
            do="nothing was written; use the adapter, and report this",
        )
    return found
