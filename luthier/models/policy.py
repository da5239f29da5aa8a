"""A model as the loop, the evaluator and the sampler see it: batches in, signals out.

`Policy` holds a transformers model whose attention is ours; `listen` gives what objectives need, `hidden` the states
that the sampler goes on from, `verify` compares all of it with the model's own forward pass before anything is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from luthier.batch import Batch, Signals, wide
from luthier.errors import ModelError
from luthier.models import adapters, attention
from luthier.models.families import ENCODERS, SequenceHead, position_offset, sequence_head, softcap
from luthier.models.logprobs import logits, token_logprobs


@dataclass
class Policy:
    """A model with or without an adapter. `head` is None for one that predicts tokens."""

    model: Any
    head: SequenceHead | None = None
    fresh: tuple[str, ...] = ()
    """Modules that began at random because the weights held nothing for them."""

    @property
    def backbone(self) -> Any:
        """The model without its output head."""
        return getattr(self.model, self.model.base_model_prefix)

    @property
    def causal(self) -> bool:
        """Whether the model predicts tokens from left to right."""
        return self.model.config.model_type not in ENCODERS

    def listen(self, batch: Batch) -> Signals:
        """Runs a batch: log-probabilities of its targets, or the scores of its documents."""
        hidden_TH = self.hidden(batch.tokens_T, batch.positions_T, attention.Layout(bounds=batch.bounds))
        if self.head is not None:
            return Signals(scores_NC=self.scores(hidden_TH, batch.bounds))
        weight, bias, cap = self._output()
        selected = hidden_TH[batch.select_S]
        return Signals(logprobs_S=token_logprobs(selected, weight, batch.target_S, bias_V=bias, softcap=cap))

    def hidden(self, tokens: Tensor, positions: Tensor, layout: attention.Layout) -> Tensor:
        """Last hidden states. A packed row [T] gives [T, H]; a decoding step [B, 1] gives [B, 1, H]."""
        packed = tokens.ndim == 1
        if packed:
            tokens, positions = tokens[None], positions[None]
        offset = position_offset(self.model.config)
        keywords: dict[str, Any] = {attention.KEYWORD: layout}
        if self.causal:
            keywords["use_cache"] = False
        out = self.backbone(input_ids=tokens, position_ids=positions + offset, **keywords).last_hidden_state
        return out[0] if packed else out  # type: ignore[no-any-return]

    def next_logits(self, hidden_BH: Tensor) -> Tensor:
        """Logits of the token after each hidden state, [B, V] in float32 or wider."""
        weight, bias, cap = self._output()
        return logits(hidden_BH, weight, bias, cap)

    def scores(self, hidden_TH: Tensor, bounds: tuple[int, ...]) -> Tensor:
        """Scores of each document, [N, C] in float32 or wider."""
        assert self.head is not None
        if self.head.take == "mean":
            taken = torch.stack([wide(hidden_TH[a:b]).mean(0) for a, b in pairwise(bounds)]).to(hidden_TH.dtype)
        else:
            starts = [a if self.head.take == "first" else b - 1 for a, b in pairwise(bounds)]
            taken = hidden_TH[starts]
        return wide(self.head.score(self.model, taken))

    def _output(self) -> tuple[Tensor, Tensor | None, float | None]:
        head = self.model.get_output_embeddings()
        return head.weight, getattr(head, "bias", None), softcap(self.model.config)

    @contextmanager
    def inference(self, *, base: bool = False) -> Iterator[None]:
        """No gradients, no dropout; `base=True` also leaves the adapter out. Restores what was."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                if base:
                    with adapters.disabled(self.model):
                        yield
                else:
                    yield
        finally:
            self.model.train(training)


def policy(model: nn.Module, *, sequence: bool = False, fresh: tuple[str, ...] = ()) -> Policy:
    """Gives a loaded model our attention. `sequence`: it carries a sequence head; `fresh`: modules that begin at
    random."""
    attention.register()
    config: Any = model.config
    _implementation(model, attention.NAME)
    config.use_cache = False
    result = Policy(model=model, head=sequence_head(model) if sequence else None, fresh=fresh)
    if result.head is not None and result.head.take == "first" and hasattr(config, "classifier_pooling"):
        config.classifier_pooling = "cls"
    return result


def _implementation(model: nn.Module, name: str) -> None:
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            config._attn_implementation = name


def verify(policy: Policy) -> float:
    """Compares our forward pass with the model's own on 16 tokens, and looks for a leak between packed documents.

    Returns:
        The largest difference of a log-probability or score.

    Raises:
        ModelError: they differ by more than rounding, or one document changes another.
    """
    vocabulary = int(policy.model.config.vocab_size)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (24,), generator=generator)
    half = any(p.dtype in (torch.bfloat16, torch.float16) for p in policy.model.parameters())
    with policy.inference():
        ours = _probe(policy, [tokens[:16]])[0]
        _implementation(policy.model, "eager")
        try:
            theirs = _own(policy, tokens[:16])
        finally:
            _implementation(policy.model, attention.NAME)
        behind = _probe(policy, [tokens[16:], tokens[:16]])[1]
        other = _probe(policy, [tokens[16:].flip(0), tokens[:16]])[1]
    gap = float((ours - theirs).abs().max())
    bound = 0.25 if half else 1e-3
    if gap > bound or not torch.isfinite(ours).all():
        raise ModelError(
            "this model computes something that Luthier does not reproduce",
            where=type(policy.model).__name__,
            got=f"log-probabilities differ by {gap:.3g} on 16 tokens; rounding allows {bound:g}",
            do="use a model of a family that Luthier knows, or add what it needs to luthier/models/families.py",
        )
    if not torch.equal(behind, other):
        raise ModelError(
            "documents packed into one row see each other in this model",
            where=type(policy.model).__name__,
            do="this family mixes tokens outside of its attention; it cannot be trained packed",
        )
    return gap


def _probe(policy: Policy, documents: list[Tensor]) -> list[Tensor]:
    """Log-probabilities of all tokens after the first, or scores, of each packed document, by our path."""
    bounds = [0]
    for document in documents:
        bounds.append(bounds[-1] + len(document))
    positions = torch.cat([torch.arange(len(d)) for d in documents])
    hidden = policy.hidden(torch.cat(documents), positions, attention.Layout(bounds=tuple(bounds)))
    if policy.head is not None:
        return list(policy.scores(hidden, tuple(bounds)))
    if not policy.causal:
        return [wide(hidden[a:b]) for a, b in pairwise(bounds)]
    weight, bias, cap = policy._output()
    return [
        token_logprobs(hidden[a : b - 1], weight, document[1:], bias_V=bias, softcap=cap)
        for document, (a, b) in zip(documents, pairwise(bounds), strict=True)
    ]


def _own(policy: Policy, tokens: Tensor) -> Tensor:
    """The same by the model's own forward pass."""
    out = policy.model(input_ids=tokens[None], attention_mask=torch.ones_like(tokens)[None])
    if policy.head is not None:
        return wide(out.logits[0])
    return wide(out.logits[0, :-1]).log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
