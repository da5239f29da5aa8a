"""How A and B of a low-rank adapter begin, under the names that PEFT gives them (`init_lora_weights`).

Some leave the model as it is (B A = 0); the others move a part of the weight out of the frozen base into the adapter:
W = rest + s B A. What is then learnt is still told as an update of W itself, see `models.peft_files`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from luthier.errors import RecipeError
from luthier.models.quantised import rounded

MOVES_THE_BASE = frozenset({"pissa", "pissa_niter_16", "olora", "loftq"})
"""Starts that take a part of the weight out of the base."""
NITER = 16
"""Steps of the fast singular value decomposition; its errors are then below 1e-6 of the weights in the paper."""


class Start(NamedTuple):
    """A beginning."""

    A: Tensor
    """[rank, in]"""
    B: Tensor
    """[out, rank]"""
    rest: Tensor | None = None
    """What stays in the base, [out, in], not yet quantised; None where nothing was taken out."""


def begin(
    weight: Tensor, init: str, *, rank: int, scale: float, quantise: str, iterations: int, generator: torch.Generator
) -> Start:
    """Draws or computes A and B for a weight [out, in] of float32 or wider.

    Args:
        init: a word of `recipe.Lora.init`.
        scale: s, the factor on B A.
        quantise: how the base will be stored.
        iterations: rounds of LoftQ.

    Raises:
        RecipeError: the start does not fit the rank or the base's storage.
    """
    outputs, inputs = weight.shape
    if init == "default":
        # PEFT's start: A kaiming-uniform with a = sqrt(5), which is uniform within 1 / sqrt(inputs).
        A = torch.empty(rank, inputs).uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
        return Start(A.to(weight), weight.new_zeros(outputs, rank))
    if init == "gaussian":
        A = torch.empty(rank, inputs).normal_(std=1 / rank, generator=generator)
        return Start(A.to(weight), weight.new_zeros(outputs, rank))
    if init == "orthogonal":
        return _orthogonal(weight, rank, generator)
    if rank > min(outputs, inputs):
        raise RecipeError(
            f"adapter.init: {init} takes vectors from each weight, and one has fewer than `rank`",
            got=f"rank {rank} for a weight of {outputs} x {inputs}",
            do=f"adapter.rank at most {min(outputs, inputs)}",
        )
    if init == "loftq":
        return _loftq(weight, rank, scale, quantise, iterations)
    if init == "olora":
        # OLoRA (Buyukakyuz, arXiv 2406.01775): the first columns of Q and rows of R, W = Q R.
        Q, R = torch.linalg.qr(weight)
        A, B = R[:rank], Q[:, :rank]
    elif init == "pissa":
        # PiSSA (Meng et al., arXiv 2404.02948, equations 2 and 3), divided by s as PEFT does so that s B A is the part.
        A, B = _top(torch.linalg.svd(weight, full_matrices=False), rank, scale)
    else:
        A, B = _top(_fast(weight, rank, generator), rank, scale)
    return Start(A, B, weight - scale * (B @ A))


def _orthogonal(weight: Tensor, rank: int, generator: torch.Generator) -> Start:
    """A and B that are not zero and whose product is: from the odd and even rows of one orthogonal matrix (PEFT)."""
    if rank % 2:
        raise RecipeError(
            "adapter.init: orthogonal needs an even rank", got=str(rank), do="adapter.rank: an even number"
        )
    outputs, inputs = weight.shape
    Q = torch.linalg.qr(torch.randn(rank, rank, generator=generator).double())[0]
    A = (torch.randn(inputs, rank // 2, generator=generator).double() @ Q[0::2]).t() / 10
    B = torch.randn(outputs, rank // 2, generator=generator).double() @ Q[1::2] / 10
    return Start(A.to(weight), B.to(weight))


def _top(factors: tuple[Tensor, Tensor, Tensor], rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """(A, B) with s B A the best approximation of U S Vh at this rank, S shared evenly between them."""
    U, S, Vh = factors
    root = (S[:rank] / scale).sqrt()
    return root[:, None] * Vh[:rank], U[:, :rank] * root


def _fast(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The top singular triplets by subspace iteration (Halko et al., arXiv 0909.4061, algorithm 4.4)."""
    basis = torch.linalg.qr(weight @ torch.randn(weight.shape[1], rank, generator=generator).to(weight))[0]
    for _ in range(NITER):
        basis = torch.linalg.qr(weight @ torch.linalg.qr(weight.t() @ basis)[0])[0]
    U, S, Vh = torch.linalg.svd(basis.t() @ weight, full_matrices=False)
    return basis @ U, S, Vh


def _loftq(weight: Tensor, rank: int, scale: float, quantise: str, iterations: int) -> Start:
    """LoftQ (Li et al., arXiv 2310.08659, algorithm 1): quantise what the adapter does not hold, then give the adapter
    the best rank-r part of the error, and again. `rest` is what the last round quantised."""
    if quantise == "none":
        raise RecipeError(
            "adapter.init: loftq makes up for a quantised base", got="model.quantise: none", do="model.quantise: nf4"
        )
    A, B = weight.new_zeros(rank, weight.shape[1]), weight.new_zeros(weight.shape[0], rank)
    rest = weight
    for _ in range(iterations):
        rest = weight - scale * (B @ A)
        error = weight - rounded(rest, quantise).to(weight.dtype)
        A, B = _top(torch.linalg.svd(error, full_matrices=False), rank, scale)
    return Start(A, B, rest)
