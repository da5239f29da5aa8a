"""What a run will take, before it starts: memory by phase from sizes and counts, and time where a probe has measured
this machine. `check`, `plan` and every run say it from here. Free of torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from luthier import machine
from luthier.budget.memory import PROGRAM_BYTES, Memory, Row, Sizes, memory
from luthier.budget.seconds import Seconds, Speed, pace, seconds
from luthier.budget.work import Pass, Work, largest
from luthier.data import tokens
from luthier.data.prefixes import Forest, apart, microbatches, prune, shared
from luthier.data.tokens import TokenStore
from luthier.models.families import ENCODERS
from luthier.models.shape import UNGATED, Shape, read_shape
from luthier.models.sources import Origin
from luthier.recipe import Full, Lora, Peft, Recipe, Supervised, TextTokens
from luthier.types import JSON

MOST_STEPS = 200
"""Steps that are counted one by one; of a longer run so many, evenly chosen."""
WINDOW = 256
"""Sequences that are packed together in passes without steps (`data.source.stream`)."""
USUAL_TOKENS = 2048
"""Tokens of a microbatch that is left open: matrix products on a CPU are as fast at 1,024 rows as at 4,096, and memory
grows with each."""
LEAST_TOKENS = 256
RESERVE = 0.9
"""Share of the free memory that a plan fills."""
GATED = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
"""Families of `models.stack`."""
GATE_BYTES = 285e6
"""What the data gate leaves in the process that goes on to train: DuckDB, Arrow and their buffers, which malloc_trim
does not reach (800 rows, 2026-11)."""
PEFT_RANK = 8
"""Rank of LoRA whose weights stand for those of another method: few of them train more."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is expected of a run."""

    sizes: Sizes
    work: Work
    memory: Memory
    seconds: Seconds | None
    """None where nothing has been measured on this machine."""
    device: str = "cpu"
    """A word of `recipe.Training.device`: whose memory it is."""

    def as_dict(self) -> JSON:
        return {
            "memory_bytes": self.memory.peak,
            "machine_memory_bytes": machine.memory_bytes(self.device),
            "free_memory_bytes": machine.free_bytes(self.device),
            "phases": dict(self.memory.phases),
            "weights": self.sizes.weights + (0 if self.sizes.full else self.sizes.trained),
            "trained_weights": self.sizes.trained,
            "steps": self.work.steps,
            "tokens": self.work.tokens,
            "computed": round(self.work.train.tokens),
            "largest_microbatch": self.work.largest.tokens,
            "training_seconds": None if self.seconds is None else round(self.seconds.train, 1),
            "seconds": None if self.seconds is None else round(self.seconds.total, 1),
            "spread": None if self.seconds is None else round(self.seconds.spread, 2),
        }


def forecast(
    recipe: Recipe, origin: Origin, data: Path, *, speed: Speed | None = None, program: int | None = None
) -> Forecast:
    """What a resolved recipe takes on this machine.

    Args:
        data: the folder of prepared rows, RUN/data.
        speed: what a probe measured.
        program: resident bytes of this process before a model is loaded, where it is the one that will train.
    """
    shape = read_shape(origin)
    sizes = sizes_of(recipe, shape, origin)
    work = work_of(recipe, shape, data)
    return Forecast(
        sizes,
        work,
        _memory(recipe, sizes, work, program or (speed.program if speed else None)),
        None if speed is None else seconds(sizes, work, speed, recompute=recipe.training.recompute is True),
        recipe.training.device,
    )


def expected(events: list[JSON]) -> JSON | None:
    """What was expected of a run when its training began, with what its steps took; None where nothing was.

    Where no probe had measured this machine, the time is told by the pace of the first steps.
    """
    told = next((e for e in events if e["event"] == "forecast"), None)
    steps = [e for e in events if e["event"] == "step"]
    if told is None or not steps:
        return None
    found = {key: told[key] for key in ("memory_bytes", "steps", "computed", "training_seconds", "spread")}
    measured = told["training_seconds"] is not None
    if not measured:
        first = pace([(e["computed"], e["seconds"]) for e in steps])
        found |= {"training_seconds": round(first.token * told["computed"], 1), "spread": round(first.spread, 2)}
    return {**found, "by": "probe" if measured else "first steps", "took": round(sum(e["seconds"] for e in steps), 1)}


def _memory(recipe: Recipe, sizes: Sizes, work: Work, program: int | None, *, recompute: bool | None = None) -> Memory:
    compared = recipe.evaluation.enabled and work.test.rows
    kept = isinstance(recipe.adapter, Lora) and not recipe.adapter.modules_to_save
    again = isinstance(recipe.adapter, Full) or not sizes.vocabulary or not kept
    return memory(
        sizes,
        work.largest,
        recompute=recipe.training.recompute is True if recompute is None else recompute,
        program=(PROGRAM_BYTES if program is None else program) + (GATE_BYTES if recipe.data.gate.off is None else 0),
        threads=recipe.training.threads or machine.cores(),
        answers=min(work.batch, work.answers),
        room=work.room,
        second_base=bool(compared) and again,
    )


