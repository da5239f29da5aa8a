"""What is learnt. One small class for each objective; `luthier.objectives` has the function of the same `kind`."""

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.base import Part


class Supervised(Part):
    """Assistant turns of conversations: the sum of -log p over their tokens."""

    kind: Literal["supervised"] = "supervised"
    turns: Literal["all", "last"] = "all"
    """Learn every assistant turn and its end-of-turn token, or the last one only. A message's own `weight`
    overrides."""


class TextTokens(Part):
    """Every token of plain text (continued pre-training)."""

    kind: Literal["text"] = "text"


class Classify(Part):
    """One label out of several: cross-entropy on a head over the document."""

    kind: Literal["classify"] = "classify"
    labels: list[str] | None = None
    """Label names in the order of the outputs. Left out: the labels of the training rows, sorted."""


class ClassifyMulti(Part):
    """Any number of labels: a yes or no for each."""

    kind: Literal["classify_multi"] = "classify_multi"
    labels: list[str] | None = None
    """Label names in the order of the outputs. Left out: the labels of the training rows, sorted."""


class Regress(Part):
    """A number: squared error on a head with one output."""

    kind: Literal["regress"] = "regress"


Objective = Annotated[Supervised | TextTokens | Classify | ClassifyMulti | Regress, Field(discriminator="kind")]
