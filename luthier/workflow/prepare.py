"""Recipe to prepared data: find the model, read and split the rows, derive what was left out, render. Free of torch.

`check` is the same chain into a folder that is thrown away, with an estimate of what training would need.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier import cache
from luthier.data import length, templates, tokens
from luthier.data.load import Loaded, load_examples
from luthier.data.render import Renderer, Shown, describe
from luthier.data.store import ExampleStore
from luthier.data.tokens import Written
from luthier.errors import DataError
from luthier.models import sources
from luthier.models.load import load_tokenizer
from luthier.models.shape import read_shape
from luthier.models.sources import Origin
from luthier.recipe import Classify, ClassifyMulti, Recipe, Supervised
from luthier.types import JSON, SIDES, Conversation, Example, Finding, Labelled, Sequence, Side, Text
from luthier.workflow import forecast, plan, reuse
from luthier.workflow.gate import beside_gate, pass_gate
from luthier.workflow.plan import Derived, Deriver
from luthier.workflow.reuse import Rendered
from luthier.workflow.tell import Tell, counted, silent

LISTED = 1000
"""Rows that one message names at most; the rest is counted."""


@dataclass(frozen=True)
class Prepared:
    """A run before its first step. Everything in it can be read again from the run folder."""

    recipe: Recipe
    """Resolved: nothing is left out."""
    derived: list[Derived]
    findings: list[Finding]
    origin: Origin
    tokenizer: Any
    loaded: Loaded
    sides: dict[Side, Written]
    key: str | None = None
    """Hash of all that the prepared rows depend on."""
    taken_from: Path | None = None
    """The earlier run whose rows and tokens these are."""


@dataclass(frozen=True)
class Checked:
    """What can be known before the first step."""

    recipe: Recipe
    derived: list[Derived]
    findings: list[Finding]
    sides: dict[Side, Written]
    steps: int
    estimate: dict[str, Any]
    sample: list[Shown]

    @property
    def ok(self) -> bool:
        """Whether training may start."""
        return not any(f.severity == "block" for f in self.findings)


def find_model(recipe: Recipe, tell: Tell) -> tuple[Origin, Any]:
    """The model's files and its tokenizer with the recipe's template."""
    model = recipe.model

    def progress(what: str, done: int = 0, total: int | None = None) -> None:
        tell({"event": "progress", "what": what, "done": done, "total": total})

    allowed = model.remote_code is not None
    origin = sources.resolve(
        model.source, revision=model.revision, sha256=model.sha256, remote_code=allowed, progress=progress
    )
    other = sources.resolve(model.tokenizer, progress=progress) if model.tokenizer else origin
    tokenizer = load_tokenizer(other, model=origin, remote_code=allowed, progress=progress)
    return origin, tokenizer


def prepare(recipe: Recipe, folder: Path, *, tell: Tell = silent, past: Path | None = None) -> Prepared:
    """Prepares `folder`/data and returns what was found.

    Args:
        past: where earlier runs are noted (`cache.past`); the rows of one that began with the same are taken from it.

    Raises:
        LuthierError: whatever stops a run before its first step, with the whole list of it.
    """
    origin, tokenizer = find_model(recipe, tell)
    shape = read_shape(origin)
    key = None if past is None else reuse.prepared_key(recipe, tokenizer, shape)
    taken = None if past is None or key is None else reuse.take(past, key, folder / "data")
    loaded = taken.loaded if taken else _read(recipe, folder, tell)
    findings = [*loaded.findings, *_notes(origin)]
    deriver = plan.derive_task(
        recipe,
        format=loaded.detection.format,
        why=loaded.detection.why,
        family=shape.family,
        several_labels=loaded.detection.multi,
    )
    deriver.fill("data.split.by", loaded.split_by, _SPLIT_WHY[loaded.split_by])
    plan.derive_length(deriver, positions=shape.positions)
    labels = taken.labels if taken else _labels(deriver.recipe(), loaded)
    _settle_labels(deriver, labels)
    if isinstance(deriver.recipe().objective, Supervised):
        findings += templates.ensure_template(tokenizer, deriver.tree["model"]["template"])
    rendered = taken.rendered if taken else _render_all(deriver.recipe(), folder, tokenizer, loaded, tell)
    if key is not None and not taken:
        reuse.leave(folder / "data", key, loaded, labels, rendered)
    sides = rendered.sides
    plan.derive_numbers(
        deriver, positions=shape.positions, train_rows=sides["train"].sequences, answers=rendered.answers
    )
    findings += rendered.findings
    plan.derive_fit(deriver, forecast.fit(deriver.recipe(), origin, folder / "data"))
    findings += _too_large(forecast.forecast(deriver.recipe(), origin, folder / "data").as_dict())
    place = taken.run if taken else None
    return Prepared(deriver.recipe(), deriver.found, findings, origin, tokenizer, loaded, sides, key, place)


def _read(recipe: Recipe, folder: Path, tell: Tell) -> Loaded:
    return load_examples(
        recipe.data,
        folder / "data",
        progress=lambda n: tell({"event": "progress", "what": "reading rows", "done": n, "total": None}),
    )


_SPLIT_WHY = {
    "content": "rows with the same prompt stand on one side, whatever else is in the file",
    "label": "as by content, and every label is divided in the same shares",
    "group": "rows of one group stand on one side",
    "time": "the newest rows are held back",
}


def _render_all(recipe: Recipe, folder: Path, tokenizer: Any, loaded: Loaded, tell: Tell) -> Rendered:
    findings: list[Finding] = []
    renderer = Renderer(tokenizer)
    if isinstance(recipe.objective, Supervised):
        findings += templates.check_template(renderer)
        sample = (loaded.store[int(i)] for i in np.flatnonzero(loaded.sides == SIDES.index("train"))[:50])
        findings += templates.unused_keys(renderer, [e for e in sample if isinstance(e, Conversation)])
    rendering = _Rendering(recipe, renderer)
    sides: dict[Side, Written] = {}
    for index, side in enumerate(SIDES):
        rows = np.flatnonzero(loaded.sides == index)
        if len(rows) == 0:
            continue
        pairs = counted(rows.tolist(), f"rendering {side}", len(rows), tell)
        sides[side] = tokens.write(
            folder / "data" / side, rendering.sequences(loaded.store, pairs, train=side == "train")
        )
        if not sides[side].sequences:
            # Every row was dropped: there is no such side.
            shutil.rmtree(folder / "data" / side)
            del sides[side]
    rendering.refuse_over_long()
    rendering.refuse_unrenderable()
    findings += rendering.findings()
    if "train" not in sides:
        raise DataError("no row is left to train on", do="raise training.max_length, or give more rows")
    return Rendered(sides, rendering.answers, findings)


class _Rendering:
    """Renders rows and keeps account of what does not fit."""

    def __init__(self, recipe: Recipe, renderer: Renderer) -> None:
        self.recipe = recipe
        self.renderer = renderer
        self.answers: list[int] = []
        self.over_long: dict[str, list[str]] = {}
        self.unrenderable: list[str] = []
        labels = getattr(recipe.objective, "labels", None) or []
        self.index = {name: i for i, name in enumerate(labels)}

    def sequences(self, store: ExampleStore, rows: Iterator[int], *, train: bool) -> Iterator[tuple[int, Sequence]]:
        """(row, sequence) pairs of the rows that fit; one row of text may give several."""
        limit = self.recipe.training.max_length
        policy = self.recipe.training.on_over_long
        assert limit is not None
        assert policy is not None
        for row in rows:
            example = store[int(row)]
            try:
                sequence = self.render(example)
            except DataError as error:
                self.unrenderable.append(f"{_where(example)}: {error.what}" + (f" ({error.got})" if error.got else ""))
                continue
            if isinstance(example, Text):
                for piece in length.pieces(sequence, limit, frame=self.renderer.frame):
                    yield int(row), piece
                continue
            fitted = length.fit(sequence, limit, policy, frame=self.renderer.frame)
            if fitted.what != "kept":
                self.over_long.setdefault(fitted.what, []).append(
                    f"{_where(example)} ({len(sequence.tokens_T):,} tokens)"
                )
            if fitted.sequence is not None:
                if train:
                    self.answers.append(answer_tokens(fitted.sequence.weights_T))
                yield int(row), fitted.sequence

    def render(self, example: Example) -> Sequence:
        """The example as the objective wants it."""
        objective = self.recipe.objective
        if isinstance(example, Conversation):
            assert isinstance(objective, Supervised)
            return self.renderer.render(example, turns=objective.turns)
        if isinstance(example, Text):
            return self.renderer.render_text(example)
        return self.renderer.render_document(example, self._label(example))

    def _label(self, example: Labelled) -> tuple[float, ...]:
        if isinstance(self.recipe.objective, (Classify, ClassifyMulti)):
            unknown = [name for name in example.labels if name not in self.index]
            if unknown:
                raise DataError("its label does not occur in the training rows", got=f"{len(unknown)} labels")
        if isinstance(self.recipe.objective, Classify):
            return (float(self.index[example.labels[0]]),)
        if isinstance(self.recipe.objective, ClassifyMulti):
            return tuple(float(name in example.labels) for name in self.index)
        assert example.value is not None
        return (example.value,)

    def refuse_over_long(self) -> None:
        rows = self.over_long.get("refused", [])
        if rows:
            limit = self.recipe.training.max_length
            raise DataError(
                f"{len(rows)} examples are longer than training.max_length = {limit}",
                got=_listing(rows),
                do="raise training.max_length, or choose training.on_over_long: cut_prompt, cut_end or drop",
            )

    def refuse_unrenderable(self) -> None:
        if self.unrenderable and self.recipe.data.on_bad_row == "refuse":
            raise DataError(
                f"{len(self.unrenderable)} rows cannot be rendered for this model",
                got=_listing(self.unrenderable),
                do="mend them, or data.on_bad_row: drop; or model.template: plain, which writes every role",
            )

    def findings(self) -> list[Finding]:
        words = {"dropped": "left out", "cut_prompt": "cut at the start of the prompt", "cut_end": "cut at the end"}
        found = [
            Finding(
                "over_long",
                "warn",
                f"{len(rows)} examples are longer than {self.recipe.training.max_length} tokens and were {words[what]}",
                "raise training.max_length if what is lost matters",
                tuple(rows[:LISTED]),
                len(rows),
            )
            for what, rows in self.over_long.items()
            if what in words
        ]
        if self.unrenderable:
            found.append(
                Finding(
                    "unrenderable_row",
                    "warn",
                    f"{len(self.unrenderable)} rows cannot be rendered for this model and were left out",
                    "mend them; data.on_bad_row: refuse stops the run instead",
                    tuple(self.unrenderable[:LISTED]),
                    len(self.unrenderable),
                )
            )
        return found


def answer_tokens(weights_T: NDArray[np.float32]) -> int:
    """Length of the last supervised stretch."""
    supervised = np.flatnonzero(weights_T)
    if len(supervised) == 0:
        return 0
    gaps = np.flatnonzero(np.diff(supervised) > 1)
    start = supervised[gaps[-1] + 1] if len(gaps) else supervised[0]
    return int(supervised[-1] - start) + 1


def _labels(recipe: Recipe, loaded: Loaded) -> list[str] | None:
    """Labels of the training rows, sorted; None where the objective has none."""
    if not isinstance(recipe.objective, (Classify, ClassifyMulti)):
        return None
    training = np.flatnonzero(loaded.sides == SIDES.index("train"))
    return sorted({name for i in training for name in getattr(loaded.store[int(i)], "labels", ())})


def _settle_labels(deriver: Deriver, seen: list[str] | None) -> None:
    recipe = deriver.recipe()
    if seen is None or not isinstance(recipe.objective, (Classify, ClassifyMulti)):
        return
    labels = plan.label_list(recipe, set(seen))
    if recipe.objective.labels is None:
        deriver.tree["objective"]["labels"] = labels
        deriver.found.append(Derived("objective.labels", f"{len(labels)} labels", "those of the training rows, sorted"))


def _where(example: Example) -> str:
    return f"{example.provenance.file}:{example.provenance.line}"


def _listing(rows: list[str]) -> str:
    more = f"\n    and {len(rows) - LISTED:,} more" if len(rows) > LISTED else ""
    return "\n    ".join(["", *rows[:LISTED]]) + more


def _notes(origin: Origin) -> list[Finding]:
    return [Finding("model_note", "info", note, "") for note in origin.notes]


def check(recipe: Recipe, *, tell: Tell = silent) -> Checked:
    """Everything that can be known before the first step, without torch.

    Raises:
        LuthierError: what stops a run.
    """
    with tempfile.TemporaryDirectory(prefix="luthier-check-") as name:
        folder = Path(name)
        prepared = prepare(recipe, folder, tell=tell, past=cache.past())
        store = tokens.open_store(folder / "data" / "train")
        sample = describe(store.sequence(0), prepared.tokenizer)
        seen = pass_gate(prepared.recipe, prepared.loaded, prepared.tokenizer, folder, tell=tell, past=cache.past())
        estimate = forecast.forecast(prepared.recipe, prepared.origin, folder / "data").as_dict()
    findings = [*seen, *beside_gate(prepared.findings, seen)]
    return Checked(prepared.recipe, prepared.derived, findings, prepared.sides, estimate["steps"], estimate, sample)


def _too_large(expected: JSON) -> list[Finding]:
    """What to say where memory will not suffice: more than the machine has ends a run, more than is free may."""
    need, whole, free = (expected[key] for key in ("memory_bytes", "machine_memory_bytes", "free_memory_bytes"))
    if need <= free:
        return []
    has = f"this machine has {whole / 1e9:.1f} GB" if need > whole else f"{free / 1e9:.1f} GB of this machine are free"
    return [
        Finding(
            "memory",
            "block" if need > whole else "warn",
            f"training needs about {need / 1e9:.1f} GB and {has}",
            "luthier plan says what would fit; training.recompute: true and a lower training.microbatch_tokens leave "
            "the result the same",
        )
    ]
