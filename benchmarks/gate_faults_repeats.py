"""Plants what stands in the data twice or against itself: copies, leaks, contradictions, wrong labels. Rule -> planter.

A planter takes rows, a rate and a seed, and gives rows with the fault and which they are. `near_duplicate/1-3 words`
names a rule and a kind of fault that it must find.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from benchmarks.gate_faults_form import Planted, Planter, with_field
from luthier.gate.contamination import Reference
from luthier.gate.rows import Row
from luthier.gate.text import bare, normal

Change = Callable[[str, random.Random], str | None]
"""A text that is nearly the same; None where this text cannot be changed so."""
HELD = 0.1
"""Share of the rows that are held back where leaks are planted."""


def _asked(row: Row) -> int:
    """The field that is changed: the last one before the answer."""
    return len(row.fields) - (2 if row.answer else 1)


def _with(row: Row, text: str, number: int) -> Row:
    new = with_field(row, _asked(row), text)
    return replace(new, id=f"planted:{number}", content=f"planted {number}", line=number, file="planted")


def same(text: str, draw: random.Random) -> str:
    """Other letter case and spaces."""
    return "  ".join(text.swapcase().split(" ")) if draw.random() < 0.5 else f" {text.lower()}\n"


def punctuated(text: str, draw: random.Random) -> str:
    """Other punctuation."""
    return re.sub(r"(?<!\d)[.,!?;:]+(?!\d)", lambda _: draw.choice(("", "!", " - ", "...")), text) + draw.choice(".!?")


def edited(text: str, draw: random.Random) -> str | None:
    """One word in twenty replaced, dropped or added: one to three. Where there are not twenty, this is another text."""
    words = text.split(" ")
    if len(words) < 20:
        return None
    for _ in range(min(len(words) // 20, 3)):
        # Another number would be another question.
        at = draw.choice([at for at, word in enumerate(words) if not any(map(str.isdigit, word))])
        words[at : at + draw.randrange(2)] = draw.choice(([], ["indeed"], ["really"], ["again"]))
    return " ".join(words)


def short_edited(text: str, draw: random.Random) -> str | None:
    """One word of 8 to 19 replaced: a near duplicate to some, another question to others."""
    words = text.split(" ")
    if not 8 <= len(words) < 20:
        return None
    words[draw.randrange(len(words))] = "indeed"
    return " ".join(words)


def other_digits(text: str, draw: random.Random) -> str | None:
    """Each number with other digits; only where digits are few."""
    digits = sum(character.isdigit() for character in text)
    if not 0 < digits <= 0.1 * len(text) or len(text.split()) < 8:
        return None
    return re.sub(r"\d", lambda match: str((int(match.group()) + draw.randrange(1, 9)) % 10), text)


def _copies(change: Change, rows: Sequence[Row], rate: float, draw: random.Random) -> list[Row]:
    """Changed copies of some rows."""
    made: list[Row] = []
    for index in draw.sample(range(len(rows)), len(rows)):
        if len(made) >= max(3, rate * len(rows)):
            break
        row = rows[index]
        text = change(row.fields[_asked(row)].text, draw)
        if text is not None and text.strip() and bare(normal(text)) != "":
            made.append(_with(row, text, len(made)))
    return made


def _mixed(rows: Sequence[Row], added: Sequence[Row], draw: random.Random) -> Planted:
    both = [*rows, *added]
    return Planted(draw.sample(both, len(both)), {row.id for row in added})


def copies(change: Change) -> Planter:
    def plant(rows: Sequence[Row], rate: float, seed: int) -> Planted:
        draw = random.Random(seed)
        return _mixed(rows, _copies(change, rows, rate, draw), draw)

    return plant


def held_back(rows: Sequence[Row]) -> list[Row]:
    """The same rows with every tenth in test."""
    return [replace(row, side="test") if index % round(1 / HELD) == 0 else row for index, row in enumerate(rows)]


def leaks(change: Change) -> Planter:
    """Changed copies of test rows in train."""

    def plant(rows: Sequence[Row], rate: float, seed: int) -> Planted:
        draw = random.Random(seed)
        rows = held_back(rows)
        test = [row for row in rows if row.side == "test"]
        made = _copies(change, test, min(1.0, rate / HELD), draw)
        return _mixed(rows, [replace(row, side="train") for row in made], draw)

    return plant


def groups(rows: Sequence[Row], rate: float, seed: int) -> Planted:
    """Every row has a customer of its own side; some training rows have one of a test row."""
    draw = random.Random(seed)
    made = [replace(row, columns={"customer": f"{row.side} {index // 3}"}) for index, row in enumerate(held_back(rows))]
    train = [index for index, row in enumerate(made) if row.side == "train"]
    test = [row for row in made if row.side == "test"]
    touched = draw.sample(train, max(3, round(rate * len(rows))))
    for index in touched:
        made[index] = replace(made[index], columns=draw.choice(test).columns)
    return Planted(made, {made[index].id for index in touched})


def contradictions(change: Change) -> Planter:
    """Copies that ask the same, or nearly, with another label or the answer of another row."""

    def plant(rows: Sequence[Row], rate: float, seed: int) -> Planted:
        draw = random.Random(seed)
        labels = sorted({row.labels for row in rows})
        added = []
        for row in _copies(change, rows, rate, draw):
            if row.labels:
                added.append(replace(row, labels=draw.choice([label for label in labels if label != row.labels])))
            else:
                answer = draw.choice([other.answer for other in rows if normal(other.answer) != normal(row.answer)])
                added.append(with_field(row, len(row.fields) - 1, answer))
        return _mixed(rows, added, draw)

    return plant


def ratings(rows: Sequence[Row], rate: float, seed: int) -> Planted:
    """Copies with the opposite reward."""
    draw = random.Random(seed)
    rows = [replace(row, columns={"reward": draw.choice((0.0, 1.0))}) for row in rows]
    added = [
        replace(row, columns={"reward": 1.0 - row.columns["reward"]})
        for row in _copies(lambda t, _: t, rows, rate, draw)
    ]
    return _mixed(rows, added, draw)


def flipped(rows: Sequence[Row], rate: float, seed: int) -> Planted:
    """Labels of others, drawn evenly."""
    draw = random.Random(seed)
    labels = sorted({row.labels for row in rows})
    made = list(rows)
    touched = draw.sample(range(len(rows)), max(3, round(rate * len(rows))))
    for index in touched:
        made[index] = replace(rows[index], labels=draw.choice([x for x in labels if x != rows[index].labels]))
    return Planted(made, {rows[index].id for index in touched})


def benchmark(rows: Sequence[Row]) -> list[Reference]:
    """Every tenth row as an item of a benchmark, of which `contaminated` plants pieces."""
    return [Reference(row.id, row.fields[_asked(row)].text) for row in rows[:: round(1 / HELD)]]


def without_benchmark(rows: Sequence[Row]) -> list[Row]:
    return [row for index, row in enumerate(rows) if index % round(1 / HELD)]


def contaminated(rows: Sequence[Row], rate: float, seed: int) -> Planted:
    """Without the benchmark's own rows; twenty words (or all, where there are fewer) of an item stand in some."""
    draw = random.Random(seed)
    items = [item.text.split() for item in benchmark(rows) if len(item.text.split()) >= 8]
    made = without_benchmark(rows)
    touched = draw.sample(range(len(made)), max(3, round(rate * len(made))))
    for index in touched:
        words, row = draw.choice(items), made[index]
        at = draw.randrange(max(1, len(words) - 20))
        old = row.fields[_asked(row)].text
        made[index] = with_field(row, _asked(row), f"{old} {' '.join(words[at : at + 20]).upper()} {old[:20]}")
    return Planted(made, {made[index].id for index in touched})


FAULTS: Mapping[str, Planter] = {
    "duplicate": copies(same),
    "near_duplicate/punctuation": copies(punctuated),
    "near_duplicate/1-3 words": copies(edited),
    "near_duplicate/1 of 8-19 words": copies(short_edited),
    "near_duplicate/digits": copies(other_digits),
    "leak": leaks(punctuated),
    "near_leak/1-3 words": leaks(edited),
    "near_leak/1 of 8-19 words": leaks(short_edited),
    "group_leak": groups,
    "contamination": contaminated,
    "contradiction": contradictions(punctuated),
    "contradiction/1-3 words": contradictions(edited),
    "contradictory_rating": ratings,
    "label_noise": flipped,
}
AIMED = tuple(name for name in FAULTS if "8-19" not in name)
"""What at least 0.95 of should be found at a precision of 0.9: a word of ten can change the question."""
BEFORE: Mapping[str, Callable[[Sequence[Row]], list[Row]]] = {
    "leak": held_back,
    "near_leak": held_back,
    "contamination": without_benchmark,
}
"""What the rule finds in the rows as they were is counted after the same preparation."""
