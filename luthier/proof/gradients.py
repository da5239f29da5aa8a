"""Packing, shared prefixes and accumulation: whichever way a step is computed, its loss and every gradient are those of
its documents taken one at a time by plain transformers (`naive`).

What computes is an argument, so that a test can hand in one with a fault.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from luthier.batch import Batch, Signals
from luthier.data.pack import pack
from luthier.models.adapters import trained
from luthier.models.policy import Policy
from luthier.objectives import OBJECTIVES, Objective
from luthier.proof import naive
from luthier.proof.measure import BOUNDS, Proof, gradient_gap, left_out, relative, worst_gap
from luthier.recipe import Training
from luthier.training.loop import train
from luthier.types import Sequence as Document

Listen = Callable[[Policy, Batch], Signals]
Gradient = Callable[[Policy, Objective, list[Batch]], float]
"""(policy, objective, microbatches of one step) -> the step's loss; leaves its gradient on the parameters."""

PACKING = "one packed row, and padded pairs, against one document at a time: loss and every gradient"
SHARING = "documents with a common beginning computed once, against one at a time: loss and every gradient"
ACCUMULATION = (
    "the step in one microbatch, one a document, and uneven ones, against one document at a time: the gradient"
)


def packing(policy: Policy, documents: Sequence[Document], *, kind: str, listen: Listen = Policy.listen) -> Proof:
    """Packed equals padded equals one by one.

    Args:
        documents: at least one with something to learn.
        kind: of the objective.
        listen: what computes the packed row.
    """
    alone = naive.one_by_one(policy.model, documents, kind=kind)
    rectangle = naive.padded(policy.model, documents, kind=kind)
    packed = _packed(policy, pack(documents), kind=kind, listen=listen)
    units = _units(documents, kind)
    gaps = {}
    for name, step in (("packed", packed), ("padded", rectangle)):
        gaps[f"{name}: the loss"] = relative(math.fsum(step.losses) / units, math.fsum(alone.losses) / units)
        gap = gradient_gap(step.gradients, alone.gradients)
        gaps[f"{name}: the gradient of {gap.at}"] = gap.largest
    at, largest = worst_gap(gaps)
    bound = BOUNDS[_dtype(policy)]
    detail = _counted(documents)
    if not largest <= bound:
        blame = _blame_packing(policy, documents, alone, kind=kind, listen=listen)
        detail = f"{at} differs; {blame if at.startswith('packed') else 'this model treats padded rows otherwise'}"
    return Proof("packing", PACKING, largest, bound, largest <= bound, detail)


def _blame_packing(
    policy: Policy, documents: Sequence[Document], alone: naive.Step, *, kind: str, listen: Listen
) -> str:
    """Tells documents that see each other from one that is computed wrongly even by itself."""
    bound = BOUNDS[_dtype(policy)]
    single = [math.fsum(_packed(policy, pack([d]), kind=kind, listen=listen).losses) for d in documents]
    wrong = [i for i, loss in enumerate(single) if not relative(loss, alone.losses[i]) <= bound]
    if wrong:
        return f"document {wrong[0] + 1} of {len(documents)} alone has another loss than the model's own forward pass"
    together = math.fsum(_packed(policy, pack(documents), kind=kind, listen=listen).losses)
    if not relative(together, math.fsum(single)) <= bound:
        return "documents of one row see each other: alone each has its right loss, and packed together they do not"
    return "the losses agree and the gradients do not, so a backward pass is wrong"


def sharing(policy: Policy, documents: Sequence[Document], *, kind: str, listen: Listen = Policy.listen) -> Proof:
    """A shared beginning, computed once, gives every document the loss and gradient that it has by itself.

    The documents are forked: each comes a second time with the end of the next one, so that there is a beginning to
    share whatever the rows are.
    """
    if not policy.causal:
        return left_out("sharing", SHARING, "a model that reads both ways shares no beginnings")
    forks = forked(documents)
    batch = pack(forks, share=True)
    if not batch.parents:
        return left_out("sharing", SHARING, "these documents are too short for the packer to share their beginnings")
    alone = naive.one_by_one(policy.model, forks, kind=kind)
    shared = _packed(policy, batch, kind=kind, listen=listen)
    loss = relative(math.fsum(shared.losses), math.fsum(alone.losses))
    gap = gradient_gap(shared.gradients, alone.gradients)
    largest, bound = max(loss, gap.largest), BOUNDS[_dtype(policy)]
    passed = loss <= bound and gap.largest <= bound
    detail = f"{_counted(forks)}, of which {batch.tokens} were computed"
    if not passed:
        detail = f"the gradient of {gap.at} differs" if loss <= bound else "the loss differs"
    return Proof("sharing", SHARING, largest, bound, passed, detail)


