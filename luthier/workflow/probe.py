"""How fast this machine runs the parts of a step: two layers of the model's own kind and sizes with random weights, its
head, the optimizer, a checkpoint's way to the disk and a few decoding steps, all within a few seconds.

What was measured is kept for a day in the user's cache, under all that it depends on:

    probes/KEY.json   the fields of `budget.seconds.Speed`
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from luthier import cache, machine
from luthier.batch import Batch
from luthier.budget.seconds import Costs, Speed
from luthier.data.pack import pack
from luthier.kernels.build import library
from luthier.models import adapters
from luthier.models.attention import Layout
from luthier.models.families import ENCODERS, SEQUENCE_HEADS
from luthier.models.load import load_config
from luthier.models.logprobs import TILE, logits, token_logprobs
from luthier.models.policy import Policy, policy
from luthier.models.shape import Shape, read_shape
from luthier.models.sources import Origin
from luthier.recipe import Full, Lora, Recipe, Training
from luthier.sampling.choose import Decoding, choose
from luthier.sampling.local import generate
from luthier.training.optim import adamw, clip, global_norm
from luthier.types import Sequence

KEPT_SECONDS = 24 * 3600
LAYERS = 2
VOCABULARY = 512
"""Tokens of the model that is probed; the head is measured by itself."""
PATTERNS = ((4, 32), (8, 128), (2, 512))
"""(documents, tokens of each): a call, its tokens and its pairs of tokens weigh differently in each."""
FRESH = (127, 125, 123)
"""Tokens of eight documents, in numbers that are there for the first time."""
REPEATS, MOST_SECONDS = 4, 0.5
"""A part is run so many times, or for so long."""
WEIGHTS = 1 << 22
"""Trained weights of the optimizer's step that is measured, at most."""
BYTES = 1 << 24


class _Timed(NamedTuple):
    seconds: float
    """The middle one."""
    spread: float
    """Largest over smallest, less one."""


def cached(recipe: Recipe, origin: Origin) -> Speed | None:
    """What was measured of this recipe's parts within a day, on this machine, with this version of the kernels."""
    file = _file(recipe, read_shape(origin))
    try:
        if time.time() - file.stat().st_mtime > KEPT_SECONDS:
            return None
        known = json.loads(file.read_text(encoding="utf-8"))
        known.update(forward=Costs(**known["forward"]), both=Costs(**known["both"]))
        return Speed(**known)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def forget(recipe: Recipe, origin: Origin) -> None:
    """Has the next probe measure anew."""
    _file(recipe, read_shape(origin)).unlink(missing_ok=True)


def probe(recipe: Recipe, origin: Origin) -> Speed:
    """Measures, unless that was done within a day.

    Args:
        recipe: resolved.
    """
    known = cached(recipe, origin)
    if known is not None:
        return known
    shape, program = read_shape(origin), machine.resident_bytes()
    if recipe.training.threads is not None:
        torch.set_num_threads(recipe.training.threads)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = _measured(recipe, origin, shape, program)
    file = _file(recipe, shape)
    # A cache that cannot be written costs the next command these seconds again.
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(dataclasses.asdict(found)), encoding="utf-8")
        beside.replace(file)
    except OSError:
        pass
    return found


def _file(recipe: Recipe, shape: Shape) -> Path:
    adapter = recipe.adapter
    assert adapter is not None
    parts = [
        machine.instructions(),
        recipe.training.threads,
        dataclasses.asdict(shape),
        recipe.model.precision,
        recipe.model.quantise,
        adapter.model_dump(mode="json"),
        recipe.objective.kind if recipe.objective is not None else None,
        recipe.evaluation.batch,
        str(getattr(library(), "_name", "")),
        torch.__version__,
    ]
    return cache.root() / "probes" / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.json"


