"""Marks that forbid the use of a text, rows of the future, and names that a policy gives."""

from pathlib import Path

import pytest

from luthier.gate.policy import Policy, load_policy
from tests.gate.corpus import chat, clean, look

QUESTION = "What did they say about the offer?"


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("legal", "This memorandum is ATTORNEY-CLIENT\n  PRIVILEGED and may not be passed on."),
        ("legal", "Exhibit 7, filed under seal."),
        ("finance", "He holds material non public information on the merger."),
        ("finance", "The issuer is on our restricted list."),
    ],
)
def test_a_mark_of_the_policy_blocks(tmp_path: Path, policy: str, text: str) -> None:
    found = look(tmp_path, [*clean(10), chat(QUESTION, text)], policy=load_policy(policy))
    (marked,) = [f for f in found.findings if f.rule == "marked"]
    assert marked.severity == "block"
    assert marked.examples == (f"{tmp_path / 'train.jsonl'}:11",)


def test_words_that_only_contain_a_mark_are_none(tmp_path: Path) -> None:
    rows = [*clean(10), chat(QUESTION, "The unrestricted listing of insiders is filed underseals.")]
    for policy in ("legal", "finance", "default"):
        found = look(tmp_path, rows, policy=load_policy(policy))
        assert "marked" not in {f.rule for f in found.findings}


def test_training_rows_later_than_the_first_test_row_are_found(tmp_path: Path) -> None:
    rows, test = clean(12), clean(4, seed=7)
    dated = [{**row, "date": f"2025-01-{day + 1:02}"} for day, row in enumerate(rows)]
    held = [{**row, "date": f"2025-01-{day + 10:02}"} for day, row in enumerate(test)]
    found = look(tmp_path, dated, against=held, policy=Policy(time="date"))
    (leak,) = [f for f in found.findings if f.rule == "time_leak"]
    assert leak.examples == tuple(f"{tmp_path / 'train.jsonl'}:{line}" for line in (11, 12))


def test_a_name_that_the_policy_gives_is_looked_for(tmp_path: Path) -> None:
    rows = [*clean(10), chat("please ask ottokar weissmann about it", "We have asked there, thank you.")]
    without, given = (look(tmp_path, rows, policy=Policy(names=names)) for names in ((), ("Ottokar Weissmann",)))
    assert [sum(f.count for f in found.findings if f.rule == "person_name") for found in (without, given)] == [0, 1]
