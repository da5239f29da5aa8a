"""Resume, adapter and merge: what is written and read again is what was trained.

What saves, loads and merges is an argument, so that a test can hand in one with a fault.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from luthier.batch import Source
from luthier.errors import ModelError
from luthier.export.merge import outputs
from luthier.models import adapters
from luthier.models.peft_methods import compilers_kept
from luthier.models.policy import Policy
from luthier.objectives import Objective
from luthier.proof import naive
from luthier.proof.measure import BOUNDS, Proof, left_out
from luthier.recipe import Training
from luthier.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from luthier.training.loop import train

RESUME = "steps taken without a break, against a checkpoint half-way and a fresh start from it: every trained weight"
ADAPTER = "the saved adapter, loaded by PEFT over the base as it was, against ours: every output"
MERGED = "base and adapter, against both merged into one set of weights: every output"

Save = Callable[[Path, Mapping[str, nn.Parameter], torch.optim.Optimizer, Progress], Path]


class Start(NamedTuple):
    """Where a run begins."""

    policy: Policy
    optimizer: torch.optim.Optimizer


def resume(
    fresh: Callable[[], Start],
    source: Source,
    *,
    objective: Objective,
    training: Training,
    save: Save = save_checkpoint,
) -> Proof:
    """A run that was stopped half-way and built anew from its checkpoint ends in the same bits.

    Args:
        fresh: builds model and optimizer from nothing but the recipe, as a new process would.
        source: of at least two steps.
    """
    steps, half = len(source), len(source) // 2

    def go(start: Start, first: int, last: int) -> dict[str, Tensor]:
        policy, optimizer = start
        run = train(policy, source, objective, optimizer, training, start=first)
        for report in run:
            if report.step == last:
                break
        return {name: p.detach().clone() for name, p in adapters.trained(policy.model).items()}

    undisturbed = go(fresh(), 0, steps)
    with tempfile.TemporaryDirectory(prefix="luthier-prove-") as folder:
        start = fresh()
        go(start, 0, half)
        path = save(Path(folder), adapters.trained(start.policy.model), start.optimizer, Progress(step=half))
        start = fresh()
        progress = load_checkpoint(path, adapters.trained(start.policy.model), start.optimizer)
    resumed = go(start, progress.step, steps)
    differing = [name for name, weight in undisturbed.items() if not torch.equal(weight, resumed[name])]
    largest = max((float((undisturbed[n].double() - resumed[n].double()).abs().max()) for n in differing), default=0.0)
    weights = sum(w.numel() for w in undisturbed.values())
    detail = f"{steps} steps, {weights} weights in {len(undisturbed)} tensors"
    if differing:
        detail = (
            f"{len(differing)} of {len(undisturbed)} tensors differ after going on, such as {differing[0]}: "
            "the checkpoint lacks something that the next step depends on"
        )
    return Proof("resume", RESUME, largest, 0.0, not differing, detail)


def adapter(
    policy: Policy,
    documents: Sequence[Sequence[int]],
    *,
    base: Callable[[], nn.Module],
    save: Callable[[Path, Policy], None],
) -> Proof:
    """Another program computes the same with the folder that we write.

    Args:
        documents: token ids.
        base: loads the base without an adapter.
        save: writes the adapter into a folder, in PEFT's format.
    """
    try:
        import peft
    except ImportError:
        return left_out("adapter", ADAPTER, "PEFT is not installed: pip install peft")
    ours = fast_outputs(policy, documents)
    with tempfile.TemporaryDirectory(prefix="luthier-prove-") as folder, warnings.catch_warnings():
        # PEFT's advice to whoever calls it: on settings of transformers, and on bases it does not find at a hub.
        warnings.simplefilter("ignore")
        save(Path(folder), policy)
        try:
            with compilers_kept():
                loaded = peft.PeftModel.from_pretrained(base(), folder).eval()
        except Exception as error:  # whatever PEFT raises here is what this check looks for
            said = " ".join(str(error).split())[:200]
            detail = f"PEFT cannot load the saved folder: {type(error).__name__}: {said}"
            return Proof("adapter", ADAPTER, None, BOUNDS[_dtype(policy)], False, detail)
        theirs = plain_outputs(loaded, documents)
    return _compared("adapter", ADAPTER, ours, theirs, policy, "PEFT computes something else with the saved folder")


def merge(
    policy: Policy, documents: Sequence[Sequence[int]], *, merge: Callable[[nn.Module], None] = adapters.merge
) -> Proof:
    """The merged weights compute what base and adapter compute. Merges `policy` in place."""
    before = fast_outputs(policy, documents)
    try:
        merge(policy.model)
    except ModelError as error:
        return left_out("merge", MERGED, error.what)
    after = plain_outputs(policy.model, documents)
    fault = f"the merged weights, in {str(_dtype(policy)).removeprefix('torch.')}, compute something else"
    return _compared("merge", MERGED, before, after, policy, fault)


def fast_outputs(policy: Policy, documents: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits of every position of every document, or its scores, by what trains."""
    return [outputs(policy, [list(document)]) for document in documents]


def plain_outputs(model: nn.Module, documents: Sequence[Sequence[int]]) -> list[Tensor]:
    """The same by the model's own forward pass (`naive`)."""
    with torch.no_grad(), naive.plain(model), naive.unpadded(model):
        return [naive.outputs(model, document) for document in documents]


def _compared(
    name: str, compared: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], policy: Policy, fault: str
) -> Proof:
    """Outputs relative to the largest of them."""
    size = max(float(out.abs().max()) for out in ours)
    gaps = [float((a.reshape(b.shape) - b).abs().max()) / (size or 1.0) for a, b in zip(ours, theirs, strict=True)]
    largest = max(gaps, key=lambda gap: (gap != gap, gap))
    bound = BOUNDS[_dtype(policy)]
    count = sum(out.numel() for out in ours)
    return Proof(name, compared, largest, bound, largest <= bound, f"{count} outputs" if largest <= bound else fault)


def _dtype(policy: Policy) -> torch.dtype:
    dtype: torch.dtype = policy.model.get_input_embeddings().weight.dtype
    return dtype