def sizes_of(recipe: Recipe, shape: Shape, origin: Origin) -> Sizes:
    """The sizes that memory and time follow from."""
    adapter = recipe.adapter
    assert adapter is not None
    layers, hidden, inner = shape.layers, shape.hidden, shape.intermediate
    linears = 4 + (2 if shape.family in UNGATED else 3)
    below, ranks, trained = 0, 0, 0
    if isinstance(adapter, Full):
        below = adapter.freeze_layers
        share = 1 - below / layers
        trained = round(shape.linear_weights * share) if below else shape.weights
    elif isinstance(adapter, Lora):
        chosen = sorted(set(adapter.layers)) if adapter.layers is not None else list(range(layers))
        below = chosen[0] if chosen else 0
        share = 1.0 if adapter.targets == "all-linear" else min(1.0, len(adapter.targets) / linears)
        ranks = round(adapter.rank * linears * share)
        trained = round(shape.lora_weights(adapter.rank) * share * len(chosen) / layers)
    else:
        ranks, trained = PEFT_RANK * linears, shape.lora_weights(PEFT_RANK)
    own = isinstance(adapter, Peft) or (isinstance(adapter, Lora) and (adapter.dora or adapter.dropout > 0))
    fast = "gated" if shape.family in GATED else "centred" if shape.family in UNGATED else "own"
    return Sizes(
        path="own" if own or shape.head_size % 16 else fast,  # type: ignore[arg-type]
        layers=layers,
        hidden=hidden,
        queries=shape.heads * shape.head_size,
        keys=shape.key_value_heads * shape.head_size,
        heads=shape.heads,
        intermediate=inner,
        vocabulary=shape.vocabulary if isinstance(recipe.objective, (Supervised, TextTokens)) else 0,
        norms=2 if shape.family == "gemma3_text" else 0,
        normed=shape.family in ("gemma3_text", "qwen3"),
        weights=shape.weights,
        linear=shape.linear_weights,
        largest=hidden * inner,
        trained=trained,
        full=isinstance(adapter, Full),
        below=min(below, layers),
        ranks=ranks,
        number=2 if recipe.model.precision == "bf16" else 4,
        stored=2 if recipe.model.precision == "bf16" and not isinstance(adapter, Full) else 4,
        quantise=recipe.model.quantise,
        file_bytes=_file_bytes(origin, shape),
    )


def _file_bytes(origin: Origin, shape: Shape) -> int:
    # A GGUF file is kept dequantised to float32, and that is what is read.
    if origin.path.is_file():
        return shape.weights * 4
    return sum((origin.path / name).stat().st_size for name in origin.weights)


