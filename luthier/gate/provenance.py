"""Where rows come from and whether they may be used: source, licence, consent, owner, dates.

Said of a file in `FILE.provenance.yaml` beside it, of a file in the policy (`sources`), or of a row in its columns:

    source: export of the ticket system
    licence: internal
    consent: terms of service, section 4
    owner: support@example.com
    date: 2024-01 to 2025-06
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from luthier.errors import PolicyError, RecipeError
from luthier.gate.rows import Hit
from luthier.gate.rules import Rule
from luthier.recipe.load import value_of

if TYPE_CHECKING:
    from luthier.gate.policy import Policy
    from luthier.gate.store import Store

RULES: dict[str, Rule] = {
    "provenance": Rule(
        title="unknown provenance",
        why="Nobody can say later that the data might be used, or take out what was withdrawn.",
        remedy="Write FILE.provenance.yaml beside the file, `sources` in the policy, or a column.",
        severity="block",
        about="For each key in the policy's `provenance`: it is neither in the file beside the data, nor in `sources`, "
        "nor in a column of the row. One hit for a file that lacks it throughout, else one for each row.",
    ),
    "no_consent": Rule(
        title="use that was not agreed to",
        why="Training on it breaks a promise, and often a law.",
        remedy="Leave the rows out with luthier data clean.",
        severity="block",
        mend="drop",
        about="A `consent` (or `consented`, `opt_out`) that says no: no, false, none, denied, withdrawn, revoked; "
        "yes or "
        "true for `opt_out`.",
    ),
    "unused_column": Rule(
        title="column that nobody uses",
        why="What it says is not learnt; often it was meant to be.",
        remedy="Map it under data.columns, name it in the policy (groups, time, provenance), or leave it.",
        severity="info",
        about="Columns that the format does not read and the policy does not name. One hit for each, at its first row.",
    ),
}

NAMES: Mapping[str, tuple[str, ...]] = {
    "source": ("source", "origin", "data_source"),
    "licence": ("licence", "license", "licence_id", "license_id"),
    "consent": ("consent", "consented", "legal_basis"),
    "owner": ("owner", "data_owner", "steward"),
    "date": ("date", "dates", "collected", "created", "created_at", "timestamp"),
    "purpose": ("purpose",),
    "retention": ("retention", "delete_after"),
}
"""What is asked for, and how columns and files call it."""
_LARGEST_BYTES = 100_000
_NO = ("no", "false", "none", "denied", "withdrawn", "revoked", "refused", "0", "n")
_YES = ("yes", "true", "1", "y")


def look(store: Store, policy: Policy) -> Iterator[Hit]:
    files = store.db.execute("SELECT file, count(*), arg_min(id, row) FROM rows GROUP BY file ORDER BY file").fetchall()
    for file, rows, first in files:
        known = said_of(file, policy)
        if policy.enabled("provenance"):
            for key in policy.provenance:
                if key not in known:
                    yield from _missing(store, key, file, rows, first)
        if policy.enabled("no_consent"):
            if known.get("consent", "").casefold() in _NO:
                yield from _all_rows(store, file)
            yield from _declined(store, file)
    if policy.enabled("unused_column"):
        yield from _unused(store, policy)


def said_of(file: str, policy: Policy) -> dict[str, str]:
    """What is known of a file by the policy and by the file beside it, which is the nearer and wins.

    Raises:
        PolicyError: the file beside it cannot be read, or says what nobody asks for.
    """
    said = {**policy.sources.get(PurePath(file).name, {}), **policy.sources.get(file, {}), **_beside(Path(file))}
    return {key: text for key in NAMES for name in NAMES[key] if (text := str(said.get(name, "")).strip())}


def _beside(file: Path) -> dict[str, str]:
    path = file.with_name(f"{file.name}.provenance.yaml")
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > _LARGEST_BYTES:
            raise PolicyError(
                "this is too large for a provenance", where=str(path), got=f"{path.stat().st_size:,} bytes"
            )
        tree = value_of(path.read_text(encoding="utf-8"), where=str(path)) or {}
    except RecipeError as error:
        raise PolicyError(error.what, where=error.where, got=error.got) from None
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError("this provenance cannot be read", where=str(path), got=type(error).__name__) from None
    if not isinstance(tree, dict):
        raise PolicyError("a provenance is a mapping", where=str(path), got=f"a {type(tree).__name__}")
    known = [name for names in NAMES.values() for name in names]
    for key in tree:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            do = f"did you mean {close[0]}?" if close else f"use {', '.join(NAMES)}"
            raise PolicyError(f"unknown key {str(key)[:40]}", where=str(path), do=do)
    return {key: str(value) for key, value in tree.items() if value is not None}


def _value(names: tuple[str, ...]) -> str:
    """SQL of the first of these columns that a row fills; their names are ours."""
    return "coalesce(" + ", ".join(f"nullif(trim(columns ->> '$.{name}'), '')" for name in names) + ", NULL)"


def _missing(store: Store, key: str, file: str, rows: int, first: str) -> Iterator[Hit]:
    value = _value(NAMES.get(key, (key,)) if key.isidentifier() else ())
    lacking = store.value(f"SELECT count(*) FROM rows WHERE file = ? AND {value} IS NULL", [file])
    if lacking == rows:
        yield Hit("provenance", first, f"{key} is not known of any of the {rows:,} rows of its file", other=file)
    elif lacking:
        for batch in store.batches(
            f"SELECT id FROM rows WHERE file = ? AND {value} IS NULL ORDER BY row", parameters=[file]
        ):
            for (row,) in batch:
                yield Hit("provenance", row, f"{key} is not known; {lacking:,} of {rows:,} rows of its file lack it")


def _all_rows(store: Store, file: str) -> Iterator[Hit]:
    for batch in store.batches("SELECT id FROM rows WHERE file = ? ORDER BY row", parameters=[file]):
        for (row,) in batch:
            yield Hit("no_consent", row, "the provenance of its file says that there is none")


def _declined(store: Store, file: str) -> Iterator[Hit]:
    consent, out = _value(("consent", "consented")), _value(("opt_out", "opted_out"))
    sql = (
        f"SELECT id, lower({consent}) IN (SELECT unnest(?)) FROM rows WHERE file = ? AND "
        f"(lower({consent}) IN (SELECT unnest(?)) OR lower({out}) IN (SELECT unnest(?))) ORDER BY row"
    )
    for batch in store.batches(sql, parameters=[list(_NO), file, list(_NO), list(_YES)]):
        for row, said_no in batch:
            yield Hit("no_consent", row, "its consent says no" if said_no else "it is opted out")


def _unused(store: Store, policy: Policy) -> Iterator[Hit]:
    used = {*policy.groups, policy.time, "verified", "opt_out", "opted_out"}
    used |= {name for names in NAMES.values() for name in names}
    sql = (
        "SELECT key, count(*), arg_min(id, row) FROM (SELECT unnest(json_keys(columns)) AS key, id, row FROM rows "
        "WHERE columns <> '{}') GROUP BY key ORDER BY count(*) DESC, key LIMIT 200"
    )
    total = store.value("SELECT count(*) FROM rows")
    for key, count, row in store.db.execute(sql).fetchall():
        if key not in used:
            yield Hit(
                "unused_column",
                row,
                f"`{json.dumps(key)[1:61]}` stands in {count:,} of {total:,} rows".replace('"', ""),
            )
