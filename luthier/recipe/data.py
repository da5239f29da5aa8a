"""Which rows, what they mean, and which of them are held back."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.recipe.base import Part

Format = Literal[
    "messages", "sharegpt", "alpaca", "prompt_completion", "question_answer", "text", "labelled", "regression"
]


class Columns(Part):
    """Which column of a row holds what. Set what detection got wrong; the rest stays detected."""

    messages: str | None = None
    """A list of turns."""
    prompt: str | None = None
    """The question, instruction or prompt."""
    input: str | None = None
    """Further input that is appended to the prompt after a blank line."""
    completion: str | None = None
    """The answer to learn."""
    system: str | None = None
    """A system message for each row."""
    text: str | None = None
    """Plain text, or the text to classify."""
    label: str | None = None
    """The label, list of labels, or number."""
    tools: str | None = None
    """Tools the assistant could call."""
    id: str | None = None
    """A name for the row, shown in reports."""


class Split(Part):
    """How rows are held back. Every rule is deterministic: no random state is involved."""

    by: Literal["content", "group", "time", "label"] | None = None
    """content: by hash of the prompt, so a row falls on the same side whatever else is in the file. group: rows with
    the same value of `column` stay together. time: the newest rows by `column` are held back. label: as content, but
    each label is divided in the same shares. Left out: label for labelled data, else content."""
    column: str | None = None
    """Column with the group (customer, document) or the time (ISO date or number)."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of rows for validation, which picks the checkpoint and stops training. Ignored when a validation file is
    given."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of rows for the final comparison. Ignored when a test file is given."""

    @model_validator(mode="after")
    def _column_where_needed(self) -> "Split":
        if self.by in ("group", "time") and not self.column:
            raise ValueError(f"`by: {self.by}` needs `column`: the name of the column to split by")
        if self.by in ("content", "label") and self.column:
            raise ValueError(f"`column` has no effect with `by: {self.by}`; remove it or use group or time")
        if self.validation + self.test >= 1:
            raise ValueError("`validation` and `test` together leave no rows to train on")
        return self


class Waiver(Part):
    """A rule of the data gate that may be broken this time."""

    rule: str
    """Its name, as the gate's findings give it."""
    reason: Annotated[str, Field(min_length=8)]
    """Why; it goes into the run's record."""


class Gate(Part):
    """What the data gate looks for, and what it lets pass."""

    policy: str = "default"
    """default, support, health, legal or finance, or a policy file."""
    waive: list[Waiver] = []
    """Rules that do not stop this run, each with its reason."""
    losses: bool = False
    """Whether the rows that surprise the base most, and those that do not at all, are named: one forward pass of the
    base over all rows before training. `luthier check` does without."""
    off: Annotated[str, Field(min_length=8)] | None = None
    """Why the gate is not to look at all; it goes into the run's record."""


class Data(Part):
    """Which rows, what they mean, and which of them are held back."""

    train: list[str] = Field(min_length=1)
    """Files, folders or `-` for standard input: JSONL, JSON, CSV, TSV, Parquet or text, each plain or gzipped."""
    validation: list[str] = []
    """Files for validation instead of a share of the training files."""
    test: list[str] = []
    """Files for the final comparison instead of a share of the training files."""
    format: Format | None = None
    """What a row means. Left out: detected from the first rows, and said."""
    columns: Columns = Columns()
    """Column names, where detection is to be overridden."""
    system: str | None = None
    """A system message put before every conversation that has none."""
    on_bad_row: Literal["refuse", "drop"] = "refuse"
    """refuse: one bad row stops the run with the list of all of them. drop: they are left out, counted and listed."""
    on_leak: Literal["refuse", "drop"] = "refuse"
    """What to do with training rows that are also in a given validation or test file: stop, or leave them out of
    training (never out of the test)."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many good rows of the training files only."""
    split: Split = Split()
    """How rows are held back."""
    gate: Gate = Gate()
    """What is looked for in the rows before the first step."""
