"""`luthier data` as it is typed: what is printed, what is written, and the exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.cli import main
from tests.gate import corpus
from tests.gate.corpus import chat, write

MAIL = "ada.byron@lovelace.org"


def test_an_audit_passes_warns_and_blocks_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "train.jsonl", corpus.clean(40))
    assert main(["data", "audit", file, "--out", str(tmp_path / "a"), "--quiet"]) == 0
    assert "pass" in capsys.readouterr().out
    with Path(file).open("a") as more:
        more.write("{\n")
    assert main(["data", "audit", file, "--out", str(tmp_path / "b"), "--quiet"]) == 1
    said = capsys.readouterr().out
    assert f"{file}:41" in said
    assert "blocked" in said
    assert {path.name for path in (tmp_path / "b").iterdir()} == {
        *("report.html", "report.json", "findings.parquet", "policy.yaml")
    }


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "train.jsonl", corpus.clean(10))
    main(["data", "audit", file, "--out", str(tmp_path / "a"), "--json", "--quiet"])
    assert json.loads(capsys.readouterr().out)["rows"] == 10


def test_clean_show_and_diff_follow_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*corpus.clean(10), chat(f"Please write to {MAIL} about it.", "We have written there, thank you.")]
    file, out = write(tmp_path / "train.jsonl", rows), tmp_path / "clean" / "rows.parquet"
    key = tmp_path / "keys" / "own.key"
    assert main(["data", "clean", file, "--out", str(out), "--key", str(key), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "11 rows read = 11 kept + 0 left out" in said
    assert main(["data", "diff", file, str(out), "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["counts"]["same"], found["counts"]["changed"]) == (10, 1)
    main(["data", "audit", file, "--out", str(tmp_path / "a"), "--json", "--quiet"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    (id,) = [e["examples"][0]["row"] for e in findings if e["rule"] == "email"]
    assert main(["data", "show", id, "--audit", str(tmp_path / "a")]) == 0
    assert MAIL not in capsys.readouterr().out
    assert main(["data", "show", id, "--audit", str(tmp_path / "a"), "--raw"]) == 0
    assert MAIL in capsys.readouterr().out


def test_rows_come_over_standard_input(tmp_path: Path) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in corpus.clean(8))
    command = [sys.executable, "-m", "luthier.cli", "data", "audit", "-", "--out", str(tmp_path / "a"), "--json"]
    ended = subprocess.run(command, input=rows, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["sources"][0]["file"] == "-"


def test_pairs_are_written_once_for_their_owner_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        chat("He lost his card, what now?", "Call us."),
        chat("Greg asks for it.", "Here it is."),
        chat("Why?", "So."),
    ]
    file, pairs = write(tmp_path / "train.jsonl", rows), tmp_path / "private" / "pairs.jsonl"
    words = ["data", "audit", file, "--pairs", str(pairs), "--quiet", "--out"]
    main([*words, str(tmp_path / "a")])
    assert f"pairs: 1 by pronoun, 1 by name in {pairs}" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "a" / "report.json").read_text())["pairs"] == {
        "file": str(pairs),
        "kinds": {"pronoun": 1, "name": 1},
    }
    written = pairs.read_bytes()
    assert {json.loads(line)["twin"] for line in written.splitlines()} == {
        "She lost her card, what now?",
        "Tremayne asks for it.",
    }
    assert pairs.stat().st_mode & 0o777 == 0o600
    assert list(pairs.parent.iterdir()) == [pairs]
    assert main([*words, str(tmp_path / "b")]) == 2
    assert "already" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert pairs.read_bytes() == written


def test_where_no_row_gives_a_pair_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, pairs = write(tmp_path / "train.jsonl", [chat("Where is my parcel?", "There.")]), tmp_path / "pairs.jsonl"
    main(["data", "audit", file, "--out", str(tmp_path / "a"), "--pairs", str(pairs), "--quiet"])
    assert "pairs: none" in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "report.json").read_text())["pairs"]["kinds"] == {}
    assert not pairs.exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["audit", "nothing.jsonl"], "there is no such file"),
        (["audit", "{file}", "--policy", "helth"], "did you mean health?"),
        (["clean", "{file}", "--out", "clean.csv"], "written as Parquet"),
        (["show", "deadbeef:1", "--audit", "{folder}"], "no such file"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "train.jsonl", corpus.clean(3))
    given = [word.format(file=file, folder=tmp_path) for word in words]
    assert main(["data", *given, *(["--out", str(tmp_path / "a")] if words[0] == "audit" else []), "--quiet"]) == 2
    assert said in capsys.readouterr().err
