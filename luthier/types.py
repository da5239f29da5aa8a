"""The torch-free values that travel between stages.

An example is what a row of the user's file means: a `Conversation`, a `Text` or a `Labelled` text. Rendering turns it
into a `Sequence` of tokens with a loss weight for each. Tensors live in `luthier.batch`, recipes in `luthier.recipe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

JSON = dict[str, Any]
Severity = Literal["block", "warn", "info"]
Side = Literal["train", "validation", "test"]
SIDES: tuple[Side, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an example came from."""

    file: str
    """The file as the user named it (never a temporary path)."""
    line: int
    """1-based line for JSONL, CSV, TSV and text; 1-based row for JSON arrays and Parquet."""
    hash: str
    """Hex digest of the example's content, 32 characters: equal content, equal hash, in whatever format it came."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `extra` keeps every key that we do not know, for the template to use."""

    role: str
    content: str
    weight: float | None = None
    """OpenAI's per-message weight: 0 leaves an assistant turn out of the loss. None: the recipe decides."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """`tool_calls`, `name`, `tool_call_id`, `reasoning_content` and whatever else the row held."""

    def as_dict(self) -> JSON:
        """The form that chat templates take (without the weight)."""
        return {"role": self.role, "content": self.content, **self.extra}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages that end with an assistant turn, and the tools the assistant could call."""

    id: str
    messages: tuple[Message, ...]
    provenance: Provenance
    tools: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Columns of the row that the conversation does not use, such as a customer, a date or a section."""


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text for continued pre-training."""

    id: str
    text: str
    provenance: Provenance
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text with its answer: the names of its labels (one, or several for multi-label), or a number."""

    id: str
    text: str
    labels: tuple[str, ...]
    """Label names; exactly one for single-label classification, empty for regression."""
    provenance: Provenance
    value: float | None = None
    """The number to predict, for regression."""
    columns: Mapping[str, Any] = field(default_factory=dict)


Example = Conversation | Text | Labelled


@dataclass(frozen=True, slots=True)
class Finding:
    """Something seen in the data, the recipe or the model that its owner should know of."""

    rule: str
    """Short stable name, such as `bad_row`, `duplicate`, `over_long`, `unsupervised_end`."""
    severity: Severity
    message: str
    """What was seen and why it matters. Holds no private text."""
    remedy: str
    examples: tuple[str, ...] = ()
    """`file:line` of each row concerned."""
    count: int = 0
    """How many rows are concerned; 0 when the finding is not about rows."""
    share: float = 0.0
    """`count` as a share of all rows; 0 where that is not known."""

    def as_dict(self) -> JSON:
        return {
            "rule": self.rule,
            "severity": self.severity,
            "message": self.message,
            "remedy": self.remedy,
            "examples": list(self.examples),
            "count": self.count,
            "share": self.share,
        }


@dataclass(frozen=True, slots=True)
class Sequence:
    """An example rendered for a model."""

    id: str
    tokens_T: NDArray[np.int32]
    weights_T: NDArray[np.float32]
    """Loss weight of each token *as a target*: `weights_T[i]` weighs the prediction of `tokens_T[i]` from what stands
    before it. Zero for prompts. The shift by one happens in `data.pack` and nowhere else."""
    label: tuple[float, ...] = ()
    """Targets of the whole sequence: class index, multi-hot vector, or the number to predict."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did; journalled as an event."""

    step: int
    """1-based number of the finished step."""
    loss: float
    """Summed loss / units of the step: the objective's mean over everything that the step trained on."""
    grad_norm: float
    """Global norm before clipping."""
    rate: float
    units: float
    """What the loss was divided by: supervised tokens, rows, or rows x labels."""
    tokens: int
    """Tokens of the step's examples, each in full (no padding exists)."""
    computed: int
    """Tokens computed: fewer, where examples begin alike and that is computed once."""
    seconds: float
    memory_bytes: int
    """Peak resident memory of the process so far."""
