"""Peak memory by phase, counted from the sizes of a model, what of it is trained, and the largest microbatch.

    load        the program, the weight file as far as it is mapped, and the weights in their type
    train       the program, weights, trained weights with gradient and moments, what the backward pass needs
    save        the same as far as it is held, and a checkpoint's bytes twice
    evaluate    the program, weights, a second base where the tuned one cannot be switched off, keys and values

While a run trains, the C library holds for later what was given up, but for blocks that were mapped by themselves
(MAPPED_BYTES); before the comparison it is given back. What layers keep for the backward pass is what
`models.functions` says; layers that run by themselves keep what autograd keeps, which is known within a third only. The
peak of a run is that of its largest phase.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Phase = Literal["load", "train", "save", "evaluate"]

PROGRAM_BYTES = 320e6
"""The interpreter with torch and transformers; where a probe has measured it, that is taken."""
FAMILY_BYTES = 100e6
"""What loading adds beside the weights: code of transformers and of the model's family (90 to 140 MB; Linux,
transformers 5, 2026-11)."""
RUNTIME_BYTES = 40e6
"""What the first passes add: code of matrix products and their scratch (torch 2.13, 2026-11)."""
ANSWER_BYTES = 45e6
"""Code that decoding and scoring add."""
THREAD_BYTES, MOST_THREADS = 80e6, 4
"""What a thread beyond the first adds, for its own heap and scratch; measured with one and two, and counted for four at
most."""
COMPILED_BYTES = 60e6
"""Products in bf16 are compiled for each shape, and 64 of them are kept (`luthier.kernels`)."""
GAPS = 0.25
"""Resident memory that is not in use, as a share of activations: blocks of one microbatch leave gaps that those of the
next, of another size, do not fill (glibc's malloc; 0.1 to 0.3 after a few steps of SmolLM2-135M)."""
GAP_TILES, MAPPED_BYTES = 6, 1 << 25
"""At least so many tiles of logits, where one comes from the heap and lies among the activations. Blocks from 32 MB on
are mapped by themselves and leave none (M_MMAP_THRESHOLD_MAX)."""
TILE = 256
"""Positions whose logits exist at once (`models.logprobs`)."""
PREFILL_TOKENS = 4096
"""Tokens of prompts that are run at once (`sampling.local`)."""
QUANTISED = {"none": 0.0, "int8": 1.0, "nf4": 0.5 + 4 / 64}
"""Bytes of a quantised weight with its share of the scales; none: as it is computed in."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model, how it is computed, and the part of it that is trained."""

    path: Literal["gated", "centred", "own"]
    """The layers run through `models.stack`, through `models.stack_centred`, or by themselves."""
    layers: int
    hidden: int
    queries: int
    """Width of the queries of all heads."""
    keys: int
    """Width of the keys of all heads, which is that of the values."""
    heads: int
    intermediate: int
    vocabulary: int
    """0 where no token is predicted."""
    norms: int
    """Vectors of the hidden size that a layer keeps beyond those of a Llama model, for norms of its own."""
    normed: bool
    """Queries and keys are normed, and kept before and after."""
    weights: int
    linear: int
    """Weights of the linear layers of all blocks."""
    largest: int
    """Weights of the largest linear layer."""
    trained: int
    full: bool
    """The trained weights are the model's own and not beside it."""
    below: int
    """Lowest layers without a trained weight: they keep nothing."""
    ranks: int
    """Rank times the adapted linear layers of a layer."""
    number: int
    """Bytes of a number in the computation."""
    stored: int
    """Bytes of a weight as it lies in memory, where it is not quantised."""
    quantise: str = "none"
    file_bytes: int = 0
    """Of the weight files."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one forward pass reads: a microbatch."""

    tokens: int
    """Computed."""
    read: int
    """Positions whose hidden state is wanted."""
    pairs: int
    """Pairs of a token and one that it sees, as if each saw its whole document."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by phase, and what the largest microbatch costs in training."""

    program: int
    weights: int
    trained: int
    activations: int
    working: int
    """Of one layer's backward pass."""
    head: int
    load: int
    save: int
    evaluate: int

    @property
    def train(self) -> int:
        return self.program + self.weights + self.trained + self.activations + self.working + self.head

    @property
    def phases(self) -> dict[Phase, int]:
        return {"load": self.load, "train": self.train, "save": self.save, "evaluate": self.evaluate}

    @property
    def peak(self) -> int:
        return max(self.phases.values())


def memory(
    sizes: Sizes,
    row: Row,
    *,
    recompute: bool,
    program: float = PROGRAM_BYTES,
    threads: int = 1,
    answers: int = 0,
    room: int = 0,
    second_base: bool = False,
) -> Memory:
    """Counts the peak of every phase.

    Args:
        row: the largest microbatch.
        recompute: only each layer's input is kept.
        program: resident bytes before a model is loaded.
        answers: rows that are answered at once; room: tokens of the longest prompt and answer.
        second_base: the comparison loads the base once more.
    """
    base = weight_bytes(sizes)
    loaded = int(program + FAMILY_BYTES)
    more = THREAD_BYTES * (min(threads, MOST_THREADS) - 1) + (COMPILED_BYTES if sizes.number == 2 else 0)
    resident = int(loaded + RUNTIME_BYTES + more)
    # Value, gradient and two moments in float32; the value of a model's own weight is counted with the model.
    trained = sizes.trained * (12 if sizes.full else 16)
    values = answers * room * sizes.layers * 2 * sizes.keys * sizes.number
    prefill = min(PREFILL_TOKENS, answers * room) * (3 * sizes.intermediate + 6 * sizes.hidden) * sizes.number
    activations, working = _held(sizes, kept(sizes, row, recompute=recompute)), _working(sizes, row)
    head = _head(sizes, row)
    held = activations + working + sum(n for n in head if n < MAPPED_BYTES)
    second, mapped = (sizes.weights * sizes.stored, sizes.file_bytes) if second_base else (0, 0)
    # Moments are given up when training ends; values and gradients stay.
    stays = trained - 8 * sizes.trained
    return Memory(
        program=resident,
        weights=base,
        trained=trained,
        activations=activations,
        working=working,
        head=sum(head),
        load=loaded + sizes.file_bytes + max(base, sizes.weights * sizes.stored),
        # The moments as bytes of each tensor, and as bytes of the file.
        save=resident + base + trained + 16 * sizes.trained + held,
        evaluate=int(resident + ANSWER_BYTES) + base + stays + mapped + second + values + prefill,
    )


def _held(sizes: Sizes, used: int) -> int:
    """What activations hold of the heap, gaps among them."""
    tile = TILE * sizes.vocabulary * sizes.number
    gaps = GAP_TILES * tile if tile < MAPPED_BYTES else 0
    return used + int(max(GAPS * used, gaps)) if used else 0


def weight_bytes(sizes: Sizes) -> int:
    """Bytes of the model's weights as they lie in memory."""
    each = QUANTISED[sizes.quantise]
    if not each:
        return sizes.weights * sizes.stored
    return int(sizes.linear * each) + (sizes.weights - sizes.linear) * sizes.stored


def kept(sizes: Sizes, row: Row, *, recompute: bool) -> int:
    """Bytes that stay for the backward pass, of all layers."""
    layers = sizes.layers - sizes.below
    if layers <= 0:
        return 0
    # Weights that are stored in another type are turned once for both passes.
    turned = sizes.linear // sizes.layers * sizes.number if sizes.full and sizes.stored != sizes.number else 0
    whole = layer_bytes(sizes, row.tokens, row.tokens) + turned
    # The last layer reads no more than it must: behind attention it goes on with the wanted rows alone.
    last = whole if sizes.path == "own" else layer_bytes(sizes, row.tokens, row.read) + turned
    if recompute and sizes.path != "own":
        entering = (2 if sizes.path == "gated" else 1) * row.tokens * sizes.hidden * sizes.number
        return layers * entering + max(whole if layers > 1 else 0, last)
    return (layers - 1) * whole + last


def layer_bytes(sizes: Sizes, tokens: int, read: int) -> int:
    """Bytes that one layer keeps, of which `read` rows go on behind attention."""
    hidden, inner, width = sizes.hidden, sizes.intermediate, sizes.queries + 2 * sizes.keys
    if sizes.path == "own":
        numbers = tokens * (14 * hidden + 4 * inner + 2 * sizes.ranks)
        return numbers * sizes.number
    attention = tokens * (hidden + width + sizes.queries)
    if sizes.normed:
        attention += tokens * (sizes.queries + sizes.keys)
    if sizes.path == "gated":
        behind = read * ((1 + sizes.norms) * hidden + 2 * inner)
    else:
        behind = read * (3 * hidden + inner)
    ranks = tokens * sizes.ranks
    return (attention + behind + ranks) * sizes.number + tokens * 4 * (2 + sizes.heads)


def _working(sizes: Sizes, row: Row) -> int:
    """The largest moment of one layer's backward pass beyond what it kept."""
    tokens = row.tokens
    inner = tokens * (4 * sizes.intermediate + 3 * sizes.hidden) * sizes.number
    # Keys' and values' gradients are summed in float32 for each query head.
    attention = tokens * (2 * sizes.queries * 4 + (3 * sizes.queries + 2 * sizes.keys) * sizes.number)
    opened = 0
    if sizes.quantise != "none":
        opened = sizes.largest * ((8 if sizes.quantise == "nf4" else 4) + sizes.number)
    return max(inner, attention) + opened


def _head(sizes: Sizes, row: Row) -> list[int]:
    """Blocks of the head: logits of two tiles (the next one is computed before the last is given up), and hidden states
    of what is read."""
    states = row.read * sizes.hidden * sizes.number
    if not sizes.vocabulary:
        return [states]
    tile = min(row.read, TILE) * sizes.vocabulary * sizes.number
    # Trained, the gradient of a tile, the sum over tiles and that of earlier microbatches stand side by side.
    own = sizes.vocabulary * sizes.hidden * 4 if sizes.full and sizes.below < sizes.layers else 0
    turned = sizes.vocabulary * sizes.hidden * sizes.number if sizes.stored != sizes.number else 0
    return [tile, tile, states, states, states, own, own, turned]
