"""The gate's chain on one page: files -> rows -> hits -> findings -> decision.

OUT/report.json       decision, reasons, findings with masked examples, distributions, policy by name
OUT/findings.parquet  every hit: rule, row, place, what was seen (masked), what it repeats
OUT/policy.yaml       the policy in force, every threshold written out

The rows' texts stay in the folder only while the audit runs.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

from luthier.gate import balance, counterfactual, duplicates, fit, leakage, noise, poison, provenance, summary, times
from luthier.gate.contamination import Reference
from luthier.gate.findings import as_findings, message
from luthier.gate.policy import Policy, dump_policy
from luthier.gate.reading import Source, rows, size, sources
from luthier.gate.rows import Hit, Row
from luthier.gate.store import Store, write_store
from luthier.gate.table import rules
from luthier.recipe.data import Columns, Format
from luthier.runs.folder import storage, write_json, write_text
from luthier.types import JSON, Finding, Side

Decision = Literal["pass", "warnings", "blocked"]
Progress = Callable[[str, int, int | None], None]
"""Called with what is done, how much of it, and of how much."""
Given = Mapping[str, Mapping[str, Callable[[Store, Policy], Any]]]
WORK = ".work"
EXIT = {"pass": 0, "warnings": 0, "blocked": 1}


class Audit(NamedTuple):
    decision: Decision
    findings: list[Finding]
    report: JSON


def audit(
    files: Sequence[str],
    policy: Policy,
    out: Path,
    *,
    against: Sequence[str] = (),
    benchmarks: Sequence[str] = (),
    pairs: Path | None = None,
    given: Given | None = None,
    columns: Columns | None = None,
    format: Format | None = None,
    workers: int | str = 2,
    progress: Progress | None = None,
) -> Audit:
    """Looks through files and writes what was found into `out`.

    Args:
        against: files of the test side; rows of `files` must not stand there as well.
        benchmarks: files whose texts must not be trained on.
        pairs: where counterfactual pairs of the prompts go.
        given: as for `look_through`.

    Raises:
        DataError: a file is missing or holds no rows, or what they mean cannot be told.
        InputError: there is a file at `pairs` already.
    """
    if pairs is not None:
        counterfactual.refuse_existing(pairs)
    sides: dict[Side, Sequence[str]] = {"train": files, "test": against}
    found, skipped = sources({side: names for side, names in sides.items() if names})
    items = rows(found, policy, columns=columns, format=format, progress=reading_of(found, progress))
    given = {**(given or {}), "leakage": {"against": lambda *_: references(benchmarks, policy)}}
    with look_through(
        chain(skipped, items), policy, out / WORK, found, workers=workers, given=given, progress=progress
    ) as store:
        return conclude(store, policy, out, found, pairs=pairs)


def references(files: Sequence[str], policy: Policy) -> Iterator[Reference]:
    """The texts of benchmarks, with their places."""
    found, _ = sources({"test": files}) if files else ([], [])
    for item in rows(found, policy):
        if isinstance(item, Row):
            yield Reference(f"{item.file}:{item.line}", f"{item.prompt}\n{item.answer}".strip())


def reading_of(found: Sequence[Source], progress: Progress | None) -> Callable[[int, int], None]:
    """Tells of rows and bytes read: in kilobytes of all, or in rows where standard input has no known end."""
    total = size(found)

    def tell(count: int, taken: int) -> None:
        if progress:
            progress("reading, KB", taken >> 10, total >> 10) if total else progress("reading, rows", count, None)

    return tell


def look_through(
    items: Iterable[Row | Hit],
    policy: Policy,
    folder: Path,
    found: Sequence[Source] = (),
    *,
    workers: int | str = 2,
    given: Given | None = None,
    progress: Progress | None = None,
) -> Store:
    """Rows from wherever they come into a store at `folder`, with every hit in its table `placed`.

    Args:
        found: the files of hits that are about no row.
        given: topic -> argument of its `look` -> what makes it, of store and policy.
    """
    store = write_store(items, folder, policy, workers=workers)
    try:
        for name, look in SET_RULES.items():
            if progress:
                progress(f"looking at {name}", 0, None)
            more = {key: made(store, policy) for key, made in (given or {}).get(name, {}).items()}
            store.add(hit for hit in look(store, policy, **more) if policy.enabled(hit.rule))
        summary.place_hits(store, found)
    except BaseException:
        store.remove()
        raise
    return store


def conclude(
    store: Store, policy: Policy, out: Path, found: Sequence[Source] = (), *, pairs: Path | None = None
) -> Audit:
    """Findings and decision, written into `out`, and pairs where they are wanted."""
    entries = summary.findings(store, policy)
    report = _report(entries, summary.figures(store), found, policy)
    if pairs is not None:
        report["pairs"] = {"file": str(pairs), "kinds": dict(counterfactual.write_pairs(store, pairs))}
    report["work"] = {"seconds": round(time.monotonic() - store.began, 2), "memory_bytes": peak_memory()}
    with storage(out):
        out.mkdir(parents=True, exist_ok=True)
    _export(store, out)
    write_text(out / "policy.yaml", dump_policy(policy))
    write_json(out / "report.json", report)
    return Audit(report["decision"], as_findings(entries), report)


SET_RULES: Mapping[str, Callable[..., Iterator[Hit]]] = {
    "duplicates": duplicates.look,
    "leakage": leakage.look,
    "times": times.look,
    "noise": noise.look,
    "poison": poison.look,
    "balance": balance.look,
    "fit": fit.look,
    "provenance": provenance.look,
}
"""Topics that look at the set as a whole, in the order in which they do."""


def decide(entries: Iterable[JSON]) -> Decision:
    standing = [(entry["severity"], entry["waived"]) for entry in entries]
    if any(severity == "block" and waived is None for severity, waived in standing):
        return "blocked"
    return "warnings" if any(severity != "info" for severity, _ in standing) else "pass"


def _report(entries: list[JSON], figures: JSON, found: Sequence[Source], policy: Policy) -> JSON:
    files = figures.pop("files")
    reasons = [message(entry) for entry in entries if entry["severity"] == "block" and not entry["waived"]]
    return {
        "decision": decide(entries),
        "reasons": reasons,
        "policy": policy.name,
        "sources": [
            {
                "prefix": source.prefix,
                "file": source.file,
                "side": source.side,
                "sha256": source.sha256,
                "rows": files.get(source.file, [0, 0])[0],
                "characters": files.get(source.file, [0, 0])[1],
            }
            for source in found
        ],
        **figures,
        "findings": entries,
        "quiet": [name for name in rules() if policy.enabled(name) and name not in {e["rule"] for e in entries}],
        "off": [name for name in rules() if not policy.enabled(name)],
        "waivers": [waiver.model_dump() for waiver in policy.waive],
    }


def _export(store: Store, out: Path) -> None:
    """Every hit as Parquet: written inside the store, which is the only place it may write to, then moved."""
    inside = store.folder / "findings.parquet"
    with storage(out):
        store.db.execute(
            'COPY (SELECT rule, id AS row, file, line, side, path, start, "end", seen, score, other FROM placed '
            "ORDER BY number NULLS FIRST, file, line, rule, path, start, other, seen) "
            f"TO '{str(inside).replace(chr(39), chr(39) * 2)}' (FORMAT parquet, COMPRESSION zstd)"
        )
        os.replace(inside, out / "findings.parquet")


def peak_memory() -> int:
    """Bytes: of this process and the largest of those that it started."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
