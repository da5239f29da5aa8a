"""What differs between model families and cannot be read off the modules: where positions start, how a document becomes
one vector for a sequence head, and how a head's logits are scaled.

A model that `transformers` loads and that needs none of this needs no row here; `models.policy.verify` compares every
model with its own forward pass before the first step, so a family that needs a row and has none is refused, not
mistrained. Free of torch, so that a recipe can be checked without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class SequenceHead:
    """How a document's hidden states become scores: `take` says which, `score` maps them to [N, C]."""

    take: str
    """`first`, `last` or `mean` token of the document."""
    score: Callable[[Any, Tensor], Tensor]
    """(model, taken [N, H]) -> [N, C]."""
    modules: tuple[str, ...]
    """New modules that are always trained and saved."""


def _bert(model: Any, taken: Tensor) -> Tensor:
    # BERT's pooler reads the first token of each row: a document becomes a row of one token.
    base = getattr(model, model.base_model_prefix)
    return model.classifier(model.dropout(base.pooler(taken[:, None])))  # type: ignore[no-any-return]


def _roberta(model: Any, taken: Tensor) -> Tensor:
    return model.classifier(taken[:, None])  # type: ignore[no-any-return]


def _modernbert(model: Any, taken: Tensor) -> Tensor:
    return model.classifier(model.drop(model.head(taken)))  # type: ignore[no-any-return]


def _decoder(model: Any, taken: Tensor) -> Tensor:
    return model.score(taken)  # type: ignore[no-any-return]


SEQUENCE_HEADS: dict[str, SequenceHead] = {
    "bert": SequenceHead("first", _bert, ("classifier",)),
    "roberta": SequenceHead("first", _roberta, ("classifier",)),
    "xlm-roberta": SequenceHead("first", _roberta, ("classifier",)),
    "modernbert": SequenceHead("first", _modernbert, ("head", "classifier")),
    "llama": SequenceHead("last", _decoder, ("score",)),
    "mistral": SequenceHead("last", _decoder, ("score",)),
    "qwen2": SequenceHead("last", _decoder, ("score",)),
    "qwen3": SequenceHead("last", _decoder, ("score",)),
    "gemma3_text": SequenceHead("last", _decoder, ("score",)),
    "gpt2": SequenceHead("last", _decoder, ("score",)),
}

ENCODERS = frozenset({"bert", "roberta", "xlm-roberta", "modernbert"})
"""Families that read a document both ways and cannot write."""

OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta"})


def sequence_head(model: nn.Module) -> SequenceHead:
    """The row for a model with a sequence head.

    Raises:
        ModelError: the family has none.
    """
    config: Any = model.config
    head = SEQUENCE_HEADS.get(config.model_type)
    if head is None:
        raise ModelError(
            "this model family has no sequence head here yet",
            got=config.model_type,
            do=f"use one of {', '.join(SEQUENCE_HEADS)}, or add a row to luthier/models/families.py",
        )
    if config.model_type == "modernbert" and config.classifier_pooling == "mean":
        return SequenceHead("mean", head.score, head.modules)
    return head


def position_offset(config: Any) -> int:
    """What the family adds to a position that counts from 0: RoBERTa starts behind its padding index."""
    return int(config.pad_token_id) + 1 if config.model_type in OFFSET_POSITIONS else 0


def softcap(config: Any) -> float | None:
    """The cap of the output logits (Gemma 2), or None."""
    value = getattr(config, "final_logit_softcapping", None)
    return None if value is None else float(value)
