"""Frozen linear layers whose weight is kept in 8 or 4 bits, on any device, in plain torch.

It saves memory and costs time: every forward and backward pass opens the weight again. Its values are not those of the
base (`nf4` is wrong by about a tenth of a weight's spread), so an adapter that was trained on it belongs to it.

    int8   one byte a weight, one float32 scale for each output: W[o, i] = q[o, i] * max|W[o]| / 127
    nf4    half a byte a weight, one float32 scale for each block of 64 weights in a row of the flat [out * in] matrix
           (QLoRA, Dettmers et al., arXiv 2305.14314, section 3; scales are not quantised again)

Weights are rounded to bf16 first, as which most are published: bytes and scales are then the same whether a model is
opened in bf16 to be trained or in float32 to be merged.
"""

from __future__ import annotations

from collections.abc import Collection
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError

BLOCK = 64
"""Weights under one scale in nf4."""

# QLoRA, appendix E: quantiles of N(0, 1) that divide it into parts of equal weight, scaled to [-1, 1], with a zero.
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_PAIRS = torch.tensor([[NF4[byte >> 4], NF4[byte & 15]] for byte in range(256)])
"""The two weights of each byte, the first in its upper half, [256, 2]."""
_BETWEEN = (torch.tensor(NF4[1:]) + torch.tensor(NF4[:-1])) / 2


class QuantisedLinear(nn.Module):
    """A linear layer that is never trained. It holds bytes and scales as buffers and no parameter."""

    def __init__(self, weight: Tensor, bias: Tensor | None, *, kind: str, transposed: bool = False) -> None:
        """
        Args:
            weight: [out, in].
            kind: `int8` or `nf4`.
            transposed: the layer that it was made from stored its weight [in, out], as GPT-2 does.
        """
        super().__init__()
        self.kind, self.transposed = kind, transposed
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        packed, scales = QUANTISERS[kind](weight.detach())
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    packed: Tensor
    scales: Tensor
    bias: Tensor | None

    def dense(self) -> Tensor:
        """The weight in the type that the model computes in, [out, in]."""
        shape = (self.out_features, self.in_features)
        return dense(self.packed, self.scales, shape, kind=self.kind).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
        return out

    def opened(self) -> nn.Module:
        """A layer of the kind that this was made from, with the dequantised weight."""
        weight = self.dense()
        layer: Any
        if self.transposed:
            layer = Conv1D(self.out_features, self.in_features)
            weight = weight.t().contiguous()
        else:
            layer = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.clone(), requires_grad=False)
        return layer.train(self.training)  # type: ignore[no-any-return]


class _FrozenProduct(torch.autograd.Function):
    """x W^T + b; opens W once more in the backward pass instead of keeping it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dense().to(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (g,) = grads
        return g @ ctx.layer.dense().to(g.dtype), None


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] -> bytes [out, in] and scales [out] of float32."""
    wide = weight.bfloat16().float()
    scales = wide.abs().amax(1) / 127
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))[:, None]
    return (wide / steps).round_().to(torch.int8), scales


def to_nf4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] -> bytes [ceil(out * in / 64) * 32] and scales [ceil(out * in / 64)] of float32."""
    flat = weight.bfloat16().float().reshape(-1)
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))[:, None]
    codes = torch.bucketize(blocks / steps, _BETWEEN.to(weight.device), out_int32=True).to(torch.uint8).view(-1, 2)
    return codes[:, 0] << 4 | codes[:, 1], scales


QUANTISERS = {"int8": to_int8, "nf4": to_nf4}


def dense(packed: Tensor, scales: Tensor, shape: tuple[int, int], *, kind: str) -> Tensor:
    """The weights that bytes and scales stand for, `shape` [out, in], in float32."""
    if kind == "int8":
        return packed * scales[:, None]
    if packed.is_cuda and find_spec("bitsandbytes") is not None:
        return _by_library(packed, scales, shape)
    pairs = F.embedding(packed.int(), _PAIRS.to(packed.device)).view(-1, BLOCK)
    return pairs.mul_(scales[:, None]).view(-1)[: shape[0] * shape[1]].view(shape)


def _by_library(packed: Tensor, scales: Tensor, shape: tuple[int, int]) -> Tensor:
    """The same by bitsandbytes, whose format this is: its kernel makes each weight in one step."""
    from bitsandbytes.functional import QuantState, dequantize_4bit

    whole = (len(packed) * 2 // BLOCK, BLOCK)
    state = QuantState(absmax=scales, shape=whole, dtype=torch.float32, blocksize=BLOCK, quant_type="nf4")
    opened: Tensor = dequantize_4bit(packed.view(-1, 1), state)
    return opened.view(-1)[: shape[0] * shape[1]].view(shape)


def rounded(weight: Tensor, kind: str) -> Tensor:
    """What quantisation makes of a weight [out, in], in float32."""
    packed, scales = QUANTISERS[kind](weight)
    return dense(packed, scales, (weight.shape[0], weight.shape[1]), kind=kind)


def quantised(layer: nn.Module, kind: str) -> QuantisedLinear:
    """The quantised form of an `nn.Linear` or `Conv1D`.

    Raises:
        ModelError: a weight is not finite, for which there is no scale.
    """
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if not torch.isfinite(weight).all():
        raise ModelError("a weight of this model is not a finite number, and cannot be quantised")
    transposed = isinstance(layer, Conv1D)
    bias: Tensor | None = layer.bias  # type: ignore[assignment]
    new = QuantisedLinear(weight.t() if transposed else weight, bias, kind=kind, transposed=transposed)
    return new.train(layer.training)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights of a model, quantised ones with their scales; shared ones count once."""
    tensors: Collection[Tensor] = [*model.parameters(), *model.buffers()]
    return sum(storage for storage in {t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())
