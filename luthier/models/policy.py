"""A model as the loop, the evaluator and the sampler see it: batches in, signals out.

`Policy` holds a transformers model whose attention is ours; `listen` gives what objectives need, `hidden` the states
that the sampler goes on from, `verify` compares all of it with the model's own forward pass before anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from luthier.batch import Batch, Below, Signals, wide
from luthier.errors import ModelError
from luthier.models import adapters, attention, lower
from luthier.models.families import ENCODERS, SequenceHead, position_offset, sequence_head, softcap
from luthier.models.logprobs import logits, token_logprobs
from luthier.models.stack import Stack, stack
from luthier.models.stack_centred import CentredStack, centred_stack


@dataclass
class Policy:
    """A model with or without an adapter. `head` is None for one that predicts tokens."""

    model: Any
    head: SequenceHead | None = None
    fresh: tuple[str, ...] = ()
    """Modules that began at random because the weights held nothing for them."""
    dtype: torch.dtype = torch.float32
    """What is computed in, where the model's layers run on our path; trained weights may be stored in a wider type."""
    recompute: bool = False
    """Keep only each layer's input for the backward pass and compute the rest of it again: less memory, more time."""

    @property
    def backbone(self) -> Any:
        """The model without its output head."""
        return getattr(self.model, self.model.base_model_prefix)

    @property
    def device(self) -> torch.device:
        """Where the model is. What it is asked about may lie elsewhere."""
        device: torch.device = self.model.device
        return device

    @property
    def causal(self) -> bool:
        """Whether the model predicts tokens from left to right."""
        return self.model.config.model_type not in ENCODERS

    @property
    def shares(self) -> bool:
        """Whether what documents begin with alike may be computed once in training: a token's state has to follow from
        the tokens before it alone, so nothing may read both ways, and no dropout or noise be drawn."""
        return self.causal and all(getattr(m, "is_causal", True) and not draws(m) for m in self.model.modules())

    def listen(self, batch: Batch) -> Signals:
        """Runs a batch: log-probabilities of its targets, or the scores of its documents, on the device that the batch
        is on."""
        home, batch = batch.tokens_T.device, batch.to(self.device)
        layout = attention.Layout(bounds=batch.bounds, parents=batch.parents)
        if self.head is not None:
            rows_N = self._read(batch.bounds, batch.leaves)
            hidden_NH = self.hidden(batch.tokens_T, batch.positions_T, layout, rows=rows_N, below=batch.below)
            bounds = batch.bounds if rows_N is None else tuple(range(len(rows_N) + 1))
            return Signals(scores_NC=self.scores(hidden_NH, bounds).to(home))
        # Only these rows of the last layer are read: the others are computed no further than attention needs them.
        rows_R, select_S = torch.unique(batch.select_S, return_inverse=True)
        hidden_RH = self.hidden(batch.tokens_T, batch.positions_T, layout, rows=rows_R, below=batch.below)
        # Not by indexing, whose gradient adds up in the order that threads take what is selected several times.
        logprobs_S = self.logprobs(hidden_RH.index_select(0, select_S), batch.target_S)
        return Signals(logprobs_S=logprobs_S.to(home))

    def logprobs(self, hidden_SH: Tensor, target_S: Tensor) -> Tensor:
        """Log-probabilities of the tokens after hidden states, [S] in float32 or wider."""
        weight, bias, cap = self._output()
        return token_logprobs(hidden_SH, weight, target_S, bias_V=bias, softcap=cap)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor,
        layout: attention.Layout,
        *,
        rows: Tensor | None = None,
        below: Below | None = None,
    ) -> Tensor:
        """Last hidden states. A packed row [T] gives [T, H], or [R, H] where only the row numbers `rows` [R] are
        wanted; a decoding step [B, 1] gives [B, 1, H]. With a cache in the layout, keys and values are put there.
        `below` is where the lowest layers need not be run."""
        packed, device = tokens.ndim == 1, self.device
        tokens, positions = tokens.to(device), positions.to(device)
        rows = None if rows is None else rows.to(device)
        fast = fast_stack(self.backbone)
        cache = layout.cache
        if packed and cache is not None and isinstance(fast, Stack):
            forest = attention.segments(layout.bounds, layout.parents)
            embedded = fast.embed(tokens, positions, self.dtype)
            return fast.run(embedded, positions, forest, rows=rows, keep=lambda i, k, v: cache.put(i, layout, k, v))
        if packed and cache is None and fast is not None:
            places = positions + position_offset(self.model.config)
            start = 0 if below is None else below.layers
            entering = fast.embed(tokens, places, self.dtype) if below is None else below.states_TH
            forest = attention.segments(layout.bounds, layout.parents)
            return fast.run(entering, places, forest, rows=rows, recompute=self.recompute, start=start)
        if packed:
            tokens, positions = tokens[None], positions[None]
        if below is None:
            out = self._own(tokens, positions, layout)
        else:
            with lower.entered(self.backbone, below.layers, below.states_TH[None]):
                out = self._own(tokens, positions, layout)
        states = out[0] if packed else out
        return states if rows is None else states.index_select(0, rows)

    def decoder(self, cache: attention.KeyValues) -> Callable[[Tensor], Tensor]:
        """A function for one generation: from the newest token of each of the cache's rows [B] to its hidden state
        [B, H]. It puts keys and values into the cache, and leaves the rows' lengths to the caller."""
        fast = fast_stack(self.backbone)
        step = fast.decoder(cache, self.dtype) if isinstance(fast, Stack) else None
        layout = attention.Layout(cache=cache)
        return step or (lambda tokens_B: self.hidden(tokens_B[:, None], cache.lengths_B[:, None], layout)[:, 0])

    def below(self, batch: Batch, layers: int) -> Below:
        """What the `layers` lowest layers make of a batch; at least one of them."""
        batch = batch.to(self.device)
        layout = attention.Layout(bounds=batch.bounds, parents=batch.parents)
        if (fast := fast_stack(self.backbone)) is not None:
            places = batch.positions_T + position_offset(self.model.config)
            embedded = fast.embed(batch.tokens_T, places, self.dtype)
            states = fast.run(embedded, places, attention.segments(batch.bounds, batch.parents), stop=layers)
            return Below(layers, states)
        tokens, positions = batch.tokens_T[None], batch.positions_T[None]
        return Below(layers, lower.caught(self.backbone, layers, lambda: self._own(tokens, positions, layout))[0])

    def _own(self, tokens: Tensor, positions: Tensor, layout: attention.Layout) -> Tensor:
        """Last hidden states of rows [B, T] by the backbone's own forward pass, [B, T, H]."""
        keywords: dict[str, Any] = {attention.KEYWORD: layout}
        if self.causal:
            keywords["use_cache"] = False
        offset = position_offset(self.model.config)
        # Weights that are trained themselves are stored in float32, and each product takes them in the other type.
        casts = self.dtype in (torch.bfloat16, torch.float16) and self.model.dtype == torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=casts):
            out = self.backbone(input_ids=tokens, position_ids=positions + offset, **keywords)
        states: Tensor = out.last_hidden_state
        return states

    def next_logits(self, hidden_BH: Tensor) -> Tensor:
        """Logits of the token after each hidden state, [B, V] in float32 or wider."""
        weight, bias, cap = self._output()
        return logits(hidden_BH, weight, bias, cap)

    def scores(self, hidden_TH: Tensor, bounds: tuple[int, ...]) -> Tensor:
        """Scores of each document, [N, C] in float32 or wider."""
        assert self.head is not None
        if self.head.take == "mean":
            taken = torch.stack([wide(hidden_TH[a:b]).mean(0) for a, b in pairwise(bounds)])
        else:
            rows = self._read(bounds, ())
            assert rows is not None
            taken = hidden_TH.index_select(0, rows)
        own = next(p for name in self.head.modules for p in self.model.get_submodule(name).parameters())
        return wide(self.head.score(self.model, taken.to(own.dtype)))

    def _read(self, bounds: tuple[int, ...], leaves: tuple[int, ...]) -> Tensor | None:
        """The rows that the sequence head reads, one for each document; None where it reads all."""
        assert self.head is not None
        if self.head.take == "mean":
            return None
        assert self.head.take == "last" or not leaves, "only a document's last token has seen all of it"
        ends = [bounds[s] for s in leaves or range(len(bounds) - 1)] if self.head.take == "first" else None
        rows = ends or [bounds[s + 1] - 1 for s in leaves or range(len(bounds) - 1)]
        return torch.tensor(rows, device=self.model.device)

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


