"""Objectives with a known answer: tokens, labels, numbers.

Shape suffixes:  S supervised positions   N documents   C classes or outputs
"""

import torch.nn.functional as F
from torch import Tensor

from luthier.batch import Batch, Signals, wide


def tokens_loss(signals: Signals, batch: Batch) -> Tensor:
    """sum of w (-log p) over supervised tokens."""
    assert signals.logprobs_S is not None
    return -(signals.logprobs_S * batch.weight_S.to(signals.logprobs_S.dtype)).sum()


def tokens_units(batch: Batch) -> float:
    return float(batch.weight_S.double().sum())


def classify_loss(signals: Signals, batch: Batch) -> Tensor:
    """sum of -log p_y over documents; the label is column `label_NC` [N, 1], a class index."""
    scores = wide(_scores(signals))
    return F.cross_entropy(scores, batch.columns["label_NC"][:, 0].long(), reduction="sum")


def classify_multi_loss(signals: Signals, batch: Batch) -> Tensor:
    """sum over documents and labels of the binary cross-entropy; the labels are `label_NC`, 0 or 1 each."""
    scores = wide(_scores(signals))
    return F.binary_cross_entropy_with_logits(scores, batch.columns["label_NC"].to(scores.dtype), reduction="sum")


def regress_loss(signals: Signals, batch: Batch) -> Tensor:
    """sum of squared errors; the number is `label_NC` [N, 1]."""
    scores = wide(_scores(signals))
    return (scores - batch.columns["label_NC"].to(scores.dtype)).square().sum()


def documents_units(batch: Batch) -> float:
    return float(batch.documents)


def labels_units(batch: Batch) -> float:
    return float(batch.columns["label_NC"].numel())


def _scores(signals: Signals) -> Tensor:
    assert signals.scores_NC is not None
    return signals.scores_NC
