"""A run folder, read: everything that it says, as plain values. Reports and cards are written from this alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import InputError
from luthier.runs.folder import RunFolder, read_json
from luthier.runs.journal import read

JSON = dict[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What a run folder holds. What a run has not got to yet is empty or None."""

    run: RunFolder
    recipe: JSON
    """Resolved; as it was given where the run ended before anything was derived."""
    derived: list[JSON]
    manifest: JSON
    findings: list[JSON]
    events: list[JSON]
    evaluation: JSON | None
    predictions: list[JSON]
    gate: JSON | None
    """The data gate's report; None where it did not look."""

    @property
    def name(self) -> str:
        return self.run.root.resolve().name

    def all(self, kind: str) -> list[JSON]:
        """The events of one kind, in order."""
        return [event for event in self.events if event["event"] == kind]

    def last(self, kind: str) -> JSON | None:
        """The newest event of one kind."""
        return next((event for event in reversed(self.events) if event["event"] == kind), None)


def read_record(run: RunFolder) -> RunRecord:
    """Reads a run folder.

    Raises:
        InputError: the folder holds no run, or a file in it is damaged.
    """
    run = RunFolder.open(run.root)
    return RunRecord(
        run=run,
        recipe=_recipe(run.recipe if run.recipe.exists() else run.asked),
        derived=read_json(run.derived) if run.derived.exists() else [],
        manifest=read_json(run.manifest) if run.manifest.exists() else {},
        findings=read_json(run.findings) if run.findings.exists() else [],
        events=read(run.events),
        evaluation=read_json(run.evaluation) if run.evaluation.exists() else None,
        predictions=_rows(run.predictions) if run.predictions.exists() else [],
        gate=read_json(run.gate / "report.json") if (run.gate / "report.json").exists() else None,
    )


def _recipe(path: Path) -> JSON:
    """The recipe as it stands: not validated, so that runs of other versions stay readable."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, ValueError) as error:
        raise InputError("this file is damaged", where=str(path), got=str(error).splitlines()[0][:100]) from None
    if not isinstance(tree, dict):
        raise InputError("this file is damaged", where=str(path), got=f"a {type(tree).__name__}, not a mapping")
    return tree


def _rows(path: Path) -> list[JSON]:
    rows: list[JSON] = []
    with path.open(encoding="utf-8") as file:
        for line, text in enumerate(file, start=1):
            try:
                rows.append(json.loads(text))
            except ValueError:
                raise InputError(
                    "this line is damaged", where=f"{path}:{line}", got=f"{len(text)} characters"
                ) from None
    return rows
