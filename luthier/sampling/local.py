"""The local engine: many prompts answered at once, with the same modules and the same attention as in training.

Prompts are prefilled as one packed row; decoding goes on row by row without padding on the left; a row that ends makes
room for the next prompt. A completion does not depend on its neighbours beyond rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.models.attention import KeyValues, Layout
from luthier.models.policy import Policy

PREFILL_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Decoding:
    """How tokens are chosen. Temperature 0 takes the likeliest."""

    max_new_tokens: int
    stop: frozenset[int]
    """Tokens that end a completion."""
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote after a prompt."""

    index: int
    """Which prompt, by its place in the list."""
    tokens: tuple[int, ...]
    """The stop token is kept."""
    logprobs: tuple[float, ...]
    """log p of each token at the sampling temperature (at 1 for greedy decoding)."""
    finish: str
    """`stop`, or `length` when it was cut."""


@dataclass
class _Row:
    index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    generator: torch.Generator | None = None


def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    batch: int = 16,
    on_token: Callable[[int, int], None] | None = None,
) -> Iterator[Completion]:
    """Answers `prompts` (token ids), yielding each completion as it ends, in no fixed order.

    Args:
        batch: rows decoded together.
        on_token: called with (prompt index, token) as tokens appear.
    """
    # Longest first: rows of like length share the cache, and a shortage of memory shows at once.
    queue = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    rows: list[_Row] = []
    cache = KeyValues(0, 0)
    last_B = torch.empty(0, dtype=torch.long)
    with policy.inference():
        while queue or rows:
            fresh = queue[: max(0, batch - len(rows))]
            if fresh and (not rows or len(fresh) >= max(1, batch // 4)):
                del queue[: len(fresh)]
                cache = _extended(cache, prompts, fresh, decoding.max_new_tokens)
                hidden = _prefill(policy, cache, prompts, fresh, first=len(rows))
                new = [_Row(i, generator=_generator(decoding, i)) for i in fresh]
                rows += new
                last_B = torch.cat([last_B, _choose(policy, hidden, new, decoding)])
            else:
                hidden_B1H = policy.hidden(last_B[:, None], cache.lengths_B[:, None], Layout(cache=cache))
                cache.lengths_B += 1
                last_B = _choose(policy, hidden_B1H[:, 0], rows, decoding)
                new = rows
            if on_token:
                for row in new:
                    on_token(row.index, row.tokens[-1])
            alive = [b for b, row in enumerate(rows) if _finish(row, decoding) is None]
            if len(alive) < len(rows):
                for row in rows:
                    finish = _finish(row, decoding)
                    if finish:
                        yield Completion(row.index, tuple(row.tokens), tuple(row.logprobs), finish)
                rows = [rows[b] for b in alive]
                cache.keep(alive)
                last_B = last_B[alive]


def _finish(row: _Row, decoding: Decoding) -> str | None:
    if row.tokens[-1] in decoding.stop:
        return "stop"
    return "length" if len(row.tokens) >= decoding.max_new_tokens else None


def _extended(cache: KeyValues, prompts: Sequence[Sequence[int]], fresh: list[int], max_new_tokens: int) -> KeyValues:
    """The cache with empty rows added for the new prompts."""
    capacity = max([cache.capacity, *(len(prompts[i]) + max_new_tokens for i in fresh)])
    cache.grow(capacity)
    result = KeyValues(cache.rows + len(fresh), capacity)
    result.layers = {
        i: tuple(torch.cat([x, x.new_zeros(len(fresh), *x.shape[1:])]) for x in pair)  # type: ignore[misc]
        for i, pair in cache.layers.items()
    }
    result.lengths_B = torch.cat([cache.lengths_B, torch.tensor([len(prompts[i]) for i in fresh])])
    return result


def _prefill(
    policy: Policy, cache: KeyValues, prompts: Sequence[Sequence[int]], fresh: list[int], *, first: int
) -> Tensor:
    """Runs the new prompts, packed; returns the hidden state of each one's last token, [new, H]."""
    states = []
    at = 0
    while at < len(fresh):
        end, total = at, 0
        while end < len(fresh) and (end == at or total + len(prompts[fresh[end]]) <= PREFILL_TOKENS):
            total += len(prompts[fresh[end]])
            end += 1
        group = [torch.tensor(list(prompts[i]), dtype=torch.long) for i in fresh[at:end]]
        bounds = [0]
        for prompt in group:
            bounds.append(bounds[-1] + len(prompt))
        layout = Layout(bounds=tuple(bounds), cache=cache, rows=tuple(range(first + at, first + end)))
        positions = torch.cat([torch.arange(len(p)) for p in group])
        hidden_TH = policy.hidden(torch.cat(group), positions, layout)
        states.append(hidden_TH[[b - 1 for b in bounds[1:]]])
        at = end
    return torch.cat(states)


def _choose(policy: Policy, hidden_BH: Tensor, rows: list[_Row], decoding: Decoding) -> Tensor:
    """Picks each row's next token and notes it and its log-probability."""
    logits_BV = policy.next_logits(hidden_BH)
    if decoding.temperature > 0:
        logits_BV = logits_BV / decoding.temperature
    logprobs_BV = logits_BV.log_softmax(-1)
    if decoding.temperature > 0:
        chosen_B = torch.stack(
            [
                torch.multinomial(p.exp(), 1, generator=row.generator)[0]
                for p, row in zip(logprobs_BV, rows, strict=True)
            ]
        )
    else:
        chosen_B = logprobs_BV.argmax(-1)
    picked_B = logprobs_BV.gather(1, chosen_B[:, None])[:, 0]
    for row, token, logprob in zip(rows, chosen_B.tolist(), picked_B.tolist(), strict=True):
        row.tokens.append(token)
        row.logprobs.append(logprob)
    return chosen_B


def _generator(decoding: Decoding, index: int) -> torch.Generator | None:
    """A random generator of its own for each prompt, so that its samples do not depend on its neighbours."""
    if decoding.temperature <= 0:
        return None
    digest = hashlib.blake2b(f"{decoding.seed}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
