"""How it is learnt: steps, rates, lengths, checkpoints."""

from typing import Annotated, Literal

from pydantic import Field

from luthier.recipe.base import Part


class Training(Part):
    """How it is learnt: steps, rates, lengths, checkpoints."""

    epochs: Annotated[float, Field(gt=0)] = 3.0
    """Passes over the training rows; may be a fraction."""
    max_steps: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many optimizer steps even if epochs remain."""
    batch_examples: Annotated[int, Field(ge=1)] = 8
    """Examples in one optimizer step."""
    microbatch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens computed at once; a step is cut into as many parts as needed. Changes memory and speed, never the
    result. Left out: 2048, or the longest example, or what memory allows."""
    recompute: bool | Literal["auto"] = "auto"
    """Keep only the input of each layer for the backward pass and compute the rest again: less memory, about a third
    more time, the same result. auto: where memory would not suffice."""
    rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate. Left out: 2e-4 for LoRA, 2e-5 for full fine-tuning, 1e-4 for a classifier in full."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the decay after the warm-up, towards zero at the end."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps over which the rate rises from zero."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay of AdamW, on matrices only."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the mean of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW's decay of the mean of squared gradients."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0 clips nothing."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the order of examples, of new weights and of dropout."""
    max_length: Annotated[int, Field(ge=8)] | None = None
    """Longest example in tokens. Left out: the longest that the model's positions allow, at most 4096."""
    on_over_long: Literal["refuse", "drop", "cut_prompt", "cut_end"] | None = None
    """Examples over `max_length`: stop with their list; leave them out; cut the start of the prompt (the answer stays
    whole); or cut the end. Each is counted. Left out: refuse for conversations, cut_end for classification; plain text
    is always divided into pieces, and nothing of it is lost."""
    validate_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between validations. Left out: about 8 in the run, at least every epoch."""
    patience: Annotated[int, Field(ge=1)] | None = 3
    """Stop after so many validations without a better loss; `null` never stops early. The best checkpoint is kept
    in either case."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between checkpoints. Left out: at every validation."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute: `cuda` is one GPU of Nvidia's. auto: a GPU that this machine has and torch can use."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads. Left out: the cores of this machine. Results are equal to the bit only with the same number."""

    @property
    def budget(self) -> int:
        """`microbatch_tokens` of a resolved recipe."""
        assert self.microbatch_tokens is not None, "the plan derives it"
        return self.microbatch_tokens
