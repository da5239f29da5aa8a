"""The layers of decoders with root-mean-square norms, rotary positions and a gated inner layer (Llama, Mistral, Qwen,
Gemma 3), run through `models.functions` instead of the modules' own forward pass.

The modules stay where they are and keep their weights and names; only the order of work differs. A linear layer that
computes something of its own (an adapter of PEFT's, dropout) is called as it is. `policy.verify` compares the result
with the model's own before anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luthier import kernels
from luthier.batch import wide
from luthier.kernels import native, plain
from luthier.kernels.plain import GELU_TANH, SILU, Rule, Segments
from luthier.kernels.step import Layer, Linear, Norm, Steps
from luthier.models.attention import KeyValues, fresh_drop, rotary_attention
from luthier.models.functions import Scale, embed, gated, norm, project
from luthier.models.lora import column_scale, dense_weight, parts
from luthier.models.quantised import QuantisedLinear

_ACTIVATIONS = {"silu": SILU, "gelu_pytorch_tanh": GELU_TANH}
_FAMILIES = {"llama": False, "mistral": False, "qwen2": False, "qwen3": False, "gemma3_text": True}
"""Model type -> Gemma's form: norms with the weight less one, and one more norm behind attention and inner layer."""
_NORMS = ("input_layernorm", "post_attention_layernorm")
_GEMMA_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


@dataclass(frozen=True)
class Stack:
    """How to run a model's layers."""

    backbone: Any
    gemma: bool
    activation: int

    def norms(self) -> list[nn.Module]:
        """Every norm, whose weights are read past its module."""
        names = (*_NORMS, *_GEMMA_NORMS) if self.gemma else _NORMS
        found = [getattr(layer, name) for layer in self.backbone.layers for name in names]
        heads = [m for layer in self.backbone.layers for name, m in layer.self_attn.named_children() if "norm" in name]
        return [*found, *heads, self.backbone.norm]

    def embed(self, tokens: Tensor, _: Tensor, dtype: torch.dtype) -> Tensor:
        """What the first layer reads, [T, H]; positions enter at attention."""
        module = self.backbone.embed_tokens
        # Gemma's embedding is a class of its own, which scales.
        return (embed(tokens, module) if type(module) is nn.Embedding else module(tokens)).to(dtype)

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
        keep: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Hidden states behind the last norm.

        Args:
            embedded: [T, H], or what enters layer `start`; positions: int64 [T].
            rows: the row numbers that are wanted; the last layer computes the others only as far as attention needs
                them.
            recompute: keep only the input of each layer and compute it again in the backward pass.
            start: the first layer that is run.
            stop: give what enters this layer, as it is.
            keep: called in each layer with its number, keys and values [k, T, d]; without gradients only.

        Returns:
            [T, H], or [len(rows), H].
        """
        x, delta = embedded, None
        tables: dict[str | None, tuple[Tensor, Tensor]] = {}
        layers = self.backbone.layers[: self.backbone.config.num_hidden_layers]
        for i, layer in enumerate(layers[:stop]):
            if i < start:
                continue
            kind = getattr(layer.self_attn, "layer_type", None) if self.gemma else None
            if kind not in tables:
                tables[kind] = self._angles(embedded, positions, kind)
            wanted = rows if i == len(layers) - 1 else None
            arguments = (layer, x, delta, tables[kind], segments, wanted, keep and partial(keep, i))
            if recompute and torch.is_grad_enabled():
                x, delta = checkpoint(self._layer, *arguments, use_reentrant=False)
            else:
                x, delta = self._layer(*arguments)
        if stop is not None:
            return x if delta is None else x + delta
        if start == len(layers) and rows is not None:
            x = x.index_select(0, rows)
        return norm(x, self._scale(self.backbone.norm), delta)[1]

    def _layer(
        self,
        layer: Any,
        x: Tensor,
        delta: Tensor | None,
        angles: tuple[Tensor, Tensor],
        segments: Segments,
        rows: Tensor | None,
        keep: Callable[[Tensor, Tensor], None] | None,
    ) -> tuple[Tensor, Tensor]:
        """(residual sum, what is to be added to it)."""
        attention, inner = layer.self_attn, layer.mlp
        modules = [attention.q_proj, attention.k_proj, attention.v_proj]
        total, (q, k, v) = project(x, modules, scale=self._scale(layer.input_layernorm), delta=delta)
        q, k, v = (y.view(len(y), -1, attention.head_dim) for y in (q, k, v))
        if hasattr(attention, "q_norm"):
            q, k = self._by_head(q, attention.q_norm), self._by_head(k, attention.k_norm)
        heads = rotary_attention(q, k, v, angles, segments, _rule(attention)).flatten(1)
        if keep is not None:
            # Behind attention, which has rotated the keys in place.
            keep(k.transpose(0, 1), v.transpose(0, 1))
        if rows is not None:
            heads, total = heads[rows], total[rows]
        _, (a,) = project(heads, [attention.o_proj])
        before = layer.post_attention_layernorm
        if self.gemma:
            a = norm(a, self._scale(layer.post_attention_layernorm))[1]
            before = layer.pre_feedforward_layernorm
        total, (z, up) = project(total, [inner.gate_proj, inner.up_proj], scale=self._scale(before), delta=a)
        out = gated(z, up, self.activation, inner.down_proj)
        if self.gemma:
            out = norm(out, self._scale(layer.post_feedforward_layernorm))[1]
        return total, out

    def decoder(self, cache: KeyValues, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
        """From the newest token of each of the cache's rows [B] to its hidden state behind the last norm [B, H], with
        its keys and values put into the cache. None where a layer has a part that this way does not know, and on a
        GPU.

        Weights are taken as they are now; those that are stored in another type than `dtype` are copied.
        """
        if kernels.of(self.backbone.norm.weight) is not native:
            return None
        layers = self.backbone.layers[: self.backbone.config.num_hidden_layers]
        described = [self._described(layer, dtype) for layer in layers]
        known = [layer for layer in described if layer is not None]
        sizes = {n for layer in known for one in layer if isinstance(one, Linear) for n in one.W.shape}
        if len(known) < len(described) or any(n % 16 for n in sizes):
            return None
        size = layers[0].self_attn.head_dim
        steps = Steps(known, self._norm(self.backbone.norm, dtype), size=size, activation=self.activation)
        kinds = [getattr(layer.self_attn, "layer_type", None) if self.gemma else None for layer in layers]

        def run(tokens_B: Tensor) -> Tensor:
            at = cache.lengths_B
            x = self.embed(tokens_B, at, dtype)
            angles = {kind: self._angles(x, at, kind) for kind in set(kinds)}
            storage = [cache.layers[i] for i in range(len(layers))]
            return steps(x, [angles[kind] for kind in kinds], storage, slots=cache.slots_B, lengths=at)

        return run

    def _described(self, layer: Any, dtype: torch.dtype) -> Layer | None:
        attention, inner = layer.self_attn, layer.mlp
        modules = {
            **{name: getattr(attention, f"{name}_proj") for name in "qkvo"},
            **{name: getattr(inner, f"{name}_proj") for name in ("gate", "up", "down")},
        }
        linears = {name: linear for name, m in modules.items() if (linear := _linear(m, dtype)) is not None}
        if len(linears) < len(modules):
            return None
        norms = {"before_attention": layer.input_layernorm, "before_inner": layer.post_attention_layernorm}
        if self.gemma:
            norms["behind_attention"] = layer.post_attention_layernorm
            norms["before_inner"] = layer.pre_feedforward_layernorm
            norms["behind_inner"] = layer.post_feedforward_layernorm
        if hasattr(attention, "q_norm"):
            norms.update(of_q=attention.q_norm, of_k=attention.k_norm)
        rule = _rule(attention)
        described = {name: self._norm(module, dtype) for name, module in norms.items()}
        return Layer(**linears, **described, window=rule.window, scale=rule.scale)  # type: ignore[arg-type]

    def _norm(self, module: Any, dtype: torch.dtype) -> Norm:
        scale = self._scale(module)
        return Norm(scale.value(dtype), scale.eps)

    def _by_head(self, x: Tensor, module: Any) -> Tensor:
        return norm(x.reshape(-1, x.shape[-1]), self._scale(module))[1].view(x.shape)

    def _scale(self, module: Any) -> Scale:
        eps = module.eps if self.gemma else module.variance_epsilon
        return Scale(module.weight, float(eps), self.gemma)

    def _angles(self, embedded: Tensor, positions: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, r / 2] in float32 or wider: the model's own, which come twice side by side."""
        wide = embedded.new_empty(0, dtype=torch.float64 if embedded.dtype == torch.float64 else torch.float32)
        arguments = (wide, positions[None]) if kind is None else (wide, positions[None], kind)
        cosine, sine = self.backbone.rotary_emb(*arguments)
        half = cosine.shape[-1] // 2
        return cosine[0, :, :half].contiguous(), sine[0, :, :half].contiguous()


