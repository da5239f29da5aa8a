"""The slow side of a check: plain transformers, one document at a time or padded, attention and losses written out.

It shares no code with what trains: no packed rows, no layout, no fused product, no head without logits, no `Batch`.
transformers' own eager attention takes its softmax in float32 whatever the model computes in; the one here does not.

Shape suffixes
    B  documents   T  tokens   V  vocabulary   C  outputs of a head   h  heads   k  key/value heads   d  head size
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.models.adapters import trained
from luthier.models.lora import LoraLinear, dense_weight
from luthier.models.peft_methods import by_peft
from luthier.types import Sequence as Document

NAME = "luthier_written_out"


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **settings: Any
) -> tuple[Tensor, None]:
    """softmax(q k^T s + mask) v (Vaswani et al., arXiv 1706.03762, equation 1), heads repeated for grouped queries.

    query [B, h, T, d], key and value [B, k, T, d]; the mask is transformers' own [B, 1, T, T]. Dropout is not taken.
    """
    scaling = settings.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask
    return (scores.softmax(-1) @ value).transpose(1, 2), None


def _literal(layer: LoraLinear) -> Callable[[Tensor], Tensor]:
    """y = W x + b + s B A x (Hu et al., arXiv 2106.09685, section 4.1), and with a magnitude m (Liu et al., arXiv
    2402.09353, equation 5 and section 4.3) y = m / ||W + s B A|| (W x + s B A x) + b, left to autograd."""

    def forward(x: Tensor) -> Tensor:
        A, B = layer.lora_A.to(x.dtype), layer.lora_B.to(x.dtype)
        whole = layer.base(x)
        update = layer.scale * ((x @ A.t()) @ B.t())
        if layer.lora_magnitude_vector is None:
            return whole + update  # type: ignore[no-any-return]
        norm = (dense_weight(layer.base).to(x.dtype) + layer.scale * (B @ A)).detach().norm(dim=1)
        bias = 0 if layer.base.bias is None else layer.base.bias
        return layer.lora_magnitude_vector.to(x.dtype) / norm * (whole - bias + update) + bias  # type: ignore[no-any-return]

    return forward


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """Inside, `model` is a transformers model with the attention and the adapter above; then what it was."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention)
    # Without a row here transformers would build no mask at all for this attention, padding included.
    AttentionMaskInterface.register(NAME, eager_mask)
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found if hasattr(config, "_attn_implementation")}
    before = {key: config._attn_implementation for key, config in configs.items()}
    layers: list[Any] = [m for m in model.modules() if isinstance(m, LoraLinear)]
    for config in configs.values():
        config._attn_implementation = NAME
    for layer in layers:
        layer.forward = _literal(layer)
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation = before[key]
        for layer in layers:
            del layer.forward


def _tokens(logits_TV: Tensor, document: Document) -> Tensor:
    """sum over t of w_t (-log p(token t | tokens before t))."""
    if len(document.tokens_T) < 2:
        return logits_TV.sum() * 0
    tokens = torch.tensor(document.tokens_T[1:].tolist())
    weights = torch.tensor(document.weights_T[1:].tolist(), dtype=logits_TV.dtype)
    return -(logits_TV[:-1].log_softmax(-1).gather(1, tokens[:, None])[:, 0] * weights).sum()


def _classify(scores_C: Tensor, document: Document) -> Tensor:
    return -scores_C.log_softmax(-1)[int(document.label[0])]


def _classify_multi(scores_C: Tensor, document: Document) -> Tensor:
    yes = torch.tensor(document.label, dtype=scores_C.dtype)
    return -(yes * F.logsigmoid(scores_C) + (1 - yes) * F.logsigmoid(-scores_C)).sum()


def _regress(scores_C: Tensor, document: Document) -> Tensor:
    return (scores_C[0] - document.label[0]) ** 2


class Twin(NamedTuple):
    """An objective written out for one document."""

    loss: Callable[[Tensor, Document], Tensor]
    """(logits [T, V] or scores [C], document) -> summed loss, []."""
    units: Callable[[Document], float]
    """How many tokens, rows or labels it sums over."""
    sequence: bool = False


