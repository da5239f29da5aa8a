"""The data gate over a run's own rows, each on the side that it will be on: after the split, before the first step.

What it found is kept in RUN/gate. A later run on the same rows under the same policy takes it over.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luthier import cache
from luthier.data.load import LEFT_OUT, Loaded
from luthier.data.read import find
from luthier.errors import DataError
from luthier.models.sources import Origin
from luthier.recipe import Recipe
from luthier.runs.folder import read_json, storage
from luthier.types import SIDES, Finding
from luthier.workflow import reuse
from luthier.workflow.tell import Tell

KIND, FOLDER = "gate", "gate"
SMALL = 3000
"""Rows up to which no processes are started: they would take longer to begin than to look."""


def pass_gate(
    recipe: Recipe,
    loaded: Loaded,
    tokenizer: Any,
    folder: Path,
    *,
    tell: Tell,
    past: Path | None,
    origin: Origin | None = None,
) -> list[Finding]:
    """What the gate found; the recipe's waivers are in it.

    Args:
        origin: the base, whose losses are computed where the recipe asks for them; without it they are not.

    Raises:
        PolicyError: there is no such policy, or no such rule to waive.
        RecipeError: the base has no losses on these rows.
    """
    asked = recipe.data.gate
    if asked.off is not None:
        return [Finding("gate_off", "warn", f"The data gate did not look at the rows: {asked.off}", "")]
    # Imported here and below: a run without the gate, or with the result of an earlier one, needs neither DuckDB nor
    # the rules.
    from luthier.gate.findings import as_findings
    from luthier.gate.policy import load_policy, policy_tree

    marks = _marks(tokenizer)
    key = cache.key(
        policy=policy_tree(asked.policy),
        control_tokens=marks,
        waive=[waiver.model_dump() for waiver in asked.waive],
        files=dict(loaded.sha256),
        data=recipe.data.model_dump(mode="json", exclude={"gate"}),
        sides=hashlib.sha256(loaded.sides.tobytes()).hexdigest(),
        tokens=reuse.tokenizer_hash(tokenizer),
        base=dict(origin.files) if asked.losses and origin is not None else None,
    )
    out = folder / FOLDER
    earlier = cache.recall(past, KIND, key) if past is not None else None
    if earlier is not None and _taken(earlier.parent, out):
        return as_findings(read_json(out / "report.json")["findings"])
    from luthier.gate import audit
    from luthier.report.gate import write_page

    losses = None
    if asked.losses and origin is not None:
        # Torch, which `check` does without.
        from luthier.workflow.surprise import base_losses

        losses = _numbered(base_losses(recipe, origin, folder / "data", tell=tell), loaded)
    policy = load_policy(asked.policy, waive=asked.waive).with_control_tokens(marks)
    sources = _sources(recipe, loaded)
    store = audit.look_through(
        _rows(loaded, sources),
        policy,
        out / audit.WORK,
        sources,
        workers=0 if len(loaded.store) <= SMALL else 2,
        given=_given(tokenizer, losses),
        progress=lambda what, done, total: tell({"event": "progress", "what": what, "done": done, "total": total}),
    )
    with store:
        findings = audit.conclude(store, policy, out, sources).findings
    write_page(out)
    if past is not None:
        cache.remember(past, KIND, key, out / "report.json")
    return findings


def beside_gate(findings: Sequence[Finding], seen: Sequence[Finding]) -> list[Finding]:
    """What stands beside the gate's findings: reading has looked for exact duplicates itself, and once is enough."""
    told = {finding.rule for finding in seen}
    return [finding for finding in findings if finding.rule != "duplicate" or finding.rule not in told]


def refuse_blocked(findings: Sequence[Finding], recipe: Recipe) -> None:
    """Ends a run before its first step.

    Raises:
        DataError: a rule of the gate forbids to train, with the rows and what to do.
    """
    blocking = [finding for finding in findings if finding.severity == "block"]
    if not blocking:
        return
    lines = []
    for finding in blocking:
        more = f" and {finding.count - len(finding.examples):,} more" if finding.count > len(finding.examples) else ""
        lines += [f"{finding.rule}: {finding.message}", f"  at: {', '.join(finding.examples)}{more}"]
        lines.append(f"  do: {finding.remedy}")
    rule = blocking[0].rule
    raise DataError(
        "the data gate forbids to train on these rows",
        where=", ".join(recipe.data.train),
        got="\n    ".join(["", *lines]),
        do=f"mend them (luthier data audit shows all, luthier data clean mends), or say why they may stay: "
        f"-o 'data.gate.waive=[{{rule: {rule}, reason: ...}}]'",
    )


def _sources(recipe: Recipe, loaded: Loaded) -> list[Any]:
    from luthier.gate.reading import Source, source

    sides = {name: side for side in SIDES for name in find(getattr(recipe.data, side)).files}
    found: list[Source] = []
    for name, sha256 in loaded.sha256.items():
        found.append(source(name, sides[name], sha256, found))
    return found


def _rows(loaded: Loaded, sources: Sequence[Any]) -> Iterator[Any]:
    from luthier.gate.fields import to_row
    from luthier.gate.reading import Ids

    ids = {source.file: Ids(source.prefix) for source in sources}
    for side, example in zip(loaded.sides.tolist(), loaded.store, strict=True):
        id = ids[example.provenance.file].next(example.provenance.line)
        if side != LEFT_OUT:
            yield to_row(example, id=id, side=SIDES[side])


_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def _marks(tokenizer: Any) -> list[str]:
    """The special tokens that nobody writes by chance: content that holds one is read as the template's own mark."""
    from luthier.gate.policy import LONGEST_TOKEN, SHORTEST_TOKEN

    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {*tokenizer.all_special_tokens, *(token.content for token in added.values() if token.special)}
    return sorted(
        token
        for token in found
        if SHORTEST_TOKEN <= len(token.strip()) <= LONGEST_TOKEN and not _WORD.fullmatch(token.strip())
    )


def _numbered(losses: Mapping[int, float], loaded: Loaded) -> dict[int, float]:
    """By the number that the gate gives to a row: those that were left out have none."""
    number_N = np.cumsum(loaded.sides != LEFT_OUT) - 1
    return {int(number_N[row]): loss for row, loss in losses.items()}


def _given(tokenizer: Any, losses: Mapping[int, float] | None) -> dict[str, dict[str, Callable[..., Any]]]:
    """Tokens by the model's own tokenizer, where it can cut many texts at once, and the base's losses."""
    found: dict[str, Callable[..., Any]] = {} if losses is None else {"losses": lambda *_: losses}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"fit": found}
    from luthier.gate.fit import measure

    def pieces(texts: Sequence[str]) -> list[list[str]]:
        return [found.tokens for found in backend.encode_batch(list(texts), add_special_tokens=False)]

    unknown = str(getattr(tokenizer, "unk_token", None) or "")
    return {"fit": {**found, "fit": lambda store, policy: measure(store, policy, pieces, unknown=unknown)}}


def _taken(earlier: Path, out: Path) -> bool:
    """Copies what an earlier run's gate wrote; False where a file of it is gone."""
    beside = out.with_name(f".{out.name}.partial")
    with storage(out):
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir(parents=True)
            for name in ("report.json", "report.html", "findings.parquet", "policy.yaml"):
                shutil.copyfile(earlier / name, beside / name)
        except FileNotFoundError:
            shutil.rmtree(beside)
            return False
        shutil.rmtree(out, ignore_errors=True)
        os.replace(beside, out)
    return True
