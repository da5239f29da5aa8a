"""Every check, one row each, in the order in which they are made and shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from luthier.batch import Source
from luthier.models.policy import Policy, draws
from luthier.objectives import OBJECTIVES
from luthier.proof import files, gradients, mask
from luthier.proof.files import Start
from luthier.proof.mask import Row
from luthier.proof.measure import Proof, left_out
from luthier.proof.naive import TWINS
from luthier.recipe import Training
from luthier.types import Sequence as Document


@dataclass(frozen=True)
class Subject:
    """What is proved: a model with its adapter, and rows."""

    policy: Policy
    """As training has it, without dropout; the adapter moved away from its start, so that it shows in what is
    computed."""
    kind: str
    """Of the objective."""
    documents: Sequence[Document]
    """The few rendered rows that the model is given."""
    rows: Sequence[Row]
    """The rows whose mask is looked at."""
    cut_rows: int
    """Rows that were cut to the longest length, whose mask cannot be looked at."""
    tokenizer: Any
    turns: str
    labels: Sequence[str]
    fresh: Callable[[], Start]
    """Builds model and optimizer anew, as the recipe has them, dropout and number format included."""
    source: Source
    """A few steps of the recipe's own."""
    training: Training
    base: Callable[[], nn.Module]
    """Loads the base without its adapter."""
    save: Callable[[Path, Policy], None]
    no_files: str = ""
    """Why there is no adapter that another program could load or that could be merged; empty where there is one."""
    no_peft: str = ""
    """Why PEFT cannot load the adapter over the base as it was, though there is one."""


def _mask(subject: Subject) -> Proof:
    if not subject.rows:
        return mask.no_rows(subject.cut_rows)
    return mask.mask(subject.rows, subject.tokenizer, turns=subject.turns, labels=subject.labels, cut=subject.cut_rows)


def _packing(subject: Subject) -> Proof:
    if why := _no_gradients(subject):
        return left_out("packing", gradients.PACKING, why)
    return gradients.packing(subject.policy, subject.documents, kind=subject.kind)


def _sharing(subject: Subject) -> Proof:
    if why := _no_gradients(subject):
        return left_out("sharing", gradients.SHARING, why)
    return gradients.sharing(subject.policy, subject.documents, kind=subject.kind)


def _accumulation(subject: Subject) -> Proof:
    if why := _no_gradients(subject):
        return left_out("accumulation", gradients.ACCUMULATION, why)
    return gradients.accumulation(subject.policy, subject.documents, kind=subject.kind)


def _no_gradients(subject: Subject) -> str:
    """Why no two computations of a step can be compared; empty where they can."""
    if subject.kind not in TWINS:
        return f"the objective {subject.kind!r} has no plain twin in luthier/proof/naive.py"
    if any(map(draws, subject.policy.model.modules())):
        return "this method draws noise in every training step, and each way of computing one draws its own"
    return ""


def _resume(subject: Subject) -> Proof:
    objective = OBJECTIVES[subject.kind]
    return files.resume(subject.fresh, subject.source, objective=objective, training=subject.training)


def _adapter(subject: Subject) -> Proof:
    if subject.no_files or subject.no_peft:
        return left_out("adapter", files.ADAPTER, subject.no_files or subject.no_peft)
    return files.adapter(subject.policy, _ids(subject), base=subject.base, save=subject.save)


def _merge(subject: Subject) -> Proof:
    if subject.no_files:
        return left_out("merge", files.MERGED, subject.no_files)
    return files.merge(subject.policy, _ids(subject))


def _ids(subject: Subject) -> list[list[int]]:
    return [document.tokens_T.tolist() for document in subject.documents]


CHECKS: dict[str, Callable[[Subject], Proof]] = {
    "mask": _mask,
    "packing": _packing,
    "sharing": _sharing,
    "accumulation": _accumulation,
    "resume": _resume,
    "adapter": _adapter,
    "merge": _merge,
}
"""Name -> check. Merging changes the model in place, so it stands last."""
