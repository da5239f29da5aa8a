"""How base and tuned are compared on rows that neither has seen."""

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.base import Part

Metric = Literal[
    "loss", "exact_match", "token_f1", "rouge_l", "chrf", "accuracy", "macro_f1", "micro_f1", "squared_error"
]


class Evaluation(Part):
    """How base and tuned are compared on rows that neither has seen."""

    enabled: bool = True
    """Compare base and tuned at the end of the run."""
    primary: Metric | None = None
    """The one measure that the verdict is about, named before the run. Left out: rouge_l for answers, accuracy for
    labels, micro_f1 for several labels, squared_error for numbers, loss for text."""
    margin: Annotated[float, Field(gt=0)] | None = None
    """Largest loss of quality that still counts as `not worse`, in the units of `primary`. Left out: 0.02 for measures
    between 0 and 1 (2 for chrF), 0.02 nats for loss, 2 % of the base's error for squared_error."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Coverage of every interval."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Compare on the first so many test rows (by hash) only."""
    generate: bool = True
    """Let both models write answers; without it only losses are compared. Has no effect on labels and text."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer in tokens; an answer that reaches it is marked as cut. Left out: a quarter more than 95 % of the
    training answers need, at most 512."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Prompts that are answered at once."""
