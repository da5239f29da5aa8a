"""What an audited store holds, as plain values for the report: findings with masked examples, and distributions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from luthier.gate.findings import place
from luthier.gate.policy import Policy
from luthier.gate.reading import Source
from luthier.gate.store import Store
from luthier.gate.table import rules
from luthier.masking import mask
from luthier.types import JSON, SIDES

EXAMPLES = 20
"""Of each finding; the others are in findings.parquet."""
MOST_LABELS = 40
LONGEST_SEEN = 300
"""Characters of what was seen, in a report."""
_ORDER = ("block", "warn", "info")


def place_hits(store: Store, found: Sequence[Source]) -> None:
    """Makes the table `placed`: every hit once, with the file and line of its row, in the order of the rows."""
    store.db.execute("CREATE TABLE sources (prefix VARCHAR, file VARCHAR, side VARCHAR)")
    if found:
        store.db.executemany("INSERT INTO sources VALUES (?, ?, ?)", [(s.prefix, s.file, s.side) for s in found])
    # What could not be read has no row; its id says where it stands.
    store.db.execute(
        """
        CREATE TABLE placed AS
        WITH one AS (SELECT DISTINCT * FROM hits),
        split AS (
            SELECT *, rtrim(regexp_extract(row, '^(.*):', 1)) AS prefix,
                   coalesce(try_cast(regexp_extract(row, ':(\\d+)', 1) AS BIGINT), 0) AS at
            FROM one
        )
        SELECT s.rule, s.row AS id, r.row AS number, coalesce(r.file, f.file, '') AS file,
               coalesce(r.line, s.at) AS line,
               coalesce(r.side, f.side) AS side, s.path, s.start, s."end", s.seen, s.score, s.other
        FROM split s LEFT JOIN rows r ON r.id = s.row LEFT JOIN sources f ON f.prefix = s.prefix
        """
    )


def findings(store: Store, policy: Policy) -> list[JSON]:
    """One entry a rule that was broken, the gravest and most frequent first."""
    total = store.value("SELECT count(*) FROM rows")
    counts = store.db.execute(
        "SELECT rule, count(DISTINCT id), count(*), "
        + ", ".join(f"count(DISTINCT id) FILTER (side = '{s}')" for s in SIDES)
        + " FROM placed GROUP BY rule"
    ).fetchall()
    found = [_finding(store, policy, total, *count) for count in counts]
    return sorted(found, key=lambda f: (_ORDER.index(f["severity"]), f["waived"] is not None, -f["count"], f["rule"]))


def _finding(store: Store, policy: Policy, total: int, name: str, count: int, hits: int, *by_side: int) -> JSON:
    rule = rules()[name]
    unread = store.value("SELECT count(DISTINCT id) FROM placed WHERE rule = ? AND number IS NULL", [name])
    share = count / max(total + unread, 1)
    return {
        "rule": name,
        "title": rule.title,
        "severity": policy.severity(name),
        "waived": policy.waived(name),
        "count": count,
        "hits": hits,
        "share": share,
        "by_side": {side: n for side, n in zip(SIDES, by_side, strict=True) if n},
        "why": rule.why,
        "remedy": rule.remedy,
        "about": rule.about,
        "mend": policy.action(name),
        "thresholds": {threshold: policy.number(name, threshold) for threshold in rule.thresholds},
        "examples": list(_examples(store, name)),
    }


def _examples(store: Store, rule: str) -> Iterator[JSON]:
    """The first rows that break a rule, one entry each, the surest first where there is a score."""
    query = """
        SELECT p.id, p.file, p.line, p.path, p.seen, p.score, p.other, o.file, o.line
        FROM (SELECT *, row_number() OVER (PARTITION BY id ORDER BY score DESC NULLS LAST, path, start) AS again
              FROM placed WHERE rule = ?) p
        LEFT JOIN rows o ON o.id = p.other
        WHERE p.again = 1
        ORDER BY p.score DESC NULLS LAST, p.number NULLS FIRST, p.file, p.line LIMIT ?
    """
    for id, file, line, path, seen, score, other, other_file, other_line in store.db.execute(
        query, [rule, EXAMPLES]
    ).fetchall():
        yield {
            "row": id,
            "place": place(file, line),
            "path": path,
            "seen": mask(seen)[:LONGEST_SEEN],
            "score": score,
            "other": place(other_file, other_line) if other_file else mask(other),
        }


def figures(store: Store) -> JSON:
    """Rows by file and side, lengths, labels, languages."""
    db = store.db
    lengths = {}
    for what, column in (("prompt", "prompt"), ("answer", "answer")):
        bins = db.execute(
            f"SELECT ceil(log2(length({column})))::INT AS power, count(*) FROM rows WHERE length({column}) > 0 "
            "GROUP BY power ORDER BY power"
        ).fetchall()
        middle = db.execute(
            f"SELECT quantile_disc(length({column}), [0.05, 0.5, 0.95]), max(length({column})) FROM rows "
            f"WHERE length({column}) > 0"
        ).fetchone()
        if bins and middle:
            lengths[what] = {"bins": [[2**power, n] for power, n in bins], "quantiles": middle[0], "longest": middle[1]}
    labels = db.execute(
        "SELECT label, "
        + ", ".join(f"count(*) FILTER (side = '{side}')" for side in SIDES)
        + " FROM (SELECT side, unnest(labels) AS label FROM rows) GROUP BY label ORDER BY count(*) DESC, label"
    ).fetchall()
    return {
        "rows": store.value("SELECT count(*) FROM rows"),
        "sides": dict(db.execute("SELECT side, count(*) FROM rows GROUP BY side ORDER BY side").fetchall()),
        "files": {
            file: [rows, characters]
            for file, rows, characters in db.execute(
                "SELECT file, count(*), sum(length(prompt) + length(answer))::BIGINT FROM rows GROUP BY file"
            ).fetchall()
        },
        "lengths": lengths,
        "labels": [
            {"label": mask(label), **dict(zip(SIDES, counts, strict=True))} for label, *counts in labels[:MOST_LABELS]
        ],
        "more_labels": max(len(labels) - MOST_LABELS, 0),
        "languages": [
            [language, count]
            for language, count in db.execute(
                "SELECT coalesce(language, 'not told') AS l, count(*) FROM rows GROUP BY l ORDER BY count(*) DESC, l"
            ).fetchall()
        ],
    }
