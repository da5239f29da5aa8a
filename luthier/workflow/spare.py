"""Work that a run spares itself, and what its journal says of it: the states of frozen lower layers are computed once,
and at its end the run accounts for what it did not compute."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from luthier.batch import Batch
from luthier.data import tokens
from luthier.data.source import EpochSource
from luthier.data.tokens import TokenStore
from luthier.models.policy import Policy, fast_stack
from luthier.recipe import Recipe
from luthier.runs.folder import RunFolder
from luthier.training import frozen
from luthier.training.frozen import Kept
from luthier.types import JSON, Side
from luthier.workflow.tell import Tell

WHAT = "frozen layers, computed once"


class Spared(NamedTuple):
    layers: int
    """Lowest layers whose states are computed once."""
    notes: tuple[str, ...]
    saved: JSON
    """For the journal: `frozen_layers`, and `last_layer`, the share of tokens whose last layer is cut short."""


def stores(run: RunFolder) -> dict[Side, TokenStore]:
    """What is read in every pass."""
    sides: tuple[Side, ...] = ("train", "validation")
    return {side: tokens.open_store(run.side(side)) for side in sides if run.side(side).exists()}


def plan(run: RunFolder, policy: Policy, source: EpochSource) -> Spared:
    """What can be spared in training from `source`."""
    found = stores(run)
    total = sum(int(store.offsets[-1]) for store in found.values())
    passes = len(source) / source.steps_per_epoch
    choice = frozen.choose(policy, tokens=total, passes=passes, folder=run.frozen, probe=source.store)
    notes: tuple[str, ...] = ()
    if choice.layers:
        size = f"{choice.bytes / 1e6:.1f} MB on disk until training ends"
        notes = (
            f"what the {choice.layers} lowest layers make of each row is computed once, as they stay frozen; {size}",
        )
    elif choice.why_not:
        notes = (f"the frozen lower layers are computed in every pass: {choice.why_not}",)
    cut = 0.0 if choice.layers == policy.model.config.num_hidden_layers else _cut_short(policy, source.store)
    return Spared(choice.layers, notes, {"frozen_layers": choice.layers, "last_layer": cut})


def _cut_short(policy: Policy, store: TokenStore) -> float:
    """Share of tokens for which the last layer computes keys and values alone, before shared beginnings are counted."""
    if fast_stack(policy.backbone) is None or (policy.head is not None and policy.head.take == "mean"):
        return 0.0
    read = len(store) if policy.head is not None else int((store.weights != 0).sum())
    return round(1 - read / int(store.offsets[-1]), 4)


def states(
    run: RunFolder, recipe: Recipe, policy: Policy, layers: int, *, tell: Tell, heed: Callable[[], None]
) -> dict[Side, Kept]:
    """The states that enter layer `layers`, for each side that is read in every pass.

    Args:
        heed: called before each batch; raises where the run is to stop.
    """

    def progress(batches: Iterator[Batch], count: int) -> Iterable[Batch]:
        done = 0
        for batch in batches:
            heed()
            tell({"event": "progress", "what": WHAT, "done": done, "total": count})
            yield batch
            done += batch.documents
        tell({"event": "progress", "what": WHAT, "done": done, "total": count})

    return {
        side: frozen.keep(
            policy,
            store,
            run.frozen,
            side,
            layers=layers,
            budget=recipe.training.budget,
            progress=progress,
        )
        for side, store in stores(run).items()
    }


def discard(run: RunFolder) -> None:
    """Gives the disk back."""
    shutil.rmtree(run.frozen, ignore_errors=True)


def account(events: list[JSON]) -> JSON:
    """What a finished run did not have to do:

    frozen_layers   lowest layers that were computed once and not in every pass
    last_layer      share of tokens for which the last layer was cut short
    prefixes        tokens that were not computed because rows of a step begin alike
    reference       the run whose answers of the base were taken over, or None
    tokens          the run whose prepared rows and tokens were taken over, or None
    """
    steps = [event for event in events if event["event"] == "step"]
    begun = next((e for e in reversed(events) if e["event"] in ("started", "resumed")), {}).get("saved", {})
    return {
        "frozen_layers": begun.get("frozen_layers", 0),
        "last_layer": begun.get("last_layer", 0.0),
        "prefixes": sum(step["tokens"] - step["computed"] for step in steps),
        "reference": _said(events, "evaluated", "base_from"),
        "tokens": _said(events, "prepared", "taken_from"),
    }


def _said(events: list[JSON], kind: str, key: str) -> str | None:
    return next((event[key] for event in events if event["event"] == kind and event.get(key)), None)
