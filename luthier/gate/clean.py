"""What is found is mended as the policy says: rows left out, private data replaced, broken text written anew.

    CLEAN.parquet          the rows that stay, each with its content hash and where it came from
    CLEAN.ledger.parquet   one line for each thing done: row, rule, what, the row's hash before and after
    CLEAN.audit/           the report on the rows that stay

Mending goes on until an audit of the result finds nothing more to mend, so cleaning a clean file changes nothing.
Rows of the test side are compared with and never changed.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as arrow
from pyarrow import parquet

from luthier.data.formats import rehashed
from luthier.data.store import ExampleStore, StoreWriter
from luthier.errors import DataError
from luthier.gate import form, hidden, version
from luthier.gate.audit import Audit, Progress, conclude, look_through, reading_of
from luthier.gate.fields import rewritten, to_row
from luthier.gate.policy import Policy
from luthier.gate.private.replace import pseudonym, replaced
from luthier.gate.private.spans import Span
from luthier.gate.reading import Place, Source, examples, place_of, rows, sources
from luthier.gate.rows import Hit, Row
from luthier.gate.store import Store
from luthier.gate.table import rules
from luthier.recipe.data import Columns, Format
from luthier.runs.folder import storage
from luthier.types import Example

MOST_ROUNDS = 8
LEDGER = arrow.schema(
    [
        ("row", arrow.string()),
        ("file", arrow.string()),
        ("line", arrow.int64()),
        ("round", arrow.int32()),
        ("rule", arrow.string()),
        ("done", arrow.string()),
        ("path", arrow.string()),
        ("other", arrow.string()),
        ("before", arrow.string()),
        ("after", arrow.string()),
    ]
)


class Cleaned(NamedTuple):
    read: int
    kept: int
    dropped: Mapping[str, int]
    """Rows by the rule that left them out; a row that several rules would leave out counts for the first."""
    changed: Mapping[str, int]
    """Things done by rule, in the rows that stay."""
    rounds: int
    audit: Audit
    """Of the rows that stay."""


class Done(NamedTuple):
    """A line of the ledger."""

    rule: str
    done: str
    path: str = ""
    other: str = ""


def clean(
    files: Sequence[str],
    policy: Policy,
    out: Path,
    *,
    against: Sequence[str] = (),
    key: Callable[[], bytes],
    columns: Columns | None = None,
    format: Format | None = None,
    workers: int | str = 2,
    progress: Progress | None = None,
) -> Cleaned:
    """Writes the mended rows of `files` to `out`, its ledger and its audit beside it.

    Args:
        key: gives the key of pseudonyms; asked only where the policy wants them.

    Raises:
        DataError: a file cannot be read, or no row is left.
    """
    train, skipped = sources({"train": files})
    test, _ = sources({"test": against}) if against else ([], [])
    work = out.with_name(f".{out.name}.partial")
    with storage(work):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700)
    ledger = Ledger(work / "ledger.parquet")
    try:
        items = examples(train, policy, columns=columns, format=format, progress=reading_of(train, progress))
        source, unread = _taken(chain(skipped, items), work / "round-0", ledger, policy, train)
        read = len(source) + sum(ledger.dropped.values())
        for number in range(1, MOST_ROUNDS + 1):
            again = chain(unread, _rows(source), rows(test, policy) if test else ())
            with look_through(
                again, policy, work / "store", [*train, *test], workers=workers, progress=progress
            ) as store:
                mending = Mending(ledger, number, key, repairs(policy))
                mended = _mended(source, _mends(store, policy), work / f"round-{number}", mending)
                if mended is None:
                    audit = conclude(store, policy, beside(out, ".audit"), [*train, *test])
                    break
                source = mended
        else:
            raise DataError("cleaning comes to no end", where=str(out), got=f"{MOST_ROUNDS} rounds")
        if not len(source):
            raise DataError(
                "no row is left", where=", ".join(files), do="luthier data audit says which rules drop rows"
            )
        version.write(source, work / "clean.parquet")
        ledger.close()
        with storage(out):
            os.replace(work / "ledger.parquet", beside(out, ".ledger.parquet"))
            os.replace(work / "clean.parquet", out)
        return Cleaned(read, len(source), ledger.dropped, ledger.changed, number, audit)
    finally:
        ledger.close()
        shutil.rmtree(work, ignore_errors=True)


def beside(out: Path, end: str) -> Path:
    """`clean.parquet` -> `clean.ledger.parquet`."""
    return out.with_name(out.name.removesuffix(out.suffix) + end)


class Ledger:
    """What was done to the rows, written down as it is done."""

    def __init__(self, path: Path) -> None:
        self.dropped: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()
        self._writer = parquet.ParquetWriter(path, LEDGER, compression="zstd")
        self._held: list[tuple[Any, ...]] = []

    def note(self, example: Example, row: str, number: int, done: Sequence[Done], after: str | None) -> None:
        """Args:
        after: the row's new hash; None where it is left out.
        """
        source = example.provenance
        if after is None:
            self.dropped[done[0].rule] += 1
        self.changed.update(one.rule for one in done if after is not None)
        for one in done:
            self.add((row, source.file, source.line, number, *one, source.hash, after))

    def unread(self, hit: Hit, file: str, line: int) -> None:
        """A row that could not be read has no hash."""
        self.dropped[hit.rule] += 1
        self.add((hit.row, file, line, 0, hit.rule, "drop", "", "", None, None))

    def add(self, line: tuple[Any, ...]) -> None:
        self._held.append(line)
        if len(self._held) >= 50_000:
            self._flush()

    def close(self) -> None:
        if self._writer.is_open:
            self._flush()
            self._writer.close()

    def _flush(self) -> None:
        if self._held:
            columns = zip(LEDGER.names, zip(*self._held, strict=True), strict=True)
            self._writer.write_table(arrow.table({name: list(values) for name, values in columns}, schema=LEDGER))
            self._held.clear()


def _taken(
    items: Iterable[Place | Hit], folder: Path, ledger: Ledger, policy: Policy, files: Sequence[Source]
) -> tuple[ExampleStore, list[Hit]]:
    """The rows on disk with their ids, so that standard input is read once; and what is to be said of the files."""
    said: list[Hit] = []
    with StoreWriter(folder) as writer:
        for item in items:
            if not isinstance(item, Hit):
                columns = {version.ORIGIN: item.id, **item.example.columns}
                writer.append(replace(item.example, columns=columns))
            elif policy.enabled(item.rule) and policy.action(item.rule) == "drop":
                ledger.unread(item, *place_of(item.row, files))
            else:
                said.append(item)
        return writer.finish(), said


def _rows(source: ExampleStore) -> Iterator[Row]:
    for example in source:
        yield to_row(example, id=str(example.columns[version.ORIGIN]), side="train")


class Mend(NamedTuple):
    done: Done
    start: int
    end: int


def _mends(store: Store, policy: Policy) -> Iterator[tuple[int, list[Mend]]]:
    """Number of a row and what is to be done to it, in the order of the rows."""
    wanted = {name: policy.action(name) for name in rules() if policy.action(name) != "none"}
    store.db.execute("CREATE TABLE mends (rule VARCHAR, done VARCHAR)")
    store.db.executemany("INSERT INTO mends VALUES (?, ?)", list(wanted.items()))
    lines = store.batches(
        'SELECT number, rule, done, path, other, start, "end" FROM placed JOIN mends USING (rule) '
        "WHERE side = 'train' AND number IS NOT NULL ORDER BY number, rule, path, start, \"end\""
    )
    for row, some in groupby(chain.from_iterable(lines), key=lambda line: int(line[0])):
        yield row, [Mend(Done(*line[1:5]), *line[5:]) for line in some]


class Mending(NamedTuple):
    ledger: Ledger
    round: int
    key: Callable[[], bytes]
    repairs: Mapping[str, Callable[[str], str]]


def repairs(policy: Policy) -> dict[str, Callable[[str], str]]:
    """Rule -> the text without what the rule found under this policy."""
    without_tokens = partial(form.without_tokens, tokens=policy.control_tokens)
    return {**form.REPAIRS, **hidden.REPAIRS, "control_token": without_tokens}


def _mended(
    source: ExampleStore, mends: Iterator[tuple[int, list[Mend]]], folder: Path, mending: Mending
) -> ExampleStore | None:
    """The rows with this round's mends instead of the old ones; None where there was nothing to mend."""
    ahead = next(mends, None)
    if ahead is None:
        return None
    changed = False
    with StoreWriter(folder) as writer:
        for number, example in enumerate(source):
            new: Example | None = example
            if ahead is not None and ahead[0] == number:
                new, done = mend(example, ahead[1], mending)
                if done:
                    changed = True
                    row = str(example.columns[version.ORIGIN])
                    mending.ledger.note(example, row, mending.round, done, new.provenance.hash if new else None)
                ahead = next(mends, None)
            if new is not None:
                writer.append(new)
        if not changed:
            return None
        source.close()
        shutil.rmtree(source.folder)
        return writer.finish()


