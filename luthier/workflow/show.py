"""One example of a run, token by token, with what was supervised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from luthier.data import tokens
from luthier.data.render import Shown, describe
from luthier.data.store import ExampleStore
from luthier.errors import InputError
from luthier.recipe.load import load
from luthier.runs.folder import RunFolder
from luthier.types import Side
from luthier.workflow.prepare import find_model
from luthier.workflow.tell import silent


@dataclass(frozen=True, slots=True)
class Sampled:
    id: str
    file: str
    line: int
    tokens: list[Shown]
    supervised: int
    """How many tokens have a loss weight."""


def sample(root: Path, index: int, *, side: Side = "train") -> Sampled:
    """Example `index` (from 0) of a side of a run, exactly as it is trained on.

    Raises:
        InputError: the run has no such side or example.
    """
    run = RunFolder.open(Path(root))
    if not run.side(side).exists():
        raise InputError(f"this run has no {side} rows", where=str(root))
    store = tokens.open_store(run.side(side))
    if not 0 <= index < len(store):
        raise InputError("there is no such example", where=str(root), got=str(index), do=f"0 to {len(store) - 1}")
    _, tokenizer = find_model(load(run.recipe), silent)
    example = ExampleStore(run.root / "data")[int(store.rows[index])]
    sequence = store.sequence(index)
    return Sampled(
        example.id,
        example.provenance.file,
        example.provenance.line,
        describe(sequence, tokenizer),
        int((sequence.weights_T != 0).sum()),
    )
