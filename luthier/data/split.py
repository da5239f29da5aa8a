"""Which rows are held back. Every rule is a function of the rows: no random state, no order of rows, no file names.

Rows with one key (the same prompt or text) always stand on one side under `content` and `label`. Under `group` and
`time` the column decides, and `leaks` finds prompts that then stand on two sides.
"""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from luthier.errors import DataError
from luthier.recipe.data import Split
from luthier.types import SIDES

TRAIN, VALIDATION, TEST = (SIDES.index(side) for side in ("train", "validation", "test"))
Keys = NDArray[np.uint64]
Sides = NDArray[np.int8]


class Shares(NamedTuple):
    """Shares of the rows for each held-back side; 0 where a file is given for it."""

    validation: float
    test: float


def shares(split: Split, *, validation_given: bool = False, test_given: bool = False) -> Shares:
    return Shares(0.0 if validation_given else split.validation, 0.0 if test_given else split.test)


def key_number(digest: str) -> int:
    """The first 8 bytes of a hex digest, as the number that decides."""
    return int(digest[:16], 16)


def group_number(value: Any) -> int:
    """The key of a group: a hash of its value as text, so that 7, 7.0 and "7" are one group."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return key_number(hashlib.blake2b(str(value).strip().encode("utf-8"), digest_size=16).hexdigest())


def assign(
    keys_N: Keys,
    shares: Shares,
    *,
    labels_N: NDArray[np.int64] | None = None,
    groups_N: Keys | None = None,
    times_N: NDArray[np.float64] | None = None,
) -> Sides:
    """The side of each row: an index into `types.SIDES`. At most one of the three columns is given; without one, the
    rule is `content`.

    content: a row is held back where its key, as a number in [0, 1), is below the shares. It depends on the row alone,
        but for one exception: where a side would stay empty, the smallest (for train: the largest) key fills it.
    label: of each label's keys in order, the first share goes to test, the next to validation, rounded, and one stays
        in train. A key with several labels counts for its smallest. Labels are numbered in the order of their names.
    group: as content, with the key of the group.
    time: the newest rows go to test, the next newest to validation; rows of one moment stay together.

    Raises:
        DataError: there are fewer different keys (groups, moments) than sides.
    """
    if times_N is not None:
        return _by_time(times_N, shares)
    if groups_N is not None:
        return _by_content(groups_N, shares, "groups")
    if labels_N is not None:
        return _by_label(keys_N, labels_N, shares)
    return _by_content(keys_N, shares, "prompts or texts")


def leaks(keys_N: Keys, held_back: Keys) -> NDArray[np.bool_]:
    """Which rows have a key that is also held back."""
    return np.isin(keys_N, held_back)


def _needs(count: int, shares: Shares, what: str) -> None:
    wanted = 1 + (shares.validation > 0) + (shares.test > 0)
    if count < wanted:
        raise DataError(
            f"too few rows to train on and hold some back: {wanted} different {what} are needed",
            where="data.split",
            got=f"{count:,}",
            do="add rows, give files with data.validation and data.test, or set their shares in data.split to 0",
        )


def _by_content(keys_N: Keys, shares: Shares, what: str) -> Sides:
    keys_U, row_N = np.unique(keys_N, return_inverse=True)
    _needs(len(keys_U), shares, what)
    # Compared as floats: a share is a float, and 53 bits of the key tell 10^7 rows apart.
    place_U = keys_U.astype(np.float64) / 2.0**64
    sides_U = np.full(len(keys_U), TRAIN, dtype=np.int8)
    sides_U[place_U < shares.test + shares.validation] = VALIDATION
    sides_U[place_U < shares.test] = TEST
    _fill(sides_U, shares)
    return sides_U[row_N]


def _fill(sides_U: Sides, shares: Shares) -> None:
    """Gives every side that should have rows at least one; keys are sorted, so the smallest comes first."""
    sizes = {side: int((sides_U == side).sum()) for side in (TEST, VALIDATION, TRAIN)}
    wanted = {TEST: shares.test > 0, VALIDATION: shares.validation > 0, TRAIN: True}
    for side in (TEST, VALIDATION, TRAIN):
        if wanted[side] and sizes[side] == 0:
            rich = np.flatnonzero([sizes[int(s)] > 1 for s in sides_U])
            chosen = rich[-1] if side == TRAIN else rich[0]
            sizes[int(sides_U[chosen])] -= 1
            sizes[side] += 1
            sides_U[chosen] = side


def _by_label(keys_N: Keys, labels_N: NDArray[np.int64], shares: Shares) -> Sides:
    keys_U, row_N = np.unique(keys_N, return_inverse=True)
    _needs(len(keys_U), shares, "texts")
    label_U = np.full(len(keys_U), np.iinfo(np.int64).max, dtype=np.int64)
    np.minimum.at(label_U, row_N, labels_N)
    sides_U = np.full(len(keys_U), TRAIN, dtype=np.int8)
    for label in np.unique(label_U):
        members = np.flatnonzero(label_U == label)  # in the order of their keys, which are sorted
        test = min(_rounded(shares.test, len(members)), len(members) - 1)
        validation = min(_rounded(shares.validation, len(members)), len(members) - 1 - test)
        sides_U[members[:test]] = TEST
        sides_U[members[test : test + validation]] = VALIDATION
    _fill_from_largest(sides_U, label_U, shares)
    return sides_U[row_N]


def _rounded(share: float, count: int) -> int:
    return math.floor(share * count + 0.5)


def _fill_from_largest(sides_U: Sides, label_U: NDArray[np.int64], shares: Shares) -> None:
    """Where all labels are too rare for a share to come to one row: takes it from the label with most rows in train."""
    for side, share in ((TEST, shares.test), (VALIDATION, shares.validation)):
        if share > 0 and not (sides_U == side).any():
            labels, counts = np.unique(label_U[sides_U == TRAIN], return_counts=True)
            largest = labels[np.argmax(counts)]
            sides_U[np.flatnonzero((label_U == largest) & (sides_U == TRAIN))[0]] = side


def _by_time(times_N: NDArray[np.float64], shares: Shares) -> Sides:
    times_U, row_N, count_U = np.unique(times_N, return_inverse=True, return_counts=True)
    _needs(len(times_U), shares, "moments")
    sides_U = np.full(len(times_U), TRAIN, dtype=np.int8)
    newest = len(times_U) - 1
    for side, share, kept in ((TEST, shares.test, 1 + (shares.validation > 0)), (VALIDATION, shares.validation, 1)):
        taken = 0
        # A moment with many rows is taken whole or not at all, whichever comes closer to the share.
        while share > 0 and newest >= kept and (taken == 0 or taken + count_U[newest] / 2 <= share * len(times_N)):
            sides_U[newest] = side
            taken += int(count_U[newest])
            newest -= 1
    return sides_U[row_N]


class Moment(NamedTuple):
    kind: str
    """`number` or `date`: the two cannot be put in one order."""
    seconds: float


def moment(value: Any) -> Moment | None:
    """A time from a number, a number as text, or an ISO 8601 date (without a zone: UTC); None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return Moment("number", float(value)) if math.isfinite(value) else None
    if not isinstance(value, str):
        return None
    try:
        number = float(value)
    except ValueError:
        pass
    else:
        return Moment("number", number) if math.isfinite(number) else None
    try:
        date = datetime.fromisoformat(value.strip())
    except ValueError:
        return None
    aware = date if date.tzinfo else date.replace(tzinfo=UTC)
    return Moment("date", (aware - _EPOCH).total_seconds())


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
