"""How surprised the base is by each row before anything is trained, so that the hardest and the oddest are looked at
first."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np

from luthier import machine
from luthier.data import tokens
from luthier.data.source import stream
from luthier.errors import RecipeError
from luthier.evaluation.run import document_losses
from luthier.models.sources import Origin
from luthier.objectives import OBJECTIVES
from luthier.recipe import Recipe
from luthier.types import SIDES
from luthier.workflow.build import build_base
from luthier.workflow.tell import Tell


def base_losses(recipe: Recipe, origin: Origin, data: Path, *, tell: Tell) -> dict[int, float]:
    """Row of the example store -> mean loss of the base, in nats a supervised token; one forward pass over all rows.

    Args:
        data: the prepared rows of a run. Those that were left out when they were rendered have no loss.

    Raises:
        RecipeError: the base has no head for these rows, as it writes no labels.
    """
    objective = OBJECTIVES[recipe.objective.kind]  # type: ignore[union-attr]
    if objective.sequence:
        raise RecipeError(
            "a base has no loss on labels or numbers before its head is trained",
            where="data.gate.losses",
            do="leave it out; the gate's own rules of label noise look at labels",
        )
    stores = [tokens.open_store(data / side) for side in SIDES if (data / side).exists()]
    total, done = sum(len(store) for store in stores), 0
    loss: defaultdict[int, float] = defaultdict(float)
    units: defaultdict[int, float] = defaultdict(float)
    policy, _ = build_base(recipe, origin)
    with policy.inference():
        for store in stores:
            for batch in stream(store, np.arange(len(store)), recipe.training.budget):
                signals = policy.listen(batch)
                assert signals.logprobs_S is not None
                rows = store.rows[batch.columns["index_N"].numpy()]
                for row, (lost, counted) in zip(rows, document_losses(batch, signals.logprobs_S), strict=True):
                    loss[int(row)] += lost
                    units[int(row)] += counted
                done += len(rows)
                tell({"event": "progress", "what": "losses of the base", "done": done, "total": total})
    del policy
    machine.give_back()
    return {row: lost / units[row] for row, lost in loss.items() if units[row]}
