"""Rules about the files themselves, which hold before there is a row to look at."""

from __future__ import annotations

from luthier.gate.rules import Rule

RULES: dict[str, Rule] = {
    "bad_row": Rule(
        title="row that cannot be used",
        why="What cannot be read is not learnt, and nobody notices.",
        remedy="Correct the row, or leave it out with luthier data clean.",
        severity="block",
        mend="drop",
        about="Broken JSON, missing columns, turns without an answer, bytes that are not UTF-8: all that training "
        "would refuse as well.",
    ),
    "unread_file": Rule(
        title="file that cannot be read on",
        why="The rows after the fault are missing from everything that follows.",
        remedy="Write the file again, or compress it again.",
        severity="block",
        about="A damaged gzip stream or Parquet page, a JSON array with a fault in it.",
    ),
    "packed_too_far": Rule(
        title="file that unpacks to far more than it holds",
        why="A few kilobytes can unpack to a full disk; honest text seldom shrinks more than thirtyfold.",
        remedy="Look at what made the file; raise `ratio` or `gigabytes` in the policy if it is meant.",
        severity="block",
        thresholds={"ratio": 200, "gigabytes": 500},
        about="Reading of a .gz file ends once it has given more than `ratio` times its own bytes (from 64 MB on), or "
        "more than `gigabytes` in all.",
    ),
    "skipped_file": Rule(
        title="file of a folder that is not read",
        why="Rows may be missing.",
        remedy="Name the file itself to have it read.",
        severity="info",
    ),
}
