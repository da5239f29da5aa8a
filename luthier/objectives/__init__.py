"""Signals to a summed loss: pure functions, one row each. `recipe/objective.py` has the settings under the same
names."""

from luthier.objectives.contract import Objective
from luthier.objectives.supervised import (
    classify_loss,
    classify_multi_loss,
    documents_units,
    labels_units,
    regress_loss,
    tokens_loss,
    tokens_units,
)

OBJECTIVES: dict[str, Objective] = {
    "supervised": Objective(tokens_loss, tokens_units, "supervised token"),
    "text": Objective(tokens_loss, tokens_units, "token"),
    "classify": Objective(classify_loss, documents_units, "row", sequence=True),
    "classify_multi": Objective(classify_multi_loss, labels_units, "row and label", sequence=True),
    "regress": Objective(regress_loss, documents_units, "row", sequence=True),
}

__all__ = ["OBJECTIVES", "Objective"]