def draws(module: nn.Module) -> bool:
    """Whether a module draws random numbers in training. Families keep the probability of a dropout that is not a
    module of its own under names such as `attention_dropout`, and PEFT one for each adapter under such a name; its
    PVeRA draws without one."""
    return hasattr(module, "sample_at_inference") or any(value > 0 for _, _, value in dropouts(module))


def dropouts(module: nn.Module) -> list[tuple[dict[str, Any], str, float]]:
    """A module's own probabilities: where each is kept, under which key, and its value."""
    made_for_it = "Dropout" in type(module).__name__
    named = [
        (name, value)
        for name, value in vars(module).items()
        if "drop" in name or "noise" in name or (made_for_it and name == "p")
    ]
    within = [(value, key) for _, value in named if isinstance(value, dict) for key in value]
    places = [(vars(module), name) for name, _ in named] + within
    return [(place, key, place[key]) for place, key in places if isinstance(place[key], float)]


def fast_stack(backbone: Any) -> Stack | CentredStack | None:
    """Our own way through the model's layers, or None where its own forward pass runs: so it does where something is
    hooked into its entrance, such as a prompt in front of each document, or stands in the place of a norm."""
    found = stack(backbone) or centred_stack(backbone)
    return found if found is not None and all(map(_as_made, (backbone, *found.norms()))) else None


def _as_made(module: nn.Module) -> bool:
    """Neither hooked nor wrapped by an adapter of PEFT's."""
    own = type(module).__module__.partition(".")[0] in ("torch", "transformers")
    return own and not (module._forward_pre_hooks or module._forward_hooks)


def policy(model: nn.Module, *, sequence: bool = False, fresh: tuple[str, ...] = ()) -> Policy:
    """Gives a loaded model our attention. `sequence`: it carries a sequence head; `fresh`: modules that begin at
    random."""
    attention.register()
    config: Any = model.config
    _implementation(model, attention.NAME)
    config.use_cache = False
    own = model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    result = Policy(model=model, head=sequence_head(model) if sequence else None, fresh=fresh, dtype=own)
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
    tokens = torch.randint(0, vocabulary, (24,), generator=generator).to(policy.device)
    types = {policy.dtype, *(p.dtype for p in policy.model.parameters())}
    half = bool(types & {torch.bfloat16, torch.float16})
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