def work_of(recipe: Recipe, shape: Shape, data: Path) -> Work:
    """Counts what a run computes, from the prepared rows in `data`."""
    training, evaluation = recipe.training, recipe.evaluation
    store = tokens.open_store(data / "train")
    causal = shape.family not in ENCODERS
    share = causal and getattr(recipe.adapter, "dropout", 0.0) == 0
    heads = isinstance(recipe.objective, (Supervised, TextTokens))
    per_epoch = -(-len(store) // training.batch_examples)
    steps = max(1, round(training.epochs * per_epoch))
    steps = min(steps, training.max_steps or steps)
    chosen = np.unique(np.linspace(0, steps - 1, min(steps, MOST_STEPS)).round().astype(int))
    budget = training.microbatch_tokens or _usual(store)
    rows: list[Row] = []
    plain = 0
    for indices in _orders(store, training.seed, training.batch_examples, chosen.tolist()):
        plain += int(store.lengths[indices].sum())
        rows += _rows(store, indices, budget, share=share, heads=heads)
    times = steps / len(chosen)
    sides = {side: tokens.open_store(data / side) for side in ("validation", "test") if (data / side).exists()}
    validation, test = (_side(sides.get(side), budget, share=share, heads=heads) for side in ("validation", "test"))
    if not evaluation.enabled:
        test = Pass()
    elif evaluation.limit is not None and "test" in sides:
        test = replace(test, times=min(1.0, evaluation.limit / len(sides["test"])))
    every = training.validate_every or 1
    ways = sides.get("test") if evaluation.enabled and evaluation.generate and recipe.objective is not None else None
    return Work(
        steps=steps,
        tokens=round(plain * times),
        train=Pass(tuple(rows), times),
        largest=largest(rows),
        validation=validation,
        validations=-(-steps // every) if validation.rows else 0,
        checkpoints=1 + -(-steps // (training.checkpoint_every or every)),
        test=test,
        passes_over_frozen=min(1.0, per_epoch / steps),
        **(_asked(ways, recipe, test.times) if isinstance(recipe.objective, Supervised) else {"prompts": Pass()}),
    )


def _usual(store: TokenStore) -> int:
    return max(USUAL_TOKENS, int(store.lengths.max()))


def _orders(store: TokenStore, seed: int, size: int, steps: list[int]) -> Iterator[Any]:
    """Indices of the sequences of some steps: `data.source.EpochSource.examples`, without torch."""
    per_epoch = -(-len(store) // size)
    known, order = -1, np.empty(0, dtype=np.int64)
    for step in steps:
        epoch, within = divmod(step, per_epoch)
        if epoch != known:
            known, order = epoch, np.random.default_rng([seed, epoch]).permutation(len(store))
        yield order[within * size : (within + 1) * size]


def _rows(store: TokenStore, indices: Any, budget: int, *, share: bool, heads: bool) -> list[Row]:
    """The microbatches of these sequences, as `data.pack` makes them."""
    documents = [store.sequence(int(i)) for i in indices]
    found = shared([d.tokens_T for d in documents]) if share else None
    forest = found or apart([len(d.tokens_T) for d in documents])
    rows = []
    for group in microbatches(forest, budget):
        part = prune(forest, group)
        read = sum(int(np.count_nonzero(documents[i].weights_T[1:])) for i in group) if heads else len(group)
        rows.append(Row(part.computed, min(read, part.computed), _pairs(part)))
    return rows


def _pairs(forest: Forest) -> int:
    return sum((end - start) * end for start, end in zip(forest.starts, forest.ends, strict=True))


def _side(store: TokenStore | None, budget: int, *, share: bool, heads: bool) -> Pass:
    if store is None:
        return Pass()
    most = 4 * WINDOW
    windows = [np.arange(a, min(a + WINDOW, len(store), most)) for a in range(0, min(len(store), most), WINDOW)]
    rows = [row for indices in windows for row in _rows(store, indices, budget, share=share, heads=heads)]
    return Pass(tuple(rows), len(store) / min(len(store), most))


def _asked(store: TokenStore | None, recipe: Recipe, share: float) -> dict[str, Any]:
    """Prompts and expected answers of the test rows: what is learnt last in a row is its answer."""
    if store is None:
        return {"prompts": Pass()}
    most = recipe.evaluation.max_new_tokens or 256
    ends = [0, *accumulate(int(n) for n in store.lengths)]
    prompts, answers = [], 0
    for a, b in pairwise(ends):
        learnt = np.flatnonzero(store.weights[a:b])
        if not len(learnt):
            continue
        gaps = np.flatnonzero(np.diff(learnt) > 1)
        start = int(learnt[gaps[-1] + 1]) if len(gaps) else int(learnt[0])
        prompts.append(start)
        answers += min(most, int(learnt[-1]) - start + 1)
    if not prompts:
        return {"prompts": Pass()}
    rows = tuple(Row(n, 1, n * n) for n in prompts)
    return {
        "prompts": Pass((Row(sum(r.tokens for r in rows), len(rows), sum(r.pairs for r in rows)),), share),
        "answers": round(len(rows) * share),
        "answer_tokens": round(answers * share),
        "most_tokens": most,
        "batch": recipe.evaluation.batch,
        "room": max(prompts) + most,
    }


@dataclass(frozen=True, slots=True)
class Fit:
    """How a run is made to fit."""

    microbatch_tokens: int
    recompute: bool
    why: str
    why_recompute: str


def fit(recipe: Recipe, origin: Origin, data: Path, *, free: float | None = None) -> Fit:
    """Fills in what the recipe leaves open: first each layer's input alone is kept, then microbatches are made smaller,
    down to the longest example.

    Args:
        free: bytes of memory that there are; left out, those of this machine.
    """
    shape = read_shape(origin)
    store = tokens.open_store(data / "train")
    sizes, longest = sizes_of(recipe, shape, origin), int(store.lengths.max())
    room = RESERVE * (machine.free_bytes(recipe.training.device) if free is None else free)
    given, asked = recipe.training.microbatch_tokens, recipe.training.recompute
    usual = _usual(store) if given is None else given
    lower = [] if given is not None else [n for n in (1024, 512, LEAST_TOKENS) if longest < n < usual]
    lower += [longest] if given is None and longest < usual else []
    choices = [(usual, False), *((n, True) for n in (usual, *lower))] if asked == "auto" else [
        (n, asked is True) for n in (usual, *lower)
    ]  # fmt: skip
    if sizes.path == "own":
        # Layers that run by themselves keep everything whatever is asked.
        choices = [(n, asked is True) for n in (usual, *lower)]
    for budget, recompute in choices:
        tried = recipe.model_copy(
            update={"training": recipe.training.model_copy(update={"microbatch_tokens": budget})},
        )
        if _memory(tried, sizes, work_of(tried, shape, data), None, recompute=recompute).train <= room:
            break
    small = "fewer tokens would be slower and more would take more memory"
    why = small if budget >= _usual(store) else f"what fits into {room / 1e9:.1f} GB of free memory"
    if budget == longest and budget > USUAL_TOKENS:
        why = "the longest example, which is computed at once"
    off = "there is memory enough to keep what the backward pass needs"
    on = f"what the backward pass needs would not fit into {room / 1e9:.1f} GB of free memory"
    return Fit(budget, recompute, why, on if recompute else off)
