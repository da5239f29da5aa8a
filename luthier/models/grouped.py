"""Several adapters over one frozen model: each by itself, or several side by side in one packed row.

Side by side, the base's product runs once over the rows of all arms, and the low-rank products of each over its own:
y = x W^T + b, then y[a:b] += s (x[a:b] A^T) B^T for the arm whose documents are rows a to b. No operation of a decoder
mixes documents, so every arm gets what it would get alone, and a number that is none stays within its arm (LoRAFusion,
Zhu et al., arXiv 2510.00206, section 5, groups adapters in the same way).

Shape suffixes:  T rows of all arms   R rows that are read of the last layer   H hidden size   r rank
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from luthier.batch import Batch, Below, Signals
from luthier.models import adapters
from luthier.models.lora import LoraLinear, dense_weight
from luthier.models.lower import untrained
from luthier.models.policy import Policy, fast_stack
from luthier.recipe import Lora


class Rows:
    """Which rows of the microbatch at hand belong to which arm: [a, b) of each, by how many rows there are in all."""

    def __init__(self) -> None:
        self._by_length: dict[int, list[tuple[int, int]]] = {}

    def set(self, *boundaries: Sequence[int]) -> None:
        """Each of `boundaries` holds the offsets of the arms' rows, one more than there are arms. Two that are equally
        long are the same: rows that are read are a subset of all."""
        self._by_length = {offsets[-1]: list(pairwise(offsets)) for offsets in boundaries}

    def of(self, length: int) -> list[tuple[int, int]]:
        return self._by_length[length]


class GroupedLinear(nn.Module):
    """A frozen linear layer with the low-rank updates of several arms, each on its own rows."""

    def __init__(self, base: nn.Module, layers: Sequence[LoraLinear | None], rows: Rows) -> None:
        """`layers`: what each arm has here, in the order of their rows; None for an arm that leaves it as it is."""
        super().__init__()
        self.base = base
        # A tuple, so that the arms' layers do not become modules of the model.
        self.layers = tuple(layers)
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        spans = [
            (a, b, layer)
            for layer, (a, b) in zip(self.layers, self.rows.of(len(flat)), strict=True)
            if layer is not None and a < b
        ]
        factors = [factor for _, _, layer in spans for factor in (layer.lora_A, layer.lora_B)]
        at = [(a, b, layer.scale) for a, b, layer in spans]
        out: Tensor = _GroupedProduct.apply(flat, self.base, at, *factors)  # type: ignore[no-untyped-call]
        return out.view(*x.shape[:-1], -1)


class _GroupedProduct(torch.autograd.Function):
    """Saves x and each arm's x A^T; every product of an arm is at most rank wide on one side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: nn.Module, at: list[tuple[int, int, float]], *factors: Tensor) -> Tensor:
        W = dense_weight(base).to(x.dtype)
        bias: Tensor | None = base.bias  # type: ignore[assignment]
        y = x @ W.t() if bias is None else torch.addmm(bias.to(x.dtype), x, W.t())
        lows = []
        for (a, b, scale), A, B in zip(at, factors[::2], factors[1::2], strict=True):
            lows.append(x[a:b] @ A.to(x.dtype).t())
            y[a:b].addmm_(lows[-1], B.to(x.dtype).t(), alpha=scale)
        ctx.save_for_backward(x, *factors, *lows)
        ctx.base, ctx.at = base, at
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        g = grads[0].contiguous()
        x, *saved = ctx.saved_tensors
        n = len(ctx.at)
        factors, lows = saved[: 2 * n], saved[2 * n :]
        dx = g @ dense_weight(ctx.base).to(g.dtype) if ctx.needs_input_grad[0] else None
        found: list[Tensor] = []
        for (a, b, scale), A, B, low in zip(ctx.at, factors[::2], factors[1::2], lows, strict=True):
            g_low = (g[a:b] @ B.to(g.dtype)).mul_(scale)
            if dx is not None:
                dx[a:b].addmm_(g_low, A.to(g.dtype))
            found += [(g_low.t() @ x[a:b]).to(A.dtype), (g[a:b].t() @ low).to(B.dtype).mul_(scale)]
        return dx, None, None, *found


class Arm(NamedTuple):
    """One adapter beside the model."""

    layers: dict[str, LoraLinear]
    """Path in the model -> what stands there while this arm is in place."""
    parameters: dict[str, nn.Parameter]
    """What is trained, under the names that it has in a model of its own."""
    lowest: int
    """How many of the model's lowest layers it leaves alone; 0 where they cannot be run by themselves."""