def _measured(recipe: Recipe, origin: Origin, shape: Shape, program: int) -> Speed:
    dtype = torch.bfloat16 if recipe.model.precision == "bf16" else torch.float32
    full, answers = isinstance(recipe.adapter, Full), recipe.objective is not None and recipe.objective.kind in (
        "supervised", "text",
    )  # fmt: skip
    # As `workflow.build` has it: weights that are trained themselves are stored in float32.
    stored = torch.float32 if full else dtype
    subject = _subject(recipe, origin, stored)
    subject.dtype = dtype
    timed: list[_Timed] = []
    forward, both = _layer_costs(subject, shape, timed)
    head_forward = head_both = decode_layer = decode_head = 0.0
    if answers:
        weight = torch.randn(shape.vocabulary, shape.hidden).mul_(0.02).to(stored).requires_grad_(full)
        head_forward, head_both = _head_costs(weight, dtype, timed)
        decode_layer, decode_head = _decoding(subject, weight.detach(), recipe.evaluation.batch, timed)
    return Speed(
        forward=forward,
        both=both,
        head_forward=head_forward,
        head_both=head_both,
        weight=_optimizer(recipe.training, timed),
        saved_byte=_disk(timed),
        answer_layer=decode_layer,
        answer_head=decode_head,
        program=program,
        spread=statistics.median(one.spread for one in timed),
    )


def _subject(recipe: Recipe, origin: Origin, stored: torch.dtype) -> Policy:
    """Two layers of the model with the recipe's adapter on both, in training."""
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = load_config(origin, remote_code=recipe.model.remote_code is not None)
    whole = recipe.adapter is not None and recipe.adapter.kind == "peft"
    config.num_hidden_layers = LAYERS
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:LAYERS]
    if not whole:
        # PEFT's methods may name tokens, and are given the vocabulary as it is.
        config.vocab_size = VOCABULARY
        config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 1, 2
    config.use_cache = False
    sequence = recipe.objective is not None and recipe.objective.kind not in ("supervised", "text")
    sequence = sequence and config.model_type in SEQUENCE_HEADS
    family: Any = AutoModelForSequenceClassification if sequence else AutoModelForCausalLM
    if not sequence and config.model_type in ENCODERS:
        family = AutoModel
    model = family.from_config(config, attn_implementation="eager", dtype=stored)
    result = policy(model, sequence=sequence)
    adapter = recipe.adapter
    assert adapter is not None
    if isinstance(adapter, Full):
        adapter = adapter.model_copy(update={"freeze_layers": 0})
    elif isinstance(adapter, Lora):
        begun = "default" if adapter.init != "loftq" else "gaussian"
        plain: dict[str, Any] = {"layers": None, "init": begun, "modules_to_save": [], "loftq_iterations": 1}
        adapter = adapter.model_copy(update=plain)
    adapters.attach(model, adapter, seed=0, head=(), quantise=recipe.model.quantise)
    model.train()
    return result


def _layer_costs(subject: Policy, shape: Shape, timed: list[_Timed]) -> tuple[Costs, Costs]:
    """Costs of a layer without and with its backward pass."""
    rows, forward, both = [], [], []
    for documents, length in PATTERNS:
        length = min(length, shape.positions)
        batch = _batch(documents, length)
        rows.append((1.0, batch.tokens, documents * length * length))
        with subject.inference():
            forward.append(_time(partial(_forward, subject, batch), timed))
        both.append(_time(partial(_both, subject, batch), timed))
    batches = [_batch(8, min(length, shape.positions)) for length in FRESH]
    whole = _fresh([partial(_both, subject, batch) for batch in batches])
    # The sizes of the forward pass were there in the passes above; these are one document fewer.
    batches = [_batch(7, min(length, shape.positions)) for length in FRESH]
    with subject.inference():
        ahead = _fresh([partial(_forward, subject, batch) for batch in batches])
    return _solved(rows, forward, ahead), _solved(rows, both, whole)


def _forward(subject: Policy, batch: Batch) -> torch.Tensor:
    return subject.hidden(batch.tokens_T, batch.positions_T, Layout(bounds=batch.bounds))


def _both(subject: Policy, batch: Batch) -> None:
    _forward(subject, batch).sum().backward()  # type: ignore[no-untyped-call]
    for parameter in subject.model.parameters():
        parameter.grad = None


def _fresh(works: list[Callable[[], object]]) -> float:
    """By how much the first time takes longer than the second."""
    more = []
    for work in works:
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            work()
            taken.append(time.perf_counter() - began)
        more.append(taken[0] - min(taken[1:]))
    return max(0.0, statistics.median(more))


