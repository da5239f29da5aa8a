"""A model's sizes, read from its configuration file without torch: enough to plan a run and to estimate what it
needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luthier.errors import ModelError
from luthier.models.families import OFFSET_POSITIONS
from luthier.models.sources import CONFIG, Origin, read_object

_GGUF_FAMILIES = {"gemma3": "gemma3_text"}
"""GGUF's architecture names where they differ from transformers' `model_type`."""

UNGATED = frozenset({"bert", "roberta", "xlm-roberta", "gpt2"})
"""Families whose feed-forward part has two layers and not three."""


@dataclass(frozen=True, slots=True)
class Shape:
    family: str
    """transformers' `model_type`."""
    positions: int
    """Longest sequence in tokens."""
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_size: int
    intermediate: int
    tied: bool
    """Whether the output head shares the embedding's weight."""

    @property
    def linear_weights(self) -> int:
        """Weights of the linear layers of all blocks."""
        attention = 2 * self.hidden * (self.heads + self.key_value_heads) * self.head_size
        gated = 2 if self.family in UNGATED else 3
        return self.layers * (attention + gated * self.hidden * self.intermediate)

    def lora_weights(self, rank: int) -> int:
        """Weights of an adapter on all linear layers of all blocks: rank times the inputs and outputs of each."""
        queries, keys = self.heads * self.head_size, self.key_value_heads * self.head_size
        attention = 2 * (self.hidden + queries) + 2 * (self.hidden + keys)
        inner = (2 if self.family in UNGATED else 3) * (self.hidden + self.intermediate)
        return self.layers * rank * (attention + inner)

    @property
    def weights(self) -> int:
        """All weights, up to norms and biases."""
        learnt = self.positions if self.family in UNGATED else 0
        return self.linear_weights + (self.vocabulary * (1 if self.tied else 2) + learnt) * self.hidden


def read_shape(origin: Origin) -> Shape:
    """The sizes of a resolved model.

    Raises:
        ModelError: the configuration does not name them.
    """
    try:
        return _from_gguf(origin.gguf) if origin.path.is_file() else _from_config(read_object(origin.path / CONFIG))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            "the model's configuration does not name its sizes", where=origin.source, got=f"no {error.args[0]}"
        ) from None


def _from_config(config: Mapping[str, Any]) -> Shape:
    def one(*names: str, default: int | None = None) -> int:
        for name in names:
            if isinstance(config.get(name), int):
                return int(config[name])
        if default is None:
            raise KeyError(names[0])
        return default

    family = str(config["model_type"])
    hidden, heads = one("hidden_size", "n_embd"), one("num_attention_heads", "n_head")
    positions = one("max_position_embeddings", "n_positions")
    if family in OFFSET_POSITIONS:
        positions -= one("pad_token_id") + 1
    return Shape(
        family=family,
        positions=positions,
        vocabulary=one("vocab_size"),
        hidden=hidden,
        layers=one("num_hidden_layers", "n_layer"),
        heads=heads,
        key_value_heads=one("num_key_value_heads", default=heads),
        head_size=one("head_dim", default=hidden // heads),
        intermediate=one("intermediate_size", "n_inner", default=4 * hidden),
        tied=bool(config.get("tie_word_embeddings", True)),
    )


def _from_gguf(metadata: Mapping[str, Any]) -> Shape:
    arch = metadata["general.architecture"]
    heads = int(metadata[f"{arch}.attention.head_count"])
    return Shape(
        family=_GGUF_FAMILIES.get(arch, arch),
        positions=int(metadata[f"{arch}.context_length"]),
        vocabulary=int(metadata.get(f"{arch}.vocab_size", 0)),
        hidden=int(metadata[f"{arch}.embedding_length"]),
        layers=int(metadata[f"{arch}.block_count"]),
        heads=heads,
        key_value_heads=int(metadata.get(f"{arch}.attention.head_count_kv", heads)),
        head_size=int(metadata.get(f"{arch}.attention.key_length", metadata[f"{arch}.embedding_length"] // heads)),
        intermediate=int(metadata[f"{arch}.feed_forward_length"]),
        tied=True,
    )