def _supervised(document: Document) -> float:
    return math.fsum(document.weights_T[1:].tolist())


TWINS: dict[str, Twin] = {
    "supervised": Twin(_tokens, _supervised),
    "text": Twin(_tokens, _supervised),
    "classify": Twin(_classify, lambda document: 1.0, sequence=True),
    "classify_multi": Twin(_classify_multi, lambda document: float(len(document.label)), sequence=True),
    "regress": Twin(_regress, lambda document: 1.0, sequence=True),
}
"""Kind of an objective -> its plain twin. An objective without a row here cannot be proved."""


class Step(NamedTuple):
    """One step by the slow side."""

    losses: list[float]
    """Of each document: its summed loss, not divided."""
    gradients: dict[str, Tensor]


def one_by_one(
    model: Any, documents: Sequence[Document], *, kind: str, divisors: Sequence[float] | None = None
) -> Step:
    """The step's gradient from one forward pass for each document.

    Args:
        divisors: what each document's loss is divided by; left out, the units of all documents together.
    """
    twin = TWINS[kind]
    units = math.fsum(map(twin.units, documents))
    losses = []
    clear(model)
    with plain(model), unpadded(model):
        for i, document in enumerate(documents):
            loss = twin.loss(outputs(model, document.tokens_T.tolist()), document)
            (loss / (divisors[i] if divisors is not None else units)).backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
    return Step(losses, take(model))


def padded(model: Any, documents: Sequence[Document], *, kind: str) -> Step:
    """The step's gradient from rectangles of two documents, filled up on the right and masked.

    The first stands with the last, the second with the last but one: a rectangle of all would need memory for the
    longest as many times as there are documents.
    """
    twin = TWINS[kind]
    units = math.fsum(map(twin.units, documents))
    used = {token for d in documents for token in d.tokens_T.tolist()}
    # Heads of decoders look for the last token that is not the padding: it must occur in no document.
    filler = next(i for i in range(model.config.vocab_size) if i not in used)
    losses = [0.0] * len(documents)
    clear(model)
    with plain(model), unpadded(model, filler):
        for i in range((len(documents) + 1) // 2):
            places = sorted({i, len(documents) - 1 - i})
            outs = _rectangle(model, [documents[k].tokens_T.tolist() for k in places], filler, cut=not twin.sequence)
            found = [twin.loss(out, documents[k]) for k, out in zip(places, outs, strict=True)]
            (torch.stack(found).sum() / units).backward()  # type: ignore[no-untyped-call]
            for k, loss in zip(places, found, strict=True):
                losses[k] = float(loss.detach())
    return Step(losses, take(model))


def _rectangle(model: Any, rows: list[list[int]], filler: int, *, cut: bool) -> list[Tensor]:
    """The outputs of each row, with `cut` those of its own tokens only."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [filler] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    with by_peft(model) as whole:
        found = whole(input_ids=ids, attention_mask=mask).logits
    return [out[-longest:][: len(row)] if cut else out for out, row in zip(found, rows, strict=True)]


def outputs(model: nn.Module, tokens: Sequence[int]) -> Tensor:
    """A document's logits [T, V], or its scores [C], by the model's own forward pass."""
    ids = torch.tensor([list(tokens)])
    with by_peft(model) as whole:
        found: Tensor = whole(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    return found[-len(tokens) :] if found.ndim == 2 else found


@contextmanager
def unpadded(model: nn.Module, filler: int = -1) -> Iterator[None]:
    """Inside, no token of a document is taken for padding, as one would be where EOS and padding are the same."""
    config: Any = model.config
    before = config.pad_token_id
    config.pad_token_id = filler
    try:
        yield
    finally:
        config.pad_token_id = before


def clear(model: nn.Module) -> None:
    """Drops every gradient."""
    for parameter in model.parameters():
        parameter.grad = None


def take(model: nn.Module) -> dict[str, Tensor]:
    """The gradients of what is trained, which are then cleared."""
    found = {name: p.grad for name, p in trained(model).items() if p.grad is not None}
    clear(model)
    return found