def mend(example: Example, wanted: Sequence[Mend], mending: Mending) -> tuple[Example | None, list[Done]]:
    """The example after its mends, None where it is left out, and what was done."""
    dropped = [one.done for one in wanted if one.done.done == "drop"]
    if dropped:
        return None, dropped
    texts, done = [], []
    for field in to_row(example, id="", side="train").fields:
        here = [one for one in wanted if one.done.path in ("", field.path)]
        text = _replaced(field.text, here, mending.key)
        for one in here:
            if one.done.done == "repair" and one.done.rule in mending.repairs:
                text = mending.repairs[one.done.rule](text)
        if text != field.text:
            done += [one.done for one in here if one.done not in done]
            if not text.strip():
                return None, [Done(here[0].done.rule, "drop", field.path)]
        texts.append(text)
    return (rehashed(rewritten(example, texts)), done) if done else (example, [])


def _replaced(text: str, here: Sequence[Mend], key: Callable[[], bytes]) -> str:
    """Private data replaced by its kind or its pseudonym."""
    how = {one.done.rule: one.done.done for one in here}
    spans = [
        Span(one.done.rule, one.start, one.end, 1.0)
        for one in here
        if one.done.done in ("redact", "pseudonym") and one.start < one.end
    ]
    if not spans:
        return text

    def by(span: Span) -> str:
        if how[span.kind] == "redact":
            return f"⟨{span.kind.replace('_', '-')}⟩"
        return pseudonym(span.kind, text[span.start : span.end], key=key())

    return replaced(text, spans, by)