def forked(documents: Sequence[Document]) -> list[Document]:
    """Every document, and its first two thirds with the last third of the next one."""
    found = []
    for i, first in enumerate(documents):
        other = documents[(i + 1) % len(documents)]
        a, b = max(1, 2 * len(first.tokens_T) // 3), 2 * len(other.tokens_T) // 3
        tokens = np.concatenate([first.tokens_T[:a], other.tokens_T[b:]])
        weights = np.concatenate([first.weights_T[:a], other.weights_T[b:]])
        found += [first, Document(first.id, tokens, weights, first.label)]
    return found


def accumulation(
    policy: Policy, documents: Sequence[Document], *, kind: str, gradient: Gradient | None = None
) -> Proof:
    """However a step is cut into microbatches, its gradient is that of the whole step.

    Args:
        gradient: what computes the step; left out, `by_the_loop`.
    """
    gradient = gradient or by_the_loop
    alone = naive.one_by_one(policy.model, documents, kind=kind)
    expected = math.fsum(alone.losses) / _units(documents, kind)
    gaps, worst = {}, []
    for cut in cuts(len(documents)):
        found = _cut_step(policy, documents, cut, kind=kind, gradient=gradient)
        gap = gradient_gap(found.gradients, alone.gradients)
        sizes = "+".join(str(len(part)) for part in cut)
        gaps[f"cut into {sizes} documents: the loss"] = relative(found.losses[0], expected)
        gaps[f"cut into {sizes} documents: the gradient of {gap.at}"] = gap.largest
        worst.append((gap.largest, cut, found))
    at, largest = worst_gap(gaps)
    bound = BOUNDS[_dtype(policy)]
    detail = f"{_counted(documents)}, cut in {len(worst)} ways"
    if not largest <= bound:
        _, cut, found = max(worst, key=lambda one: one[0])
        means = naive.one_by_one(policy.model, documents, kind=kind, divisors=_own_means(documents, cut, kind))
        averaged = gradient_gap(found.gradients, means.gradients).largest <= bound
        detail = f"{at} differs" + (
            "; it is a mean of the microbatches' own means, so a token weighs more in a small microbatch"
            if averaged
            else ""
        )
    return Proof("accumulation", ACCUMULATION, largest, bound, largest <= bound, detail)


def cuts(count: int) -> list[list[list[int]]]:
    """Ways to cut a step of so many documents into microbatches: whole, one each, and two that are uneven."""
    every = list(range(count))
    found = [[every], [[i] for i in every], [every[:1], every[1:]], [every[:-1], every[-1:]], [every[::2], every[1::2]]]
    kept: list[list[list[int]]] = []
    for cut in ([part for part in cut if part] for cut in found):
        if cut not in kept:
            kept.append(cut)
    return kept


def by_the_loop(policy: Policy, objective: Objective, microbatches: list[Batch]) -> float:
    """A step by the training loop itself, with an optimizer whose rate moves no weight."""
    settings = Training(rate=1e-300, warmup=0, schedule="constant", clip=0)
    weights = list(trained(policy.model).values())
    still = torch.optim.SGD([{"params": weights, "scale": 1.0}], lr=1e-300)
    return next(train(policy, OneStep(microbatches), objective, still, settings)).loss


@dataclass(frozen=True)
class OneStep:
    """A source of one step."""

    microbatches: list[Batch]

    def __len__(self) -> int:
        return 1

    def step(self, n: int) -> list[Batch]:
        return self.microbatches


def _packed(policy: Policy, batch: Batch, *, kind: str, listen: Listen) -> naive.Step:
    """The summed loss of a packed row (one number for all of its documents), and the gradient of its mean."""
    naive.clear(policy.model)
    objective = OBJECTIVES[kind]
    loss = objective.loss(listen(policy, batch), batch)
    units = objective.units(batch)
    if units:
        (loss / units).backward()  # type: ignore[no-untyped-call]
    return naive.Step([float(loss.detach())], naive.take(policy.model))


def _cut_step(
    policy: Policy, documents: Sequence[Document], cut: list[list[int]], *, kind: str, gradient: Gradient
) -> naive.Step:
    naive.clear(policy.model)
    loss = gradient(policy, OBJECTIVES[kind], [pack([documents[i] for i in part]) for part in cut])
    return naive.Step([loss], naive.take(policy.model))


def _own_means(documents: Sequence[Document], cut: list[list[int]], kind: str) -> list[float]:
    """What each document's loss is divided by where every microbatch is divided by its own units, and these means by
    their number."""
    found = [1.0] * len(documents)
    for part in cut:
        units = _units([documents[i] for i in part], kind)
        for i in part:
            found[i] = (units or 1.0) * len(cut)
    return found


def _units(documents: Sequence[Document], kind: str) -> float:
    return math.fsum(map(naive.TWINS[kind].units, documents))


def _dtype(policy: Policy) -> torch.dtype:
    dtype: torch.dtype = policy.model.get_input_embeddings().weight.dtype
    return dtype


def _counted(documents: Sequence[Document]) -> str:
    return f"{len(documents)} documents, {sum(len(d.tokens_T) for d in documents)} tokens"
