"""What a model is tried on must be later than what it learnt, where rows have a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from luthier.data.split import moment
from luthier.gate.rows import Hit
from luthier.gate.rules import Rule

if TYPE_CHECKING:
    from luthier.gate.policy import Policy
    from luthier.gate.store import Store

RULES: dict[str, Rule] = {
    "time_leak": Rule(
        title="training row that is later than a test row",
        why="The model learns what was not known yet when the test rows were written, and its score does not hold.",
        remedy="Split by time (data.split.by=time), or leave these rows out of train.",
        severity="warn",
        mend="drop",
        about="By the policy's column `time`: ISO dates or numbers. Needs a test side; rows without a time are passed "
        "over.",
    )
}


def look(store: Store, policy: Policy) -> Iterator[Hit]:
    if policy.time is None:
        return
    first = min((when for _, when in _times(store, policy.time, "test")), default=None)
    if first is None:
        return
    for id, when in _times(store, policy.time, "train"):
        if when > first:
            yield Hit("time_leak", id, f"its {policy.time} is later than that of the first test row")


def _times(store: Store, column: str, side: str) -> Iterator[tuple[str, float]]:
    for batch in store.batches("SELECT id, columns FROM rows WHERE side = ? ORDER BY row", parameters=[side]):
        for id, columns in batch:
            found = moment(json.loads(columns).get(column))
            if found is not None:
                yield id, found.seconds
