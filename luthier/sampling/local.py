"""The local engine: many prompts answered at once, with the same weights, adapters and attention as in training.

Prompts are prefilled as one packed row, what they begin with alike once, and each of them once for all of its samples.
Decoding goes on row by row without padding; a row that ends makes room for the next. A completion does not depend on
its neighbours beyond rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from luthier.data.prefixes import apart, shared
from luthier.models.attention import CHUNK, KeyValues, Layout
from luthier.models.policy import Policy
from luthier.sampling.choose import Decoding, choose, uniforms

__all__ = ["Completion", "Decoding", "generate"]

PREFILL_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote after a prompt."""

    index: int
    """Which prompt, by its place in the list."""
    tokens: tuple[int, ...]
    """The stop token is kept."""
    logprobs: tuple[float, ...]
    """log p of each token at the sampling temperature (at 1 for greedy decoding), before top-k and top-p."""
    finish: str
    """`stop`, or `length` when it was cut."""
    sample: int = 0
    """Which of the prompt's samples."""


@dataclass
class _Row:
    index: int
    sample: int
    slot: int
    uniform: Tensor | None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass
class _Parked:
    """A prompt some of whose samples wait for room."""

    index: int
    hidden_H: Tensor
    """The state of its last token."""


def generate(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    samples: int = 1,
    batch: int = 32,
    on_token: Callable[[int, int], None] | None = None,
) -> Iterator[Completion]:
    """Answers `prompts` (token ids), yielding each completion as it ends, in no fixed order.

    Args:
        samples: completions of each prompt.
        batch: rows decoded together.
        on_token: called with (prompt index, token) as tokens appear.
    """
    # Longest first: rows of like length share the cache, and a shortage of memory shows at once.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    queue = deque((i, sample) for i in order for sample in range(samples))
    batch = min(batch, len(queue))
    # One place more, for the prompt whose samples did not all find room.
    cache = KeyValues(batch + (samples > 1), 0)
    rows: list[_Row] = []
    parked: _Parked | None = None
    with policy.inference():
        step = policy.decoder(cache)
        while queue or rows:
            room = batch - len(rows)
            if queue and (not rows or room >= max(1, batch // 4)):
                free = sorted(set(range(batch)) - {row.slot for row in rows})
                fresh = [(*queue.popleft(), slot) for slot in free[: len(queue)]]
                new = [_Row(i, sample, slot, uniforms(decoding, i, sample)) for i, sample, slot in fresh]
                waiting = queue[0][0] if queue and queue[0][1] else None
                hidden, parked = _admit(policy, cache, prompts, new, decoding, parked=parked, waiting=waiting)
                rows = sorted([*rows, *new], key=lambda row: row.slot)
                _place(cache, rows, prompts)
            else:
                cache.reserve(int(cache.lengths_B.max()) + 1)
                hidden = step(torch.tensor([row.tokens[-1] for row in rows]))
                cache.lengths_B += 1
                new = rows
            _append(policy, hidden, new, decoding)
            if on_token:
                for row in new:
                    on_token(row.index, row.tokens[-1])
            ended = [row for row in new if _finish(row, decoding)]
            if ended:
                rows = [row for row in rows if not _finish(row, decoding)]
                _place(cache, rows, prompts)
                yield from (_completion(row, decoding) for row in ended)


def _place(cache: KeyValues, rows: list[_Row], prompts: Sequence[Sequence[int]]) -> None:
    """Tells the cache which rows go on. The newest token of a row is not in it yet."""
    cache.slots_B = torch.tensor([row.slot for row in rows], dtype=torch.long)
    lengths = [len(prompts[row.index]) + max(0, len(row.tokens) - 1) for row in rows]
    cache.lengths_B = torch.tensor(lengths, dtype=torch.long)


def _finish(row: _Row, decoding: Decoding) -> str | None:
    if row.tokens[-1] in decoding.stop:
        return "stop"
    return "length" if len(row.tokens) >= decoding.max_new_tokens else None


def _completion(row: _Row, decoding: Decoding) -> Completion:
    finish = _finish(row, decoding)
    assert finish is not None
    return Completion(row.index, tuple(row.tokens), tuple(row.logprobs), finish, row.sample)


def _append(policy: Policy, hidden_BH: Tensor, rows: list[_Row], decoding: Decoding) -> None:
    """Chooses each row's next token, and notes it and its log-probability."""
    drawn = [row.uniform[len(row.tokens)] for row in rows if row.uniform is not None]
    chosen = choose(policy.next_logits(hidden_BH), decoding, torch.stack(drawn) if drawn else None)
    for row, token, logprob in zip(rows, chosen.tokens_B.tolist(), chosen.logprobs_B.tolist(), strict=True):
        row.tokens.append(token)
        row.logprobs.append(logprob)


def _admit(
    policy: Policy,
    cache: KeyValues,
    prompts: Sequence[Sequence[int]],
    new: list[_Row],
    decoding: Decoding,
    *,
    parked: _Parked | None,
    waiting: int | None,
) -> tuple[Tensor, _Parked | None]:
    """Fills the places of new rows. `waiting` is the prompt, if any, whose further samples wait for room; it is kept in
    the cache's last place.

    Returns:
        The hidden state of each row's last prompt token [new, H], and the prompt that is parked from now on.
    """
    cache.reserve(max(len(prompts[row.index]) for row in new) + min(CHUNK, decoding.max_new_tokens))
    places: dict[int, list[int]] = {}
    for row in new:
        places.setdefault(row.index, []).append(row.slot)
    fresh = {i: slots for i, slots in places.items() if parked is None or i != parked.index}
    states: dict[int, Tensor] = {}
    if parked is not None and parked.index in places:
        states[parked.index] = parked.hidden_H
        cache.copy(cache.places - 1, places[parked.index], len(prompts[parked.index]))
    if fresh:
        first = [slots[0] for slots in fresh.values()]
        states.update(zip(fresh, _prefill(policy, cache, [prompts[i] for i in fresh], first), strict=True))
    for i, (slot, *others) in fresh.items():
        last = [cache.places - 1] if i == waiting else []
        cache.copy(slot, [*others, *last], len(prompts[i]))
    result = torch.stack([states[row.index] for row in new])
    return result, None if waiting is None else _Parked(waiting, states[waiting])


def _prefill(policy: Policy, cache: KeyValues, prompts: Sequence[Sequence[int]], slots: list[int]) -> list[Tensor]:
    """Runs new prompts, packed; gives the hidden state of each one's last token, [H]."""
    states: list[Tensor] = []
    while len(states) < len(prompts):
        at = end = len(states)
        total = 0
        while end < len(prompts) and (end == at or total + len(prompts[end]) <= PREFILL_TOKENS):
            total += len(prompts[end])
            end += 1
        group = [np.asarray(prompt, dtype=np.int32) for prompt in prompts[at:end]]
        forest = shared(group) or apart([len(prompt) for prompt in group])
        pieces = list(zip(forest.owners, forest.starts, forest.ends, strict=True))
        bounds = np.cumsum([0, *(b - a for _, a, b in pieces)]).tolist()
        layout = Layout(tuple(bounds), tuple(forest.parents), cache, tuple(slots[at:end]), tuple(forest.leaves))
        tokens = np.concatenate([group[owner][a:b] for owner, a, b in pieces])
        positions = torch.cat([torch.arange(a, b) for _, a, b in pieces])
        ends = torch.tensor([bounds[leaf + 1] - 1 for leaf in forest.leaves])
        states += policy.hidden(torch.from_numpy(tokens).long(), positions, layout, rows=ends).unbind()
    return states
