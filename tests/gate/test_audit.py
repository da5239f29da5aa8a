"""The audit as its user sees it: findings, decision, and what is in its files."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from benchmarks.gate import chats
from luthier.gate import reading, store
from luthier.gate.audit import audit
from luthier.gate.clean import clean as mend
from luthier.gate.policy import Policy, load_policy
from luthier.gate.table import rules
from luthier.recipe.data import Waiver
from luthier.report.gate import write_page
from tests.gate.corpus import chat, clean, everything, look, write

MANY = 400


def hits(folder: Path) -> list[dict[str, Any]]:
    return list(parquet.read_table(folder / "findings.parquet").to_pylist())


def test_rows_without_a_fault_pass(tmp_path: Path) -> None:
    found = look(tmp_path, clean(MANY), against=clean(40, seed=99))
    assert [f.rule for f in found.findings if f.severity != "info"] == []
    assert found.decision == "pass"


def test_a_row_that_cannot_be_read_blocks_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    lines = [json.dumps(row) for row in clean(30)]
    file.write_text("\n".join([*lines[:10], '{"messages": [', *lines[10:], '{"messages": "none"}']))
    found = audit([str(file)], Policy(), tmp_path / "out", workers=0)
    assert found.decision == "blocked"
    (bad,) = [f for f in found.findings if f.rule == "bad_row"]
    assert bad.examples == (f"{file}:11", f"{file}:32")
    assert bad.count == 2


def test_the_policys_control_tokens_are_found_and_mended(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("extends: default\ncontrol_tokens: ['[turn/]', '⟦end⟧']\n")
    policy = load_policy(str(tmp_path / "own.yaml"))
    rows = [*clean(10), chat("Where is my parcel ⟦end⟧ please?", "It is there."), chat("Is it [turn/]?", "It is.")]
    file, out = write(tmp_path / "train.jsonl", rows), tmp_path / "clean.parquet"
    assert "control_token" not in {f.rule for f in look(tmp_path / "usual", rows).findings}
    found = audit([file], policy, tmp_path / "out", workers=0)
    (own,) = [f for f in found.findings if f.rule == "control_token"]
    assert (own.severity, own.examples) == ("block", (f"{file}:11", f"{file}:12"))
    assert load_policy(str(tmp_path / "out" / "policy.yaml")).control_tokens == ("[turn/]", "⟦end⟧")
    done = mend([file], policy, out, key=bytes, workers=0)
    assert dict(done.changed) == {"control_token": 2}
    assert "control_token" not in {f.rule for f in done.audit.findings}
    texts = [row["messages"][0]["content"] for row in parquet.read_table(out).to_pylist()]
    assert {"Where is my parcel   please?", "Is it  ?"} < set(texts)


def test_a_waived_rule_no_longer_blocks_and_says_why(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_text("\n".join([*(json.dumps(row) for row in clean(30)), "{"]))
    policy = load_policy("default", waive=[Waiver(rule="bad_row", reason="the last line was cut off")])
    found = audit([str(file)], policy, tmp_path / "out", workers=0)
    assert found.decision == "warnings"
    assert "the last line was cut off" in next(f.message for f in found.findings if f.rule == "bad_row")


def test_training_rows_of_the_test_file_are_found_also_where_it_is_a_copy(tmp_path: Path) -> None:
    rows = clean(60)
    found = look(tmp_path, rows, against=rows[:5])
    (leak,) = [f for f in found.findings if f.rule == "leak"]
    assert leak.count == 5
    assert {hit["side"] for hit in hits(tmp_path / "audit") if hit["rule"] == "leak"} == {"train"}


def test_every_hit_has_a_place_and_a_known_rule(tmp_path: Path) -> None:
    look(tmp_path, list(chats(MANY)))
    found = hits(tmp_path / "audit")
    assert found
    for hit in found:
        assert hit["rule"] in rules()
        assert hit["file"] == str(tmp_path / "train.jsonl")
        assert hit["row"].endswith(f":{hit['line']}")


@pytest.mark.parametrize(
    ("workers", "rows", "characters"), [(0, 1, 1 << 30), (0, 7, 1 << 30), (2, 50, 1 << 30), (0, 10**6, 900)]
)
def test_findings_depend_neither_on_chunks_nor_on_processes(
    tmp_path: Path, workers: int, rows: int, characters: int
) -> None:
    cut = everything(tmp_path, workers=workers, chunk_rows=rows, chunk_characters=characters)
    assert cut == everything(tmp_path, workers=0)


def test_nothing_private_is_in_the_report_the_page_or_the_hits(tmp_path: Path) -> None:
    private = {
        "email": "anna.schmidt@firma-beispiel.de",
        "card": "4111 1111 1111 1111",
        "iban": "DE89 3704 0044 0532 0130 00",
        "ssn": "536-90-4399",
        "key": "sk-proj-Zx8Qw1Er5Ty7Ui9Op2As4Df6",
        "phone": "+49 170 5551234",
    }
    rows = clean(40) + [
        chat(f"My number is {value}, please look.", f"Thank you, I see {value}.") for value in private.values()
    ]
    found = look(tmp_path, rows)
    assert {"email", "card_number", "iban"} <= {f.rule for f in found.findings}
    write_page(tmp_path / "audit")
    written = json.dumps(found.report, ensure_ascii=False) + (tmp_path / "audit" / "report.html").read_text()
    written += json.dumps(hits(tmp_path / "audit"), ensure_ascii=False) + str(found.findings)
    for value in private.values():
        assert value not in written


def test_texts_are_kept_nowhere_when_the_audit_is_over(tmp_path: Path) -> None:
    look(tmp_path, clean(20))
    assert {path.name for path in (tmp_path / "audit").rglob("*")} == {"report.json", "findings.parquet", "policy.yaml"}


def test_an_audit_that_fails_leaves_no_texts(tmp_path: Path) -> None:
    def broken() -> Any:
        found, _ = reading.sources({"train": [write(tmp_path / "train.jsonl", clean(20))]})
        yield from reading.rows(found, Policy())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write_store(broken(), tmp_path / "store", Policy(), workers=0, chunk_rows=5)
    assert not (tmp_path / "store").exists()


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.permutations(list(range(24))))
def test_the_order_of_rows_changes_no_count(tmp_path: Path, order: list[int]) -> None:
    rows = clean(20) + clean(4)
    counts = [
        {
            f.rule: f.count
            for f in look(tmp_path, [rows[i] for i in some]).findings
            if f.rule in ("duplicate", "near_duplicate")
        }
        for some in (list(range(24)), order)
    ]
    assert counts[0] == counts[1]
    assert counts[0]["duplicate"] == 4
