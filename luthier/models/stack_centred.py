"""The layers of models with layer norms, learnt positions and a plain inner layer (BERT, RoBERTa, GPT-2), run through
`models.functions` as `models.stack` runs the others.

Dropout is drawn by a counter from one seed for each place, so nothing of it is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier import kernels
from luthier.kernels import plain
from luthier.kernels.plain import GELU, GELU_TANH, Rule, Segments
from luthier.models.attention import fresh_drop, rotary_attention
from luthier.models.functions import embed, gated, layer_norm, project

_ACTIVATIONS = {"gelu": GELU, "gelu_new": GELU_TANH, "gelu_pytorch_tanh": GELU_TANH}


_READ = {
    *("LayerNorm", "word_embeddings", "position_embeddings", "token_type_embeddings"),
    *("ln_1", "ln_2", "ln_f", "wte", "wpe"),
}


@dataclass(frozen=True)
class CentredStack:
    """How to run a model's layers."""

    backbone: Any
    layers: Any
    begin: Callable[[Any, Tensor, Tensor, torch.dtype], Tensor]
    """(backbone, tokens [T], positions [T], type) -> what the first layer reads, [T, H]."""
    layer: Callable[[Any, Tensor, Segments, Tensor | None, int], Tensor]
    """(layer, x [T, H], segments, wanted rows, activation) -> [T or wanted rows, H]."""
    end: Callable[[Any, Tensor], Tensor]
    activation: int

    def norms(self) -> list[nn.Module]:
        """Every norm and embedding, whose weights are read past its module."""
        return [m for name, m in self.backbone.named_modules() if name.rsplit(".", 1)[-1] in _READ]

    def embed(self, tokens: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
        return self.begin(self.backbone, tokens, positions, dtype)

    def run(
        self,
        embedded: Tensor,
        positions: Tensor,
        segments: Segments,
        *,
        rows: Tensor | None = None,
        recompute: bool = False,
        start: int = 0,
        stop: int | None = None,
    ) -> Tensor:
        """As `Stack.run`."""
        x = embedded
        for i, layer in enumerate(self.layers[:stop]):
            if i < start:
                continue
            arguments = (layer, x, segments, rows if i == len(self.layers) - 1 else None, self.activation)
            if recompute and torch.is_grad_enabled():
                x = checkpoint(self.layer, *arguments, use_reentrant=False)
            else:
                x = self.layer(*arguments)
        if stop is not None:
            return x
        if start == len(self.layers) and rows is not None:
            x = x.index_select(0, rows)
        return self.end(self.backbone, x)


def _rate(dropout: nn.Dropout) -> float:
    return float(dropout.p) if dropout.training else 0.0


def _bert_begin(backbone: Any, tokens: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    parts = backbone.embeddings
    words = embed(tokens, parts.word_embeddings) + parts.token_type_embeddings.weight[0]
    x = (words + embed(positions, parts.position_embeddings)).to(dtype)
    x = layer_norm(x, parts.LayerNorm)[1]
    return nn.functional.dropout(x, _rate(parts.dropout), parts.dropout.training)


def _bert_layer(layer: Any, x: Tensor, segments: Segments, rows: Tensor | None, activation: int) -> Tensor:
    own, after = layer.attention.self, layer.attention.output
    _, (q, k, v) = project(x, [own.query, own.key, own.value])
    size = own.attention_head_size
    q, k, v = (y.view(len(y), -1, size) for y in (q, k, v))
    rule = Rule(size**-0.5, False, 0, fresh_drop(_rate(own.dropout)))
    heads = rotary_attention(q, k, v, None, segments, rule).flatten(1)
    if rows is not None:
        heads, x = heads.index_select(0, rows), x.index_select(0, rows)
    _, (a,) = project(heads, [after.dense])
    x = layer_norm(x, after.LayerNorm, a, _rate(after.dropout))[1]
    _, (z,) = project(x, [layer.intermediate.dense])
    out = gated(z, None, activation, layer.output.dense)
    return layer_norm(x, layer.output.LayerNorm, out, _rate(layer.output.dropout))[1]


def _gpt2_begin(backbone: Any, tokens: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
    x = (embed(tokens, backbone.wte) + embed(positions, backbone.wpe)).to(dtype)
    return nn.functional.dropout(x, _rate(backbone.drop), backbone.drop.training)


def _gpt2_layer(layer: Any, x: Tensor, segments: Segments, rows: Tensor | None, activation: int) -> Tensor:
    own = layer.attn
    x, h = layer_norm(x, layer.ln_1)
    _, (qkv,) = project(h, [own.c_attn])
    q, k, v = (y.reshape(len(y), -1, own.head_dim) for y in torch.split(qkv, own.embed_dim, 1))
    rule = Rule(float(own.scaling), True, 0, fresh_drop(_rate(own.attn_dropout)))
    heads = rotary_attention(q, k, v, None, segments, rule).flatten(1)
    if rows is not None:
        heads, x = heads.index_select(0, rows), x.index_select(0, rows)
    _, (a,) = project(heads, [own.c_proj])
    x, h = layer_norm(x, layer.ln_2, a, _rate(own.resid_dropout))
    _, (z,) = project(h, [layer.mlp.c_fc])
    out = gated(z, None, activation, layer.mlp.c_proj)
    return x + nn.functional.dropout(out, _rate(layer.mlp.dropout), layer.mlp.dropout.training)


def _as_it_is(_: Any, x: Tensor) -> Tensor:
    return x


def _gpt2_end(backbone: Any, x: Tensor) -> Tensor:
    return layer_norm(x, backbone.ln_f)[1]


def centred_stack(backbone: Any) -> CentredStack | None:
    """How to run this model's layers, or None where it has to run by itself."""
    config = backbone.config
    kernel = kernels.of(next(backbone.parameters()))
    if kernel is plain:
        return None
    if config.model_type in ("bert", "roberta", "xlm-roberta"):
        size, name = config.hidden_size // config.num_attention_heads, config.hidden_act
        known = not config.is_decoder and not getattr(config, "add_cross_attention", False)
        parts: tuple[Any, Any, Any, Any] = (backbone.encoder.layer, _bert_begin, _bert_layer, _as_it_is)
    elif config.model_type == "gpt2":
        size, name = config.n_embd // config.n_head, config.activation_function
        known = not config.add_cross_attention and not config.reorder_and_upcast_attn
        parts = (backbone.h, _gpt2_begin, _gpt2_layer, _gpt2_end)
    else:
        return None
    if not known or name not in _ACTIVATIONS or not kernel.supports(size):
        return None
    return CentredStack(backbone, *parts, _ACTIVATIONS[name])
