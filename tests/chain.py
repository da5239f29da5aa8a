"""Small rows, recipes and events for tests that run the chain from end to end."""

import json
from pathlib import Path

from luthier.data.pack import pack
from luthier.recipe import Recipe
from luthier.recipe.load import build
from luthier.runs.journal import read
from luthier.types import Sequence

WOODS = ["spruce", "maple", "ebony", "willow", "pear", "boxwood", "cedar", "walnut"]
PARTS = ["top", "back", "ribs", "neck", "pegs", "bridge", "scroll", "blocks"]


def conversations(count):
    """Rows whose answer follows from the question."""
    rows = []
    for i in range(count):
        wood, part = WOODS[i % len(WOODS)], PARTS[i // len(WOODS) % len(PARTS)]
        question = f"Which wood for the {part}, number {i}?"
        rows.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": wood}]})
    return rows


def texts(count):
    """Rows of plain text."""
    return [
        {"text": f"The {PARTS[i % 8]} is of {WOODS[(i * 3) % 8]}, and it was carved in {1700 + i}."}
        for i in range(count)
    ]


def labelled(count):
    """Rows with one of two labels."""
    return [
        {"text": f"{WOODS[i % 8]} for the {PARTS[i // 8 % 8]}, piece {i}", "label": "hard" if i % 2 else "soft"}
        for i in range(count)
    ]


def several_labels(count):
    """Rows with none, one or two of three labels."""
    names = ["carve", "glue", "varnish"]
    return [
        {"text": f"piece {i} of {WOODS[i % 8]}", "labels": [n for k, n in enumerate(names) if (i + 1) >> k & 1]}
        for i in range(count)
    ]


def numbers(count):
    """Rows with a number."""
    return [{"text": f"piece {i} of {WOODS[i % 8]}", "value": (i % 8) / 4} for i in range(count)]


ROWS = {
    "supervised": conversations,
    "text": texts,
    "classify": labelled,
    "classify_multi": several_labels,
    "regress": numbers,
}
"""Objective -> rows for it."""


def write_rows(path, rows):
    """Writes JSONL and returns the path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(model, rows, /, **sections) -> Recipe:
    """A recipe of a few quick steps; `sections` are merged into it one level deep."""
    tree = {
        "model": {"source": str(model), "precision": "fp32"},
        "data": {"train": [str(rows)], "split": {"validation": 0.15, "test": 0.15}},
        "training": {"max_steps": 6, "batch_examples": 4, "threads": 1, "rate": 1e-2, "validate_every": 2},
        "evaluation": {"max_new_tokens": 8},
    }
    for name, values in sections.items():
        tree[name] = {**tree[name], **values} if isinstance(tree.get(name), dict) else values
    return build(tree, where="the test")


def events(run, kind=None):
    """The events of a run that count, or those of one kind."""
    return [event for event in read(Path(run.events)) if kind in (None, event["event"])]


def losses(run):
    """(step, loss, gradient norm) of every step."""
    return [(event["step"], event["loss"], event["grad_norm"]) for event in events(run, "step")]


class Steps:
    """A source whose steps are given lists of lists of sequences."""

    def __init__(self, steps):
        self.steps = steps

    def __len__(self):
        return len(self.steps)

    def step(self, n):
        return [pack(group) for group in self.steps[n]]


def sequence(tokens, weights, label=()):
    """A rendered example."""
    import numpy as np

    return Sequence("x", np.asarray(tokens, dtype=np.int32), np.asarray(weights, dtype=np.float32), label)