def _batch(documents: int, length: int) -> Batch:
    ids = np.random.default_rng(0).integers(3, VOCABULARY, (documents, length)).astype(np.int32)
    ones = np.ones(length, dtype=np.float32)
    return pack([Sequence(id=str(i), tokens_T=ids[i], weights_T=ones) for i in range(documents)])


def _solved(rows: list[tuple[float, int, int]], taken: list[float], shape: float) -> Costs:
    """What a call, a token and a pair take, none less than nothing: least squares of relative errors."""
    scale = np.asarray(taken)[:, None]
    found = nonnegative(np.asarray(rows, dtype=float) / scale, np.ones(len(taken)))
    call, token, pair = (float(x) / LAYERS for x in found)
    return Costs(call, token, pair, shape)


def nonnegative(A: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """The x >= 0 that brings A x nearest to b; A has few columns.

    Where it is greater than zero x is the free solution in those columns alone, so that of all sets of columns is the
    nearest one whose solution is nowhere negative.
    """
    columns = range(A.shape[1])
    tried = []
    for chosen in chain.from_iterable(combinations(columns, n) for n in range(len(columns) + 1)):
        x = np.zeros(len(columns))
        x[list(chosen)] = np.linalg.lstsq(A[:, chosen], b, rcond=None)[0]
        if (x >= 0).all():
            tried.append(x)
    return min(tried, key=lambda x: float(np.linalg.norm(A @ x - b)))


def _head_costs(weight: torch.Tensor, dtype: torch.dtype, timed: list[_Timed]) -> tuple[float, float]:
    """Seconds for a position, without and with the backward pass."""
    count = 2 * TILE
    states = torch.randn(count, weight.shape[1]).to(dtype).requires_grad_()
    target = torch.randint(len(weight), (count,))

    def step() -> None:
        token_logprobs(states, weight, target).sum().backward()  # type: ignore[no-untyped-call]
        weight.grad = states.grad = None

    with torch.no_grad():
        forward = _time(lambda: token_logprobs(states, weight, target), timed)
    return forward / count, _time(step, timed) / count


def _optimizer(training: Training, timed: list[_Timed]) -> float:
    parameter = nn.Parameter(torch.zeros(WEIGHTS // 256, 256))
    parameter.grad = torch.full_like(parameter, 1e-3)
    optimizer = adamw({"weight": parameter}, training, rate=1e-4)

    def step() -> None:
        clip([parameter], 2 * global_norm([parameter]), global_norm([parameter]))
        optimizer.step()

    return _time(step, timed) / WEIGHTS


def _disk(timed: list[_Timed]) -> float:
    """Seconds for a byte that is written, brought to the disk and hashed."""
    data = bytes(BYTES)

    def save() -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            hashlib.sha256(data).digest()

    return _time(save, timed) / BYTES


def _decoding(subject: Policy, weight: torch.Tensor, batch: int, timed: list[_Timed]) -> tuple[float, float]:
    """Seconds of a decoding step in one layer, and of its choice of tokens."""
    prompts = [[3 + i % 7] * 64 for i in range(batch)]

    def run(tokens: int) -> Callable[[], object]:
        decoding = Decoding(max_new_tokens=tokens, stop=frozenset())
        return lambda: list(generate(subject, prompts, decoding, batch=batch))

    short, long = _time(run(2), timed), _time(run(34), timed)
    states = torch.randn(batch, weight.shape[1]).to(subject.dtype)
    with torch.no_grad():
        greedy = Decoding(max_new_tokens=1, stop=frozenset())
        head = _time(lambda: choose(logits(states, weight, None, None), greedy, None), timed)
    return max(0.0, long - short) / 32 / LAYERS, head


def _time(work: Callable[[], object], timed: list[_Timed]) -> float:
    """The middle time of some repetitions, after one that is not counted."""
    work()
    taken: list[float] = []
    while len(taken) < REPEATS and (len(taken) < 2 or sum(taken) < MOST_SECONDS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    timed.append(_Timed(statistics.median(taken), max(taken) / min(taken) - 1))
    return timed[-1].seconds
