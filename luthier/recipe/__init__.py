"""What to do: the recipe, frozen and free of torch. Its JSON schema is the form, the reference page and the validator.

`Recipe` is the whole of it; `load` reads YAML. Values left out (`null`) are derived by `workflow.plan` from the model
and the data; the resolved recipe that a run folder holds has none of them left.
"""

from typing import Literal

from pydantic import model_validator

from luthier.recipe.base import Part
from luthier.recipe.data import Columns, Data, Format, Split
from luthier.recipe.evaluation import Evaluation, Metric
from luthier.recipe.model import PROMPTS, Adapter, Full, Lora, Model, Peft
from luthier.recipe.objective import Classify, ClassifyMulti, Objective, Regress, Supervised, TextTokens
from luthier.recipe.training import Training

__all__ = [
    "Adapter",
    "Classify",
    "ClassifyMulti",
    "Columns",
    "Data",
    "Evaluation",
    "Format",
    "Full",
    "Lora",
    "Metric",
    "Model",
    "Objective",
    "Part",
    "Peft",
    "Recipe",
    "Regress",
    "Split",
    "Supervised",
    "TextTokens",
    "Training",
]


class Recipe(Part):
    """A whole run: which model, which data, what is learnt and how, and how it is judged."""

    version: Literal[1] = 1
    """Version of this format."""
    model: Model
    data: Data
    objective: Objective | None = None
    """What is learnt. Left out: supervised for conversations, text for plain text, classify, classify_multi or regress
    for labelled rows."""
    adapter: Adapter | None = None
    """Which weights are trained. Left out: LoRA on all linear layers, or full for an encoder's classifier."""
    training: Training = Training()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _adapter_on_its_base(self) -> "Recipe":
        quantise, adapter = self.model.quantise, self.adapter
        if quantise != "none" and isinstance(adapter, Full):
            raise ValueError("`model.quantise` is for a frozen base, and `adapter.kind: full` trains its weights")
        if quantise != "none" and isinstance(adapter, Peft) and adapter.method not in PROMPTS:
            raise ValueError(f"`model.quantise`: PEFT's {adapter.method} cannot stand on a base that is quantised here")
        if quantise == "none" and isinstance(adapter, Lora) and adapter.init == "loftq":
            raise ValueError("`adapter.init: loftq` makes up for a quantised base; set `model.quantise`")
        return self
