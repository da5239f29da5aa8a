"""Two versions of a data set, and one row with all that is known of it."""

from pathlib import Path

import pytest

from luthier.errors import InputError
from luthier.gate.clean import clean
from luthier.gate.diff import diff
from luthier.gate.policy import Policy
from luthier.gate.show import show
from tests.gate import corpus
from tests.gate.corpus import chat, look, write

MAIL = "ada.byron@lovelace.org"


def counts(folder: Path, a: str, b: str) -> dict[str, int]:
    return diff([a], [b], Policy(), folder, workers=0).counts


def test_every_kind_of_difference_is_counted_once(tmp_path: Path) -> None:
    old, work = corpus.clean(20), tmp_path / "work"
    work.mkdir()
    changed = chat(old[2]["messages"][0]["content"], "We have looked into this, and it will be done by Friday evening.")
    new = [*old[:2], changed, *old[4:], chat("Do you sell bicycles for children as well?", "Yes, from size twelve on.")]
    found = counts(work, write(tmp_path / "a.jsonl", old), write(tmp_path / "b.jsonl", new))
    assert found == {"same": 18, "moved": 0, "changed": 1, "added": 1, "removed": 1}


def test_a_version_against_itself_is_the_same_in_any_order(tmp_path: Path) -> None:
    rows = corpus.clean(15) + corpus.clean(3)
    (tmp_path / "work").mkdir()
    a, b = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", reversed(rows))
    assert counts(tmp_path / "work", a, b) == {"same": 18, "moved": 0, "changed": 0, "added": 0, "removed": 0}


def test_a_row_that_stands_in_another_file_has_moved(tmp_path: Path) -> None:
    rows = corpus.clean(12)
    for name, cut in (("a", 8), ("b", 7)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "train.jsonl", rows[:cut])
        write(tmp_path / name / "test.jsonl", rows[cut:])
    (tmp_path / "work").mkdir()
    found = diff([str(tmp_path / "a")], [str(tmp_path / "b")], Policy(), tmp_path / "work", workers=0)
    assert found.counts == {"same": 11, "moved": 1, "changed": 0, "added": 0, "removed": 0}
    assert "train.jsonl:8 -> " in found.places["moved"][0]


def test_a_cleaned_version_is_matched_by_where_its_rows_came_from(tmp_path: Path) -> None:
    rows = [*corpus.clean(10), chat(f"Please write to {MAIL} about it.", "We have written there, thank you.")]
    file, out = write(tmp_path / "a.jsonl", rows), tmp_path / "clean.parquet"
    policy = Policy.model_validate({"rules": {"email": {"action": "redact"}}})
    clean([file], policy, out, key=lambda: b"", workers=0)
    (tmp_path / "work").mkdir()
    found = diff([file], [str(out)], Policy(), tmp_path / "work", workers=0)
    assert found.counts == {"same": 10, "moved": 0, "changed": 1, "added": 0, "removed": 0}
    assert found.a.findings["email"] == 1
    assert "email" not in found.b.findings


def test_a_row_is_shown_masked_unless_it_is_asked_for_raw(tmp_path: Path) -> None:
    rows = [*corpus.clean(5), chat(f"Please write to {MAIL} about it.", "We have written there, thank you.")]
    found = look(tmp_path, rows)
    (email,) = [entry for entry in found.report["findings"] if entry["rule"] == "email"]
    id = email["examples"][0]["row"]
    masked, raw = (show(id, tmp_path / "audit", raw=raw) for raw in (False, True))
    assert MAIL not in str(masked.fields) + str(masked.hits)
    assert MAIL in raw.fields[0].text
    assert [hit["rule"] for hit in masked.hits] == ["email"]
    assert raw.row.line == 6


def test_a_row_knows_who_names_it(tmp_path: Path) -> None:
    rows = corpus.clean(6)
    look(tmp_path, [*rows, rows[2]])
    from pyarrow import parquet

    (hit,) = [
        h for h in parquet.read_table(tmp_path / "audit" / "findings.parquet").to_pylist() if h["rule"] == "duplicate"
    ]
    other = show(hit["other"], tmp_path / "audit")
    assert [one["row"] for one in other.named_by] == [hit["row"]]


def test_a_changed_file_and_an_unknown_row_are_refused(tmp_path: Path) -> None:
    look(tmp_path, corpus.clean(5))
    prefix = look(tmp_path, corpus.clean(5)).report["sources"][0]["prefix"]
    with pytest.raises(InputError, match="no such row"):
        show(f"{prefix}:77", tmp_path / "audit")
    with pytest.raises(InputError, match="no file of this audit"):
        show("00000000:1", tmp_path / "audit")
    with pytest.raises(InputError, match="no row id"):
        show("what", tmp_path / "audit")
    write(tmp_path / "train.jsonl", corpus.clean(6))
    with pytest.raises(InputError, match="not the one that was audited"):
        show(f"{prefix}:1", tmp_path / "audit")
