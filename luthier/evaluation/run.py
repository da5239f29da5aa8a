"""A model answers the test rows: losses, generated answers, labels or numbers, one plain item a row.

The same prompts and decoding serve every arm. What comes out is scored and compared without a model in `compare`.

Shape suffixes:  N documents   C classes or outputs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from luthier.batch import Batch, Signals
from luthier.data.render import Renderer
from luthier.data.source import stream
from luthier.data.store import ExampleStore
from luthier.data.tokens import TokenStore
from luthier.models.policy import Policy
from luthier.objectives import OBJECTIVES
from luthier.recipe import Classify, ClassifyMulti, Recipe
from luthier.sampling.local import Decoding, generate
from luthier.types import JSON, Conversation, Labelled, Text


@dataclass(frozen=True)
class TestSet:
    """Rows that no arm has seen."""

    __test__ = False

    recipe: Recipe
    examples: ExampleStore
    tokens: TokenStore
    renderer: Renderer
    rows: tuple[int, ...]
    """Rows of the example store that are asked, in order."""


def pick_rows(tokens: TokenStore, examples: ExampleStore, limit: int | None) -> tuple[int, ...]:
    """The rows to ask: all, or the `limit` rows with the smallest hashes, whatever their order in the file."""
    rows = sorted({int(r) for r in tokens.rows})
    if limit is None or limit >= len(rows):
        return tuple(rows)
    return tuple(sorted(sorted(rows, key=lambda r: examples[r].provenance.hash)[:limit]))


def items(
    test: TestSet,
    policy: Policy,
    *,
    arm: str,
    base: bool,
    progress: Callable[[int, int], None],
    known: Callable[[Batch], torch.Tensor] | None = None,
) -> list[JSON]:
    """One item a row, in the order of `test.rows`.

    Args:
        base: leave the adapter out.
        progress: called with (rows done, rows).
        known: gives the log-probabilities of a batch's targets, where they were computed before.
    """
    found = {row: _blank(test, row, arm) for row in test.rows}
    with policy.inference(base=base):
        _losses(test, policy, found, known)
        objective = test.recipe.objective
        assert objective is not None
        if objective.kind == "supervised" and test.recipe.evaluation.generate:
            _answers(test, policy, found, progress)
    return [found[row] for row in test.rows]


def _blank(test: TestSet, row: int, arm: str) -> JSON:
    example = test.examples[row]
    prompt: Any
    if isinstance(example, Conversation):
        prompt, reference = [m.as_dict() for m in example.messages[:-1]], None
    elif isinstance(example, Text):
        prompt, reference = example.text[:2000], None
    else:
        prompt, reference = example.text, _reference(test.recipe, example)
    return {
        "id": example.id,
        "arm": arm,
        "row": row,
        "prompt": prompt,
        "reference": reference,
        "answer": None,
        "finish": None,
        "prompt_tokens": 0,
        "answer_tokens": 0,
        "loss_sum": 0.0,
        "loss_units": 0.0,
        "probabilities": None,
        "scores": {},
    }


def _reference(recipe: Recipe, example: Labelled) -> str | list[str] | float | None:
    if isinstance(recipe.objective, Classify):
        return example.labels[0]
    if isinstance(recipe.objective, ClassifyMulti):
        return sorted(example.labels)
    return example.value


def asked(test: TestSet) -> list[int]:
    """Which sequences of the token store belong to the rows."""
    return np.flatnonzero(np.isin(test.tokens.rows, test.rows)).tolist()


def _losses(
    test: TestSet, policy: Policy, found: dict[int, JSON], known: Callable[[Batch], torch.Tensor] | None
) -> None:
    """Loss of every row, summed over its supervised tokens; for a sequence head also the answer."""
    assert test.recipe.objective is not None
    objective = OBJECTIVES[test.recipe.objective.kind]
    for batch in stream(test.tokens, np.asarray(asked(test)), test.recipe.training.budget):
        signals = policy.listen(batch) if known is None else Signals(logprobs_S=known(batch))
        rows = test.tokens.rows[batch.columns["index_N"].numpy()]
        if objective.sequence:
            assert signals.scores_NC is not None
            for n, row in enumerate(rows):
                _read_head(test.recipe, found[int(row)], signals.scores_NC[n])
            continue
        assert signals.logprobs_S is not None
        for row, (loss, unit) in zip(rows, document_losses(batch, signals.logprobs_S), strict=True):
            item = found[int(row)]
            item["loss_sum"] += loss
            item["loss_units"] += unit


def document_losses(batch: Batch, logprobs_S: torch.Tensor) -> list[tuple[float, float]]:
    """Of each document of a batch its summed loss, in nats, and the units that it is summed over."""
    weight_S = batch.weight_S.to(logprobs_S.dtype)
    sums = batch.sum_by_document(-logprobs_S * weight_S).tolist()
    return list(zip(sums, batch.sum_by_document(weight_S).tolist(), strict=True))


def _read_head(recipe: Recipe, item: JSON, scores_C: torch.Tensor) -> None:
    objective = recipe.objective
    item["loss_units"] = 1.0
    if isinstance(objective, Classify):
        labels = objective.labels or []
        logprobs = scores_C.double().log_softmax(-1)
        item["probabilities"] = logprobs.exp().tolist()
        item["answer"] = labels[int(logprobs.argmax())]
        if item["reference"] in labels:
            item["loss_sum"] = -float(logprobs[labels.index(item["reference"])])
    elif isinstance(objective, ClassifyMulti):
        labels = objective.labels or []
        probabilities = scores_C.double().sigmoid()
        item["probabilities"] = probabilities.tolist()
        item["answer"] = sorted(name for name, p in zip(labels, probabilities.tolist(), strict=True) if p > 0.5)
        target = torch.tensor([float(name in item["reference"]) for name in labels], dtype=torch.float64)
        item["loss_sum"] = float(
            torch.nn.functional.binary_cross_entropy_with_logits(scores_C.double(), target, reduction="sum")
        )
        item["loss_units"] = float(len(labels))
    else:
        item["answer"] = float(scores_C[0])
        item["loss_sum"] = (item["answer"] - item["reference"]) ** 2


def _answers(test: TestSet, policy: Policy, found: dict[int, JSON], progress: Callable[[int, int], None]) -> None:
    """Writes an answer to every conversation; the reference is what training would have supervised, decoded."""
    tokenizer, evaluation = test.renderer.tokenizer, test.recipe.evaluation
    assert evaluation.max_new_tokens is not None
    prompts = []
    for row in test.rows:
        example = test.examples[row]
        assert isinstance(example, Conversation)
        prompts.append(test.renderer.prompt(example.messages, example.tools))
        found[row]["reference"] = reference_text(test, row)
        found[row]["prompt_tokens"] = len(prompts[-1])
    positions = int(getattr(policy.model.config, "max_position_embeddings", 1 << 30))
    room = max(1, positions - evaluation.max_new_tokens)
    prompts = [cut_start(prompt, room, first=test.renderer.frame.first) for prompt in prompts]
    stop = frozenset(test.renderer.stop_tokens())
    decoding = Decoding(max_new_tokens=evaluation.max_new_tokens, stop=stop)
    progress(0, len(prompts))
    for done, completion in enumerate(generate(policy, prompts, decoding, batch=evaluation.batch), start=1):
        item = found[test.rows[completion.index]]
        item["answer"] = tokenizer.decode(list(completion.tokens), skip_special_tokens=True).strip()
        item["finish"] = completion.finish
        item["answer_tokens"] = len(completion.tokens)
        progress(done, len(prompts))


def cut_start(prompt: list[int], room: int, *, first: int | None) -> list[int]:
    """The prompt's last `room` tokens, a leading BOS kept: an answer needs positions of its own."""
    if len(prompt) <= room:
        return prompt
    return [prompt[0], *prompt[len(prompt) - room + 1 :]] if prompt[0] == first else prompt[-room:]


def reference_text(test: TestSet, row: int) -> str:
    """The last assistant turn as the template writes it, without special tokens: tool calls included."""
    last = test.examples[row]
    assert isinstance(last, Conversation)
    message = last.messages[-1]
    if message.content and "tool_calls" not in message.extra:
        return message.content.strip()
    # Asked about is the last turn, whatever weight the row gives it.
    turns = (*last.messages[:-1], replace(message, weight=None))
    learnt = test.renderer.render(replace(last, messages=turns), turns="last")
    supervised = learnt.tokens_T[np.flatnonzero(learnt.weights_T)]
    return str(test.renderer.tokenizer.decode(supervised.tolist(), skip_special_tokens=True)).strip()
