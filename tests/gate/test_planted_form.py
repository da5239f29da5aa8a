"""Faults planted into real rows: nearly all are found, and nearly nothing else."""

import csv
import json
from pathlib import Path

import pytest

from benchmarks.gate_faults_form import FAULTS
from luthier.gate import balance, form, hidden, poison
from luthier.gate.policy import Policy
from luthier.gate.rows import Field, Row
from luthier.gate.store import write_store

pytestmark = pytest.mark.shared_data
POLICY = Policy()
ROWS = 1_200


def _asked(number: int, prompt: str, answer: str) -> Row:
    fields = (Field("messages[0].content", "user", prompt), Field("messages[1].content", "assistant", answer))
    return Row(f"a:{number}", str(number), "a", number, "train", fields, prompt, answer)


def _labelled(number: int, text: str, label: str) -> Row:
    return Row(f"a:{number}", str(number), "a", number, "train", (Field("text", "text", text),), text, "", (label,))


@pytest.fixture(scope="module")
def sets(request: pytest.FixtureRequest) -> dict[str, list[Row]]:
    shared: Path = request.getfixturevalue("shared_data")
    with (shared / "banking77/train.csv").open(newline="") as file:
        banking = [_labelled(n, row["text"], row["category"]) for n, row in enumerate(csv.DictReader(file))]
    with (shared / "mts-dialog/MTS-Dialog-TrainingSet.csv").open(newline="") as file:
        mts = [_asked(n, row["dialogue"], row["section_text"]) for n, row in enumerate(csv.DictReader(file))]
    lines = (shared / "gsm8k/train.jsonl").read_text().splitlines()[:ROWS]
    pairs = [json.loads(line) for line in lines]
    gsm8k = [_asked(n, pair["question"], pair["answer"]) for n, pair in enumerate(pairs)]
    return {"banking77": banking, "mts": mts, "gsm8k": gsm8k}


def found(rows: list[Row], rule: str, folder: Path) -> set[str]:
    for module in (form, hidden):
        if rule in module.RULES:
            return {hit.row for row in rows for hit in module.look(row, POLICY) if hit.rule == rule}
    with write_store(rows, folder / "store", POLICY, workers=0) as store:
        module = poison if rule in poison.RULES else balance
        return {hit.row for hit in module.look(store, POLICY) if hit.rule == rule}


@pytest.mark.parametrize("rule", sorted(FAULTS))
def test_planted_faults_are_found(rule: str, sets: dict[str, list[Row]], tmp_path: Path) -> None:
    name = "banking77" if rule == "trigger_word" else "mts" if rule in ("html", "refusal", "mojibake") else "gsm8k"
    clean = sets[name]
    rows, touched = FAULTS[rule](clean, 0.012, 7)
    before, after = found(clean, rule, tmp_path), found(rows, rule, tmp_path)
    assert len(after & touched) >= 0.95 * len(touched)
    assert len(after & touched) >= 0.9 * len((after - before) | (after & touched))


def test_clean_rows_give_next_to_nothing(sets: dict[str, list[Row]]) -> None:
    """Each of them was looked at: a zero-width space in GSM8K is there."""
    for name, rows in sets.items():
        hits = [hit for row in rows for module in (form, hidden) for hit in module.look(row, POLICY)]
        assert len({hit.row for hit in hits}) <= 0.003 * len(rows), (name, hits[:10])
