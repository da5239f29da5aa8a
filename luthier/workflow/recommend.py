"""`plan`: what a run will take on this machine in memory and time, and what other settings would change. The rows are
prepared in a folder that is thrown away; a few seconds go into measuring the machine (`workflow.probe`)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import cache, machine
from luthier.budget.seconds import Speed
from luthier.models.sources import Origin
from luthier.recipe import Lora, Recipe
from luthier.types import Finding
from luthier.workflow.forecast import Forecast, forecast
from luthier.workflow.prepare import prepare
from luthier.workflow.probe import probe
from luthier.workflow.tell import Tell, silent

SMALLER = (1024, 512, 256)


@dataclass(frozen=True, slots=True)
class Option:
    """Another setting and what it would come to."""

    key: str
    value: Any
    memory_bytes: int
    seconds: float
    """Of training."""
    fits: bool


@dataclass(frozen=True)
class Planned:
    recipe: Recipe
    """Resolved."""
    forecast: Forecast
    free_bytes: int
    options: list[Option]
    findings: list[Finding]

    @property
    def fits(self) -> bool:
        return self.forecast.memory.peak <= self.free_bytes


def plan(recipe: Recipe, *, tell: Tell = silent) -> Planned:
    """Prepares, measures and counts.

    Raises:
        LuthierError: what stops a run.
    """
    with tempfile.TemporaryDirectory(prefix="luthier-plan-") as name:
        folder = Path(name)
        prepared = prepare(recipe, folder, tell=tell, past=cache.past())
        tell({"event": "progress", "what": "measuring this machine", "done": 0, "total": None})
        speed = probe(prepared.recipe, prepared.origin)
        expected = forecast(prepared.recipe, prepared.origin, folder / "data", speed=speed)
        free = machine.free_bytes(prepared.recipe.training.device)
        options = list(_options(prepared.recipe, prepared.origin, folder / "data", speed, free))
    return Planned(prepared.recipe, expected, free, options, prepared.findings)


def _options(recipe: Recipe, origin: Origin, data: Path, speed: Speed, free: int) -> Iterator[Option]:
    for key, value in _changes(recipe):
        section, name = key.split(".")
        part = getattr(recipe, section).model_copy(update={name: value})
        other = forecast(recipe.model_copy(update={section: part}), origin, data, speed=speed)
        assert other.seconds is not None
        peak = other.memory.peak
        yield Option(key, value, peak, other.seconds.train, peak <= free)


def _changes(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """(key, value) of what is worth weighing."""
    training, adapter = recipe.training, recipe.adapter
    yield "training.recompute", not training.recompute
    for budget in SMALLER:
        if budget < training.budget:
            yield "training.microbatch_tokens", budget
    if isinstance(adapter, Lora):
        yield "adapter.rank", adapter.rank * 4
        if adapter.rank >= 16:
            yield "adapter.rank", adapter.rank // 4
    if training.epochs > 1:
        yield "training.epochs", 1.0
