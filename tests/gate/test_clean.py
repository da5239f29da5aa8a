"""Mends: what stays, what goes, what the ledger says of it, and that a clean file has nothing more to mend."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from benchmarks.gate import chats
from luthier.data.detect import detect
from luthier.data.formats import FORMATS, rehashed
from luthier.data.read import records
from luthier.gate.clean import Cleaned, beside, clean
from luthier.gate.fields import rewritten, to_row
from luthier.gate.policy import Policy, load_policy
from luthier.recipe.data import Columns
from luthier.types import Example
from tests.gate import corpus
from tests.gate.corpus import chat, write

KEY = bytes(range(32))
MENDING = Policy.model_validate(
    {"rules": {"email": {"action": "redact"}, "phone": {"action": "pseudonym"}, "card_number": {"action": "pseudonym"}}}
)


def cleaned(folder: Path, file: str, *, policy: Policy = MENDING, against: Sequence[str] = ()) -> tuple[Cleaned, Path]:
    out = folder / f"{Path(file).stem}-clean.parquet"
    return clean([file], policy, out, against=against, key=lambda: KEY, workers=0), out


def rows(path: Path) -> list[dict[str, Any]]:
    return list(parquet.read_table(path).to_pylist())


def examples(path: str) -> list[Example]:
    found = list(records([path]))
    detection = detect([record.value for record in found if record.value], Columns())
    return [FORMATS[detection.format](record, detection.columns) for record in found]


def test_rows_read_are_rows_kept_and_rows_left_out(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    lines = [json.dumps(row) for row in chats(200)]
    file.write_text("\n".join([*lines, "{", *lines[:3]]))
    done, out = cleaned(tmp_path, str(file))
    assert done.read == 204
    assert done.kept == len(rows(out)) == done.read - sum(done.dropped.values())
    assert done.dropped["bad_row"] == 1
    assert done.dropped["duplicate"] >= 3


def test_a_clean_file_stays_as_it_is(tmp_path: Path) -> None:
    _, out = cleaned(tmp_path, write(tmp_path / "train.jsonl", chats(300)))
    again, second = cleaned(tmp_path, str(out))
    assert (dict(again.dropped), dict(again.changed), again.rounds) == ({}, {}, 1)
    assert rows(second) == rows(out)
    assert rows(beside(second, ".ledger.parquet")) == []


def test_nothing_that_was_to_be_mended_is_left(tmp_path: Path) -> None:
    done, out = cleaned(tmp_path, write(tmp_path / "train.jsonl", chats(300)))
    left = {finding.rule for finding in done.audit.findings}
    assert not left & {"email", "phone", "card_number", "duplicate", "near_duplicate"}
    assert "4111 1111" not in json.dumps(rows(out))


def test_the_ledger_names_every_row_that_differs(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", chats(300))
    done, out = cleaned(tmp_path, file)
    before = {example.provenance.hash for example in examples(file)}
    kept = {row["_hash"] for row in rows(out)}
    ledger = rows(beside(out, ".ledger.parquet"))
    assert {line["before"] for line in ledger} >= before - kept
    assert kept - before == {line["after"] for line in ledger if line["after"] and line["after"] not in before} & kept
    assert sum(done.dropped.values()) == len({line["row"] for line in ledger if line["after"] is None})


def test_one_person_keeps_one_pseudonym(tmp_path: Path) -> None:
    policy = Policy.model_validate({"rules": {"email": {"action": "pseudonym"}, "near_duplicate": "off"}})
    asked = ["Where is my order, write to ada@lovelace.org", "Please cancel it and tell ada@lovelace.org about that"]
    file = write(tmp_path / "train.jsonl", [chat(one, f"We do it today, number {i}.") for i, one in enumerate(asked)])
    _, out = cleaned(tmp_path, file, policy=policy)
    words = [{w for w in row["messages"][0]["content"].split() if "@" in w} for row in rows(out)]
    assert words[0] == words[1]
    assert words[0] != {"ada@lovelace.org"}


def test_test_rows_are_compared_with_and_not_changed(tmp_path: Path) -> None:
    some = corpus.clean(30)
    test = write(tmp_path / "test.jsonl", some[:4])
    before = Path(test).read_bytes()
    done, _ = cleaned(tmp_path, write(tmp_path / "train.jsonl", some), against=[test])
    assert done.kept == 26
    assert Path(test).read_bytes() == before


def test_the_result_means_what_the_rows_meant(tmp_path: Path) -> None:
    some = corpus.clean(25)
    some[3]["messages"][1] |= {"weight": 0.0}
    some[3]["messages"] += [
        {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": "Then it is sent on."},
    ]
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"order": "A7"}'}}
    some[5]["messages"][1:1] = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sent on Monday"},
    ]
    file = write(tmp_path / "train.jsonl", [{**row, "customer": i} for i, row in enumerate(some)])
    _, out = cleaned(tmp_path, file)
    old, new = examples(file), examples(str(out))
    assert [one.provenance.hash for one in new] == [one.provenance.hash for one in old]
    assert [one.columns["customer"] for one in new] == list(range(25))


@pytest.mark.parametrize("name", ["labelled", "several", "number", "text"])
def test_rows_without_turns_keep_their_meaning_too(tmp_path: Path, name: str) -> None:
    texts = [row["messages"][0]["content"] for row in corpus.clean(20)]
    column: dict[str, Any] = {
        "labelled": lambda i: {"label": "ab"[i % 2]},
        "several": lambda i: {"label": ["a", "b"][: 1 + i % 2]},
        "number": lambda i: {"score": i / 7},
        "text": lambda i: {},
    }
    file = write(tmp_path / "train.jsonl", [{"text": text, **column[name](i)} for i, text in enumerate(texts)])
    _, out = cleaned(tmp_path, file)
    assert [one.provenance.hash for one in examples(str(out))] == [one.provenance.hash for one in examples(file)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.text(min_size=1)).filter(lambda p: p[0].strip() and p[1].strip()),
        min_size=1,
        max_size=4,
    )
)
def test_an_example_can_be_taken_apart_and_put_together(tmp_path: Path, pairs: list[tuple[str, str]]) -> None:
    turns = [
        {"role": role, "content": text.replace("\0", "")}
        for pair in pairs
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    if not all(turn["content"].strip() for turn in turns):
        return
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": turns}))
    (example,) = examples(str(file))
    assert rehashed(example) == example
    row = to_row(example, id="a:1", side="train")
    assert rewritten(example, [field.text for field in row.fields]) == example


def test_every_shipped_policy_comes_to_an_end(tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", chats(120))
    for name in ("default", "support", "health", "legal", "finance"):
        done, out = cleaned(tmp_path, file, policy=load_policy(name))
        assert done.kept == len(rows(out)) > 0