def _rule(attention: Any) -> Rule:
    dropout = float(attention.attention_dropout) if attention.training else 0.0
    return Rule(float(attention.scaling), True, _window(attention), fresh_drop(dropout))


def _linear(module: nn.Module, dtype: torch.dtype) -> Linear | None:
    """A linear layer as a decoding step reads it. None for what computes anything else, and for a quantised weight,
    which opening for a whole generation would bring back to its full size."""
    p = parts(module)
    if p is None or isinstance(p.base, QuantisedLinear):
        return None
    W = dense_weight(p.base).detach()
    factor = None
    if p.magnitude is not None:
        assert p.A is not None
        assert p.B is not None
        factor = wide(column_scale(W, p.A, p.B, p.scale, p.magnitude).to(dtype))
    bias, A, B = (None if x is None else x.detach().to(dtype) for x in (p.bias, p.A, p.B))
    return Linear(W.to(dtype), bias, A, B, factor, p.scale)


def _window(attention: Any) -> int:
    own = getattr(attention, "sliding_window", None)
    if attention.config.model_type == "mistral":
        own = attention.config.sliding_window
    return int(own or 0)


def stack(backbone: Any) -> Stack | None:
    """How to run this model's layers, or None where it has to run by itself."""
    config = backbone.config
    name = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if config.model_type not in _FAMILIES or name not in _ACTIVATIONS:
        return None
    layer = backbone.layers[0]
    head_size = layer.self_attn.head_dim
    odd = getattr(config, "attn_logit_softcapping", None) or getattr(config, "use_bidirectional_attention", False)
    parameter = next(backbone.parameters())
    kernel = kernels.of(parameter)
    if odd or kernel is plain or not kernel.supports(head_size):
        return None
    return Stack(backbone, _FAMILIES[config.model_type], _ACTIVATIONS[name])
