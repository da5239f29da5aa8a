"""Plants known faults in real data and counts which the gate finds: a table of recall and precision, rule by rule.

    python -m benchmarks.gate_faults --data DIR [--rules near_duplicate leak ...] [--rates 0.02 0.08] [--sets gsm8k ...]
        [--out FOLDER]

DIR holds banking77, mts-dialog, zava-retail-agent and gsm8k. A planted row is found where a finding names it, or names
it as the other of two. Precision does not count what is found before anything is planted: real data have faults of
their own, and the last column says how many. With `--out`, FOLDER/DATE-gate-faults.md holds the table and a summary;
until all is done, what there is stands in FOLDER/DATE-gate-faults.partial.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks import gate_faults_form, gate_faults_page, gate_faults_private, gate_faults_repeats, machine
from benchmarks.gate_faults_form import Planter
from benchmarks.gate_faults_page import Line
from luthier.gate import balance, duplicates, form, hidden, leakage, noise, poison, private
from luthier.gate.policy import Policy
from luthier.gate.reading import rows as read_rows
from luthier.gate.reading import sources
from luthier.gate.rows import Field, Hit, Row
from luthier.gate.store import write_store
from luthier.runs.folder import write_text

FAULTS: Mapping[str, Planter] = {**gate_faults_form.FAULTS, **gate_faults_repeats.FAULTS, **gate_faults_private.FAULTS}
"""`rule`, or `rule/kind of fault`."""
AIMED = frozenset({*gate_faults_form.FAULTS, *gate_faults_repeats.AIMED, *gate_faults_private.AIMED})
"""What at least 0.95 of should be found at a precision of 0.9."""
RATES = (0.02, 0.04, 0.08)
POLICY = Policy.model_validate({"groups": ["customer"]})


def _chat(number: int, prompt: str, answer: str) -> Row:
    fields = (Field("messages[0].content", "user", prompt), Field("messages[1].content", "assistant", answer))
    return Row(f"a:{number}", str(number), "a", number, "train", fields, prompt, answer)


def _labelled(number: int, text: str, label: str) -> Row:
    return Row(f"a:{number}", str(number), "a", number, "train", (Field("text", "text", text),), text, "", (label,))


def banking77(data: Path, name: str = "train") -> list[Row]:
    with (data / f"banking77/{name}.csv").open(newline="", encoding="utf-8") as file:
        return [_labelled(n, row["text"], row["category"]) for n, row in enumerate(csv.DictReader(file), 1)]


def mts_dialog(data: Path, name: str = "MTS-Dialog-TrainingSet.csv") -> list[Row]:
    with (data / "mts-dialog" / name).open(newline="", encoding="utf-8-sig") as file:
        return [_chat(n, row["dialogue"], row["section_text"]) for n, row in enumerate(csv.DictReader(file), 1)]


def mts_sections(data: Path) -> list[Row]:
    """The twenty kinds of section as labels of what was noted: for label noise."""
    with (data / "mts-dialog/MTS-Dialog-TrainingSet.csv").open(newline="", encoding="utf-8-sig") as file:
        return [
            _labelled(n, row["section_text"], row["section_header"]) for n, row in enumerate(csv.DictReader(file), 1)
        ]


def gsm8k(data: Path) -> list[Row]:
    lines = (data / "gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()[:3000]
    return [_chat(n, row["question"], row["answer"]) for n, row in enumerate(map(json.loads, lines), 1)]


def zava(data: Path) -> list[Row]:
    """Every file of conversations; the same few questions are asked in several of them."""
    files = sorted(str(path) for path in (data / "zava-retail-agent").glob("stock*.jsonl"))
    found, _ = sources({"train": files})
    return [row for row in read_rows(found, POLICY) if isinstance(row, Row)]


SETS: Mapping[str, Callable[[Path], list[Row]]] = {
    "banking77": banking77,
    "mts-dialog": mts_dialog,
    "mts-sections": mts_sections,
    "gsm8k": gsm8k,
    "zava": zava,
}
CHATS = ("mts-dialog", "gsm8k", "zava")
LABELLED = ("banking77", "mts-sections")


def fits(rule: str, name: str) -> bool:
    """Whether a rule can be planted in a data set."""
    if rule in ("label_noise", "trigger_word"):
        return name in LABELLED
    asks = rule.split("/")[0] in gate_faults_private.RULES or (
        rule in gate_faults_repeats.FAULTS and rule != "contradictory_rating"
    )
    return name in CHATS or (name == "banking77" and asks)


def found(rows: Sequence[Row], rule: str, against: Iterable[leakage.Reference] = ()) -> set[Hit]:
    for module in (form, hidden):
        if rule in module.RULES:
            return {hit for row in rows for hit in module.look(row, POLICY) if hit.rule == rule}
    if rule in private.RULES:
        return {hit for row in rows for hit in _private(row) if hit.rule == rule}
    look = {
        **dict.fromkeys(duplicates.RULES, duplicates.look),
        **dict.fromkeys(leakage.RULES, partial(leakage.look, against=against)),
        **dict.fromkeys(noise.RULES, noise.look),
        **dict.fromkeys(poison.RULES, poison.look),
        **dict.fromkeys(balance.RULES, balance.look),
    }[rule]
    names = WITH.get(rule, (rule,))
    with tempfile.TemporaryDirectory() as folder, write_store(rows, Path(folder) / "store", POLICY, workers=0) as store:
        return {hit for hit in look(store, POLICY) if hit.rule in names}


def _private(row: Row) -> tuple[Hit, ...]:
    key = row.id, row.fields
    if key not in _SEEN:
        _SEEN[key] = tuple(private.look(row, POLICY))
    return _SEEN[key]


_SEEN: dict[tuple[str, tuple[Field, ...]], tuple[Hit, ...]] = {}
"""Private data by row, since most rows stay as they are from one fault and rate to the next."""


WITH = {
    "duplicate": ("duplicate", "near_duplicate"),
    "near_duplicate": ("duplicate", "near_duplicate"),
    "leak": ("leak", "near_leak"),
    "near_leak": ("leak", "near_leak"),
}
"""Rules that find one fault together: of two near copies, one may be nearer to a third."""


class Score(NamedTuple):
    planted: int
    recall: float
    precision: float
    """Not a number where nothing is found."""
    before: int
    """Findings before anything was planted."""


def score(fault: str, rows: Sequence[Row], rate: float, *, seed: int = 7) -> Score | None:
    """None where no row can carry the fault."""
    rule = fault.split("/")[0]
    against = gate_faults_repeats.benchmark(rows) if rule == "contamination" else []
    planted = FAULTS[fault](rows, rate, seed)
    if not planted.touched:
        return None
    prepared = gate_faults_repeats.BEFORE.get(rule, list)(rows)
    before = {hit.row for hit in found(prepared, rule, against)}
    hits = found(planted.rows, rule, against)
    named = {row for hit in hits for row in (hit.row, hit.other)} & planted.touched
    right = {hit.row for hit in hits if planted.touched & {hit.row, hit.other}}
    wrong = {hit.row for hit in hits} - right - before
    return Score(
        len(planted.touched),
        len(named) / len(planted.touched),
        len(right) / len(right | wrong) if right | wrong else math.nan,
        len(before),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rules", nargs="+", default=sorted({fault.split("/")[0] for fault in FAULTS}))
    parser.add_argument("--rates", nargs="+", type=float, default=RATES)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--out", type=Path, help="folder of the dated page")
    chosen = parser.parse_args(arguments)
    began, lines = time.monotonic(), []
    target = chosen.out / f"{date.today().isoformat()}-gate-faults.md" if chosen.out else None
    partial = target.with_name(f"{target.stem}.partial.md") if target else None
    print(gate_faults_page.HEAD)
    for fault in FAULTS:
        for name in chosen.sets:
            if fault.split("/")[0] not in chosen.rules or not fits(fault, name):
                continue
            rows = SETS[name](chosen.data)
            for rate in chosen.rates:
                s = score(fault, rows, rate)
                if s is None:
                    continue
                lines.append(Line(fault, name, rate, *s))
                print(lines[-1], flush=True)
            if partial:
                write_text(partial, _page(lines, None))
    if target and partial:
        write_text(target, _page(lines, (time.monotonic() - began) / 60))
        partial.unlink(missing_ok=True)


def _page(lines: Sequence[Line], minutes: float | None) -> str:
    busy = minutes is not None and (machine.busy() or 0) > 0.5
    return gate_faults_page.page(lines, aimed=AIMED, here=machine.describe(), busy=busy, minutes=minutes)


if __name__ == "__main__":
    main()
