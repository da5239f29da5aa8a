"""A prepared run: begun in a new folder, or read again from one."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import cache
from luthier.data import templates
from luthier.data.read import find
from luthier.errors import InputError
from luthier.models.sources import Origin
from luthier.recipe import Recipe, Supervised
from luthier.recipe.load import dump, load
from luthier.runs.folder import RunFolder, read_json, write_json, write_text
from luthier.runs.journal import Journal
from luthier.runs.manifest import write_manifest
from luthier.types import JSON
from luthier.workflow import reuse
from luthier.workflow.gate import beside_gate, pass_gate, refuse_blocked
from luthier.workflow.prepare import Prepared, find_model, prepare
from luthier.workflow.tell import Tell


@dataclass(frozen=True)
class Work:
    """A prepared run: what training, evaluation and packaging start from."""

    run: RunFolder
    recipe: Recipe
    origin: Origin
    tokenizer: Any
    journal: Journal
    tell: Tell
    past: Path | None = None
    """Where earlier runs are noted, whose results may be taken over; see `cache.past`."""
    whole: Path | None = None
    """The run that `luthier resume` goes on with, where this is an arm of it."""

    def say(self, event: str, **values: Any) -> None:
        """Writes an event into the journal and tells it."""
        self.tell(self.journal.write(event, **values))


def begin(run: RunFolder, asked: Recipe, journal: Journal, tell: Tell, *, past: Path | None = None) -> Work:
    """Prepares a new run; its manifest is written last. `past` as for `tune`."""
    tell(journal.write("created", run=str(run.root)))
    prepared = prepare(asked, run.root, tell=tell, past=past)
    seen = pass_gate(
        prepared.recipe, prepared.loaded, prepared.tokenizer, run.root, tell=tell, past=past, origin=prepared.origin
    )
    refuse_blocked(seen, prepared.recipe)
    findings = [*seen, *beside_gate(prepared.findings, seen)]
    work = Work(run, prepared.recipe, prepared.origin, prepared.tokenizer, journal, tell, past)
    write_text(run.recipe, dump(prepared.recipe))
    write_json(run.derived, [d.as_dict() for d in prepared.derived])
    write_json(run.findings, [f.as_dict() for f in findings])
    for derived in prepared.derived:
        work.say("derived", **derived.as_dict())
    for finding in findings:
        work.say("finding", **finding.as_dict())
    over_long = sum(f.count for f in prepared.findings if f.rule == "over_long")
    dropped = sum(f.count for f in prepared.findings if f.rule in ("bad_row", "unrenderable_row", "leak"))
    for side, written in prepared.sides.items():
        first = side == "train"
        work.say(
            "prepared",
            side=side,
            rows=written.sequences,
            **{k: v for k, v in written._asdict().items() if k != "sequences"},
            over_long=over_long if first else 0,
            dropped=dropped if first else 0,
            taken_from=None if prepared.taken_from is None else str(prepared.taken_from),
        )
    write_manifest(
        run,
        base=base_facts(prepared.origin),
        data=_data_facts(prepared),
        seeds={"training": prepared.recipe.training.seed},
    )
    if past is not None and prepared.key is not None:
        cache.remember(past, reuse.KIND, prepared.key, run.root / "data" / reuse.FACTS)
    return work


def reopen(run: RunFolder, journal: Journal, tell: Tell, *, past: Path | None = None) -> Work:
    """Reads a prepared run again. `past` as for `tune`.

    Raises:
        InputError: its recipe or base model is not what it began with.
    """
    manifest = read_json(run.manifest)
    if hashlib.sha256(run.recipe.read_bytes()).hexdigest() != manifest["recipe_sha256"]:
        raise InputError(
            "the recipe is not the one that this run began with",
            where=str(run.recipe),
            got="another hash than manifest.json",
            do="undo the change, or start a new run with it",
        )
    recipe = load(run.recipe)
    origin, tokenizer = find_model(recipe, tell)
    if dict(origin.files) != manifest["base"]["files"]:
        raise InputError(
            "the base model is not the one that this run began with",
            where=recipe.model.source,
            got="its files have other hashes than manifest.json",
            do="put the old files back, or start a new run",
        )
    if isinstance(recipe.objective, Supervised):
        templates.ensure_template(tokenizer, recipe.model.template)
    return Work(run, recipe, origin, tokenizer, journal, tell, past)


def take_back(run: RunFolder) -> None:
    """Empties the folder of a run that was refused before it was prepared, so that the next try may take it."""
    for path in (run.asked, run.events):
        path.unlink(missing_ok=True)
    for folder in ("data", "gate"):
        shutil.rmtree(run.root / folder, ignore_errors=True)
    # What else lies there is not ours, and the folder may be a mount or the one that the command runs in.
    with contextlib.suppress(OSError):
        run.root.rmdir()


def base_facts(origin: Origin) -> JSON:
    """What the manifest says of the base model."""
    return {
        "source": origin.source,
        "kind": origin.kind,
        "revision": origin.revision,
        "licence": origin.licence,
        "sha256": origin.sha256,
        "files": dict(origin.files),
    }


def _data_facts(prepared: Prepared) -> list[JSON]:
    data = prepared.recipe.data
    files = {side: find(getattr(data, side)).files for side in ("validation", "test")}
    return [
        {
            "file": file,
            "sha256": prepared.loaded.sha256[file],
            "rows": count.good,
            "bad": count.bad,
            "dropped": count.dropped,
            "side": next((side for side, names in files.items() if file in names), "train"),
        }
        for file, count in prepared.loaded.counts.items()
    ]
