"""Rules that no other test looks at: each sees what it is for, and nothing where that is not."""

import gzip
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier.gate.audit import audit
from luthier.gate.policy import Policy
from luthier.gate.table import rules
from tests.gate.corpus import chat, clean, look, write
from tests.gate.stored import sentence

Rows = list[dict[str, Any]]
SHARES = Policy.model_validate({"rules": {"group_outcome": "off"}})


def lines(path: Path, rule: str, rows: Sequence[dict[str, Any]], policy: Policy | None = None) -> set[int]:
    """Lines of the rows in which a rule sees something."""
    found = look(path, rows, policy=policy)
    return {
        int(example["place"].rpartition(":")[2])
        for entry in found.report["findings"]
        if entry["rule"] == rule
        for example in entry["examples"]
    }


@pytest.mark.parametrize(
    ("rule", "answer", "honest"),
    [
        ("private_use", "Press the \ue0a0 button.", "Press the ⏻ button."),
        ("private_use", "Press the \U000f0001 button.", "Press the 🔘 button."),
        ("remote_content", "See ![it](https://a.example/p.png?q=1) there.", "See [it](https://a.example/p) there."),
        ("remote_content", "See <img src='//a.example/p.png'> there.", "See `<img src='//a.example/p.png'>` there."),
        ("remote_content", "See [it](javascript:alert) there.", "See [it](java.html) there."),
        ("remote_content", "See <b onclick='go()'>it</b> there.", "See it once = there."),
    ],
)
def test_a_row_and_its_honest_twin(tmp_path: Path, rule: str, answer: str, honest: str) -> None:
    rows = [*clean(4), chat("Where can I see it?", answer), chat("And where else is it?", honest)]
    assert lines(tmp_path, rule, rows) == {5}


@pytest.mark.parametrize(("women", "men", "found"), [(4, 36, {5}), (36, 4, {1}), (20, 20, set()), (2, 16, set())])
def test_one_group_named_far_more_often_than_another(tmp_path: Path, women: int, men: int, found: set[int]) -> None:
    """One hit at the first row that names the larger group, also where the rule beside it is off; not below 20 rows."""
    draw = random.Random(0)
    rows = [chat(f"{'She' if n < women else 'He'} asks: {sentence(draw, 9)}?", "So.") for n in range(women + men)]
    assert lines(tmp_path, "group_share", rows, SHARES) == found


def test_a_file_that_breaks_off_blocks_and_its_rows_before_that_count(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl.gz"
    rows = clean(3000)
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())[:-2000])
    found = audit([str(file)], Policy(), tmp_path / "out", workers=0)
    assert [f.rule for f in found.findings if f.severity == "block"] == ["unread_file"]
    assert found.decision == "blocked"
    assert 0 < found.report["rows"] < len(rows)
    whole = audit([write(tmp_path / "whole.jsonl", rows[:300])], Policy(), tmp_path / "whole", workers=0)
    assert "unread_file" in whole.report["quiet"]


def test_every_rule_is_named_in_a_test() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].rglob("*.py"))
    assert set(rules()) <= set(re.findall(r"\w+", tests))
