"""`luthier prove`: the checks of `luthier.proof` on the model and the rows of a recipe. Keeps nothing on the disk."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from luthier import machine
from luthier.data import tokens
from luthier.data.source import EpochSource
from luthier.data.tokens import TokenStore
from luthier.errors import DataError, OutOfMemory
from luthier.models.adapters import trained
from luthier.models.load import load_model
from luthier.models.policy import Policy, dropouts
from luthier.models.shape import Shape, read_shape
from luthier.proof import CHECKS, Proof, Row, Start, Subject
from luthier.recipe import Full, Lora, Recipe
from luthier.training.optim import adamw
from luthier.types import Sequence as Document
from luthier.workflow.build import build, head_of
from luthier.workflow.package import save_model
from luthier.workflow.prepare import Prepared, prepare
from luthier.workflow.tell import Tell, counted, silent

ROWS = 4
"""Rows that the model is given, if not said otherwise."""
MASK_ROWS = 500
"""Rows whose mask is read back at most, spread evenly over the training rows."""
RESUME_STEPS = 4
STIR = 0.02
"""Spread of what is added to an adapter, which at its start changes nothing and would prove nothing."""
MEMORY_SHARE = 0.25
"""Of the machine's memory, for what the slow side keeps of two padded rows."""
LOGITS, SCORES, STATES = 4, 3, 16
"""Copies that autograd keeps: of a row's logits, of a layer's attention scores, of a layer's hidden states."""
_QUANTISED = "the adapter belongs to the quantised base, which PEFT does not have"


@dataclass(frozen=True)
class Proven:
    """What was shown, and on what."""

    recipe: Recipe
    """Resolved."""
    proofs: list[Proof]
    rows: int
    """Rows that the model was given."""
    longest: int
    """Tokens of the longest of them."""
    left_out: int
    """Tokens of the longest training row, where it was too long for the slow side and this machine; else 0."""
    dtype: str
    """What was computed in, except for `resume`, which runs as the recipe says."""

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(proof.passed is not False for proof in self.proofs)


def prove(recipe: Recipe, *, rows: int = ROWS, float64: bool = False, tell: Tell = silent) -> Proven:
    """Makes every check on the recipe's own model and rows.

    Args:
        rows: how many rows the model is given: the shortest that have something to learn, and the longest.
        float64: compute in it instead of float32; takes twice the memory and more time, and bounds are narrower.

    Raises:
        LuthierError: whatever stops a run before its first step.
    """
    with tempfile.TemporaryDirectory(prefix="luthier-prove-") as name:
        folder = Path(name)
        # The slow side is torch on the processor.
        training = recipe.training.model_copy(update={"device": "cpu"})
        prepared = prepare(recipe.model_copy(update={"training": training}), folder, tell=tell)
        store = tokens.open_store(folder / "data" / "train")
        shape = read_shape(prepared.origin)
        dtype = torch.float64 if float64 else torch.float32
        _refuse_too_large(shape, dtype)
        fits = _longest_that_fits(shape, dtype, sequence=head_of(prepared.recipe) is not None)
        chosen = choose(store, rows, fits)
        documents = [store.sequence(i) for i in chosen]
        subject = _subject(prepared, store, documents, dtype)
        names = counted(CHECKS, "proving", len(CHECKS), tell)
        proofs = [CHECKS[check](subject) for check in names]
    longest = int(store.lengths.max())
    return Proven(
        prepared.recipe,
        proofs,
        rows=len(documents),
        longest=max(len(d.tokens_T) for d in documents),
        left_out=longest if longest > fits else 0,
        dtype=str(dtype).removeprefix("torch."),
    )


def choose(store: TokenStore, rows: int, fits: int) -> list[int]:
    """Indices of the shortest sequences that have something to learn, and of the longest of at most `fits` tokens.

    Raises:
        DataError: none is short enough.
    """
    learnt = np.add.reduceat(store.weights != 0, store.offsets[:-1]) > 0
    usable = np.flatnonzero((store.lengths <= fits) & (learnt | (store.labels.shape[1] > 0)))
    if not len(usable):
        raise DataError(
            "no training row is short enough to be computed in the slow way on this machine",
            got=f"the shortest has {int(store.lengths.min()):,} tokens, and {fits:,} fit",
            do="a machine with more memory, or without --float64",
        )
    order = usable[np.argsort(store.lengths[usable], kind="stable")]
    return [int(i) for i in order[: max(0, min(rows, len(order)) - 1)]] + [int(order[-1])]


