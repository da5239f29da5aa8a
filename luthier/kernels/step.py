"""A decoding step through all layers of a decoder in one call of C++ (`native/decode.cpp`).

The layers are described once for a generation: their weights in the type that is computed in, and adapters with their
rank filled up to a multiple of 16. What a step computes is defined by the modules' own forward pass, with
`models.attention` in its decoding branch.

Shape suffixes:  B rows   H width   r / 2 pairs that are rotated
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.native import _LANES, _call

_NUMBER, _COUNT, _ADDRESS = ctypes.c_double, ctypes.c_int64, ctypes.c_void_p


class Norm(NamedTuple):
    """A root-mean-square norm."""

    weight: Tensor | None = None
    """None: the layer has no such norm."""
    eps: float = 0.0


class Linear(NamedTuple):
    """y = factor (W x + scale B A x) + bias."""

    W: Tensor
    """[out, in], both multiples of 16, as all sizes are."""
    bias: Tensor | None = None
    A: Tensor | None = None
    B: Tensor | None = None
    factor: Tensor | None = None
    """[out], in float32 or wider."""
    scale: float = 1.0


class Layer(NamedTuple):
    """A decoder layer with a gated inner part."""

    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    window: int
    """0: none."""
    scale: float
    """Of the attention scores."""
    before_attention: Norm
    before_inner: Norm
    behind_attention: Norm = Norm()
    behind_inner: Norm = Norm()
    of_q: Norm = Norm()
    of_k: Norm = Norm()


_LINEARS, _NORMS = Layer._fields[:7], Layer._fields[9:]


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _ADDRESS), ("eps", _NUMBER))


class _Linear(ctypes.Structure):
    _fields_ = (
        *((name, _ADDRESS) for name in ("W", "bias", "A", "B", "factor")),
        *((name, _COUNT) for name in ("inputs", "outputs", "rank")),
        ("scale", _NUMBER),
    )


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Linear) for name in _LINEARS),
        *((name, _Norm) for name in _NORMS),
        *((name, _ADDRESS) for name in ("keys", "values", "cosine", "sine")),
        ("half", _COUNT),
        ("window", _COUNT),
        ("scale", _NUMBER),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((n, _COUNT) for n in ("rows", "layers", "width", "heads", "kv_heads", "size", "inner", "capacity", "kind")),
        ("slots", _ADDRESS),
        ("lengths", _ADDRESS),
        ("threads", _COUNT),
    )


class Steps:
    """Layers, ready to be run token by token."""

    def __init__(self, layers: Sequence[Layer], last: Norm, *, size: int, activation: int) -> None:
        """
        Args:
            last: the norm behind the layers.
            size: numbers in an attention head.
        """
        self._kept: list[Tensor] = []
        self._layers = (_Layer * len(layers))(*(self._described(layer) for layer in layers))
        self._last = self._norm(last)
        first = layers[0]
        self._step = _Step(
            layers=len(layers),
            width=first.q.W.shape[1],
            heads=first.q.W.shape[0] // size,
            kv_heads=first.k.W.shape[0] // size,
            size=size,
            inner=first.gate.W.shape[0],
            kind=activation,
        )

    def __call__(
        self,
        x: Tensor,
        angles: Sequence[tuple[Tensor, Tensor]],
        cache: Sequence[tuple[Tensor, Tensor]],
        *,
        slots: Tensor,
        lengths: Tensor,
    ) -> Tensor:
        """Runs one token of each row, and puts its keys and values into the cache.

        Args:
            x: embeddings [B, H], which become the hidden states behind the last norm.
            angles: for each layer cosines and sines [B, r / 2] in float32 or wider.
            cache: for each layer keys and values [slots, kv_heads, capacity, size], with room for one more token.
            slots: int64 [B], each row's place in the cache; lengths: int64 [B], the tokens that are there.
        """
        for layer, (cosine, sine), (keys, values) in zip(self._layers, angles, cache, strict=True):
            layer.cosine, layer.sine, layer.half = cosine.data_ptr(), sine.data_ptr(), cosine.shape[1]
            layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
        step = self._step
        step.rows, step.capacity, step.threads = len(x), cache[0][0].shape[2], torch.get_num_threads()
        step.slots, step.lengths = slots.data_ptr(), lengths.data_ptr()
        _call("decode", x, step, self._layers[0], self._last, x)
        return x

    def _described(self, layer: Layer) -> _Layer:
        norms = {name: self._norm(getattr(layer, name)) for name in _NORMS}
        linears = {name: self._linear(getattr(layer, name)) for name in _LINEARS}
        return _Layer(**norms, **linears, window=layer.window, scale=layer.scale)

    def _norm(self, norm: Norm) -> _Norm:
        return _Norm(self._address(norm.weight), norm.eps)

    def _linear(self, linear: Linear) -> _Linear:
        A, B = linear.A, linear.B
        if A is not None and B is not None:
            fill = -len(A) % _LANES
            A, B = F.pad(A, (0, 0, 0, fill)), F.pad(B, (0, fill))
        given: dict[str, Any] = {"W": linear.W, "bias": linear.bias, "A": A, "B": B, "factor": linear.factor}
        sizes = {"outputs": linear.W.shape[0], "inputs": linear.W.shape[1], "rank": 0 if A is None else len(A)}
        return _Linear(**{name: self._address(x) for name, x in given.items()}, **sizes, scale=linear.scale)

    def _address(self, x: Tensor | None) -> int | None:
        if x is None:
            return None
        self._kept.append(x.contiguous())
        return self._kept[-1].data_ptr()
