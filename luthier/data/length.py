"""Sequences that are too long: what a limit in tokens makes of them. Every cut is named; text loses nothing."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.types import Sequence

Policy = Literal["refuse", "drop", "cut_prompt", "cut_end"]


class Frame(NamedTuple):
    """The special tokens that the tokenizer puts around a document by itself; None where it puts none."""

    first: int | None
    last: int | None


class Fitted(NamedTuple):
    """What became of a sequence under a length limit. `sequence` is None where `what` is refused or dropped."""

    sequence: Sequence | None
    what: Literal["kept", "refused", "dropped", "cut_prompt", "cut_end"]


NO_FRAME = Frame(None, None)


def fit(sequence: Sequence, max_length: int, policy: Policy, *, frame: Frame = NO_FRAME) -> Fitted:
    """Holds a sequence to `max_length` tokens.

    cut_prompt drops tokens from the start, never a supervised one and never the one that stands before the first of
    them; a leading `frame.first` (BOS, [CLS]) stays. cut_end drops tokens from the end; a document (no token weighs)
    keeps its closing `frame.last` ([SEP]). What cannot be cut in this way is refused: the caller lists it.
    """
    excess = len(sequence.tokens_T) - max_length
    if excess <= 0:
        return Fitted(sequence, "kept")
    if policy == "refuse":
        return Fitted(None, "refused")
    if policy == "drop":
        return Fitted(None, "dropped")
    supervised = np.flatnonzero(sequence.weights_T)
    keep_T = np.ones(len(sequence.tokens_T), dtype=bool)
    if policy == "cut_prompt":
        head = int(sequence.tokens_T[0] == frame.first)
        keep_T[head : head + excess] = False
        # With nothing before it, the first supervised token could not be predicted.
        free = len(keep_T) if len(supervised) == 0 else int(supervised[0]) - (1 - head)
        possible = head + excess <= free and max_length > head
    else:
        tail = int(len(supervised) == 0 and sequence.tokens_T[-1] == frame.last)
        keep_T[max_length - tail : len(keep_T) - tail] = False
        possible = max_length > tail and (len(supervised) == 0 or int(supervised[0]) < max_length)
    if not possible:
        return Fitted(None, "refused")
    return Fitted(_select(sequence, sequence.tokens_T[keep_T], sequence.weights_T[keep_T]), policy)


def pieces(sequence: Sequence, max_length: int, *, frame: Frame = NO_FRAME) -> list[Sequence]:
    """Divides a text into pieces of at most `max_length` tokens and loses nothing of it.

    Each further piece begins with the last token of the piece before it, at weight zero: it is there to predict the
    next one from. So each token is a target exactly once, with the weight it had. A leading `frame.first` (BOS) opens
    every piece.
    """
    tokens_T, weights_T = sequence.tokens_T, sequence.weights_T
    if len(tokens_T) <= max_length:
        return [sequence]
    head = int(tokens_T[0] == frame.first)
    assert max_length >= head + 2, "a piece holds a token to predict from and one to predict"
    parts = [_select(sequence, tokens_T[:max_length], weights_T[:max_length])]
    done = max_length
    while done < len(tokens_T):
        stop = done + max_length - head - 1
        tokens = np.concatenate([tokens_T[:head], tokens_T[done - 1 : stop]])
        weights = np.concatenate([np.zeros(head + 1, dtype=np.float32), weights_T[done:stop]])
        parts.append(_select(sequence, tokens, weights))
        done = stop
    return parts


def _select(sequence: Sequence, tokens_T: NDArray[np.int32], weights_T: NDArray[np.float32]) -> Sequence:
    return Sequence(sequence.id, tokens_T, weights_T, sequence.label)