class Shelf:
    """A frozen model, and the adapters that are put into it in turn or together."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.arms: list[Arm] = []
        self._rows = Rows()

    def add(self, adapter: Lora, *, seed: int) -> Arm:
        """Makes an adapter, begun as `adapters.attach` begins it, and puts it beside the model.

        Raises:
            RecipeError: a target does not exist.
        """
        model = self.policy.model
        adapters.attach(model, adapter, seed=seed)
        layers = dict(adapters.lora_layers(model))
        lowest = untrained(model) if fast_stack(self.policy.backbone) is not None else 0
        arm = Arm(layers, adapters.trained(model), lowest)
        self._put({path: layer.base for path, layer in layers.items()})
        self.arms.append(arm)
        return arm

    def _put(self, modules: dict[str, nn.Module]) -> None:
        for path, module in modules.items():
            adapters.set_submodule(self.policy.model, path, module)

    @contextmanager
    def only(self, arm: int) -> Iterator[Policy]:
        """Inside, the model is that of one arm."""
        layers = self.arms[arm].layers
        self._put(dict(layers))
        try:
            yield self.policy
        finally:
            self._put({path: layer.base for path, layer in layers.items()})

    @contextmanager
    def together(self, arms: Sequence[int]) -> Iterator[Policy]:
        """Inside, `listen` runs batches of these arms, in this order."""
        chosen = [self.arms[i].layers for i in arms]
        bases = {path: layer.base for layers in chosen for path, layer in layers.items()}
        self._put(
            {path: GroupedLinear(base, [each.get(path) for each in chosen], self._rows) for path, base in bases.items()}
        )
        try:
            yield self.policy
        finally:
            self._put(bases)

    @property
    def layers(self) -> nn.ModuleList:
        return adapters.layer_list(self.policy.model)

    def below(self, batch: Batch, layers: int) -> Below:
        """What enters layer `layers`, without a gradient: the same for every arm that leaves those below it alone."""
        with torch.no_grad():
            return self.policy.below(batch, layers)

    def listen(self, batches: Sequence[Batch]) -> list[Signals]:
        """Log-probabilities of each batch's targets, as `Policy.listen` gives them for its arm alone."""
        row = joined(batches)
        rows_R = torch.unique(row.select_S)
        ends = list(accumulate((batch.tokens for batch in batches), initial=0))
        self._rows.set(ends, torch.searchsorted(rows_R, torch.tensor(ends, device=rows_R.device)).tolist())
        logprobs_S = self.policy.listen(row).logprobs_S
        assert logprobs_S is not None
        parts = torch.split(logprobs_S, [len(batch.target_S) for batch in batches])
        return [Signals(logprobs_S=part) for part in parts]


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches side by side in one row, documents in the same order."""
    tokens = list(accumulate((batch.tokens for batch in batches), initial=0))
    segments_before = list(accumulate((len(batch.bounds) - 1 for batch in batches), initial=0))
    documents = list(accumulate((batch.documents for batch in batches), initial=0))
    each = list(zip(batches, tokens, segments_before, documents, strict=False))
    parents = [p + s if p >= 0 else -1 for b, _, s, _ in each for p in (b.parents or (-1,) * (len(b.bounds) - 1))]
    leaves = [leaf + s for b, _, s, _ in each for leaf in (b.leaves or range(len(b.bounds) - 1))]
    return Batch(
        tokens_T=torch.cat([b.tokens_T for b in batches]),
        positions_T=torch.cat([b.positions_T for b in batches]),
        bounds=(0, *(end + t for b, t, _, _ in each for end in b.bounds[1:])),
        select_S=torch.cat([b.select_S + t for b, t, _, _ in each]),
        target_S=torch.cat([b.target_S for b in batches]),
        weight_S=torch.cat([b.weight_S for b in batches]),
        sequence_S=torch.cat([b.sequence_S + d for b, _, _, d in each]),
        parents=tuple(parents) if any(b.parents for b in batches) else (),
        leaves=tuple(leaves) if any(b.leaves for b in batches) else (),
        below=_beside([b.below for b in batches]),
    )


def _beside(given: Sequence[Below | None]) -> Below | None:
    found = [below for below in given if below is not None]
    if not found:
        return None
    assert len(found) == len(given)
    assert len({below.layers for below in found}) == 1, "rows side by side are in the same layer"
    return Below(found[0].layers, torch.cat([below.states_TH for below in found]))