def _refuse_too_large(shape: Shape, dtype: torch.dtype) -> None:
    """Two models stand in memory at a time: the one that is proved and the one that is resumed."""
    need, there = 2 * shape.weights * dtype.itemsize, machine.memory_bytes()
    if need > there:
        raise OutOfMemory(
            f"the model does not fit twice into this machine in {str(dtype).removeprefix('torch.')}",
            got=f"{need / 1e9:.1f} GB of weights, {there / 1e9:.1f} GB of memory",
            do="leave --float64 out, or prove on a larger machine",
        )


def _longest_that_fits(shape: Shape, dtype: torch.dtype, *, sequence: bool) -> int:
    """Tokens of the longest row that the slow side has room for: attention scores are kept for every layer and head,
    [tokens, tokens] each, which the fast side never does."""
    room = MEMORY_SHARE * machine.memory_bytes() / (2 * dtype.itemsize)
    per_token = STATES * shape.layers * shape.hidden + (0 if sequence else LOGITS * shape.vocabulary)
    per_pair = SCORES * shape.layers * shape.heads
    return int((math.sqrt(per_token**2 + 4 * per_pair * room) - per_token) / (2 * per_pair))


def _subject(prepared: Prepared, store: TokenStore, documents: Sequence[Document], dtype: torch.dtype) -> Subject:
    recipe, origin = prepared.recipe, prepared.origin
    training, objective = recipe.training, recipe.objective
    assert objective is not None
    assert training.rate is not None
    rate = training.rate

    plus = recipe.adapter.plus if isinstance(recipe.adapter, Lora) else None

    def fresh() -> Start:
        policy, _ = build(recipe, origin)
        return Start(policy, adamw(trained(policy.model), training, rate=rate, plus=plus))

    def base() -> nn.Module:
        allowed = recipe.model.remote_code is not None
        return load_model(origin, head=head_of(recipe), dtype=dtype, seed=training.seed, remote_code=allowed).model

    policy, _ = build(recipe, origin, dtype=dtype)
    shares = policy.shares
    without_dropout(policy.model)
    if not isinstance(recipe.adapter, Full):
        stir(policy)
    rows, cut = _mask_rows(prepared, store)
    source = EpochSource(
        store,
        batch_examples=min(training.batch_examples, ROWS),
        microbatch_tokens=training.budget,
        epochs=max(1, RESUME_STEPS * training.batch_examples / len(store) + 1),
        seed=training.seed,
        max_steps=RESUME_STEPS,
        share=shares,
    )
    return Subject(
        policy=policy,
        kind=objective.kind,
        documents=documents,
        rows=rows,
        cut_rows=cut,
        tokenizer=prepared.tokenizer,
        turns=getattr(objective, "turns", "all"),
        labels=getattr(objective, "labels", None) or (),
        fresh=fresh,
        source=source,
        training=training,
        base=base,
        save=lambda folder, policy: save_model(folder, recipe, origin, policy),
        no_files="the recipe trains the model's own weights" if isinstance(recipe.adapter, Full) else "",
        no_peft=_QUANTISED if recipe.model.quantise != "none" else "",
    )


def without_dropout(model: nn.Module) -> None:
    """Switches every dropout off: what it draws depends on how a step is cut, and nothing could be compared."""
    for module in model.modules():
        for place, key, _ in dropouts(module):
            place[key] = 0.0


def stir(policy: Policy) -> None:
    """Moves what is trained a little away from where it begins, always in the same way."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained(policy.model).values():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.add_(STIR * noise.to(parameter.dtype))


def _mask_rows(prepared: Prepared, store: TokenStore) -> tuple[list[Row], int]:
    """Rows with all of their sequences, and how many were passed over because they were cut."""
    recipe = prepared.recipe
    limit = recipe.training.max_length
    cutting = recipe.training.on_over_long in ("cut_prompt", "cut_end") and not store.labels.shape[1]
    found, cut = [], 0
    every = np.unique(store.rows)
    for row in every[np.unique(np.linspace(0, len(every) - 1, MASK_ROWS).astype(int))]:
        documents = [store.sequence(int(i)) for i in np.flatnonzero(store.rows == row)]
        example = prepared.loaded.store[int(row)]
        if cutting and len(documents) == 1 and len(documents[0].tokens_T) == limit:
            cut += 1
        else:
            found.append(Row(example, documents))
    return found, cut
