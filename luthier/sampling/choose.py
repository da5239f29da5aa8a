"""How the next token is chosen from logits, in the order of transformers: temperature, top-k, top-p, a draw.

A row draws with uniform numbers of its own, so that its tokens do not depend on its neighbours.

Shape suffixes:  B rows   V vocabulary   K likeliest tokens
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from luthier import kernels

LIKELIEST = 256
"""Tokens that are sorted first for top-p: a whole vocabulary only where these do not hold enough."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are chosen. Temperature 0 takes the likeliest."""

    max_new_tokens: int
    stop: frozenset[int]
    """Tokens that end a completion."""
    temperature: float = 0.0
    top_k: int | None = None
    """Draw from so many of the likeliest tokens."""
    top_p: float = 1.0
    """Draw from the fewest of the likeliest tokens that hold this share."""
    seed: int = 0


class Chosen(NamedTuple):
    """One token for each row."""

    tokens_B: Tensor
    logprobs_B: Tensor
    """log p at the sampling temperature (at 1 for greedy decoding), before anything is cut off."""


def choose(logits_BV: Tensor, decoding: Decoding, uniform_B: Tensor | None) -> Chosen:
    """Picks each row's next token.

    Args:
        logits_BV: float32 or wider; changed.
        uniform_B: float64 numbers in [0, 1); None takes the likeliest.
    """
    kernel = kernels.of(logits_BV)
    if uniform_B is None:
        tokens_B = kernel.draw(logits_BV)
    else:
        tokens_B = kernel.draw(truncated(logits_BV.div_(decoding.temperature), decoding), uniform_B)
    return Chosen(tokens_B, kernel.logprobs_(logits_BV, tokens_B, bias=None, softcap=None, keep=False))


def truncated(logits_BV: Tensor, decoding: Decoding) -> Tensor:
    """The logits with minus infinity where top-k or top-p (Holtzman et al., arXiv 1904.09751, equation 2) draws
    nothing; the logits themselves without either."""
    z, lowest = logits_BV, -torch.inf
    if decoding.top_k is not None:
        kth_B1 = z.topk(min(decoding.top_k, z.shape[1])).values[:, -1:]
        z = z.masked_fill(z < kth_B1, lowest)
    if decoding.top_p >= 1:
        return z
    whole_B1 = z.logsumexp(1, keepdim=True)
    values_BK, places_BK = z.topk(min(LIKELIEST, z.shape[1]))
    if ((values_BK - whole_B1).exp().sum(1) < decoding.top_p).any():
        values_BK, places_BK = z.sort(descending=True)
    shares_BK = (values_BK - whole_B1).exp()
    # A token is drawn where those before it do not hold the share yet: the first one always.
    drawn_BK = shares_BK.cumsum(1) - shares_BK < decoding.top_p
    drawn_BK[:, 0] = True
    kept = torch.full_like(z, lowest)
    return kept.scatter_(1, places_BK, values_BK.masked_fill(~drawn_BK, lowest))


def uniforms(decoding: Decoding, index: int, sample: int) -> Tensor | None:
    """The numbers that one completion draws with [max_new_tokens]: a function of the seed and of which completion it
    is."""
    if decoding.temperature <= 0:
        return None
    digest = hashlib.blake2b(f"{decoding.seed}/{index}/{sample}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(decoding.max_new_tokens, dtype=torch.float64, generator=generator)
