"""Commands from their words to their exit codes: errors are one block on stderr, and stdout stays clean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from luthier.cli import main
from luthier.cli.run import global_flags, told
from luthier.errors import DataError, Interrupted, LuthierError, NotFinite, OutOfMemory, StorageError

RECIPE = "model: {source: /no/such/model}\ndata: {train: [a.jsonl]}\n"


def errors_of(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("error: ")
    return err


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    for verb in (
        "demo",
        "tune",
        "init",
        "check",
        "plan",
        "prove",
        "resume",
        "evaluate",
        "chat",
        "export",
        "runs",
        "show",
    ):
        assert f"  {verb} " in out
    assert err == ""


@pytest.mark.parametrize(
    "verb", ["demo", "tune", "init", "check", "plan", "prove", "resume", "evaluate", "chat", "export", "runs", "show"]
)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    assert f"luthier {verb}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    from luthier import __version__

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"luthier {__version__}\n"


@pytest.mark.parametrize(
    ("words", "fragments"),
    [
        (["tune"], ["neither a recipe nor a model and data", "luthier tune --model MODEL --data FILE"]),
        (["check", "--model", "m"], ["--data is missing", "luthier check --model m --data FILE"]),
        (["tune", "--data", "a.jsonl"], ["--model is missing", "--data a.jsonl"]),
        (["tune", "a.jsonl"], ["this is a data file", "luthier tune --model MODEL --data a.jsonl"]),
        (["tune", "--model", "m", "--data", "a.csv", "b.csv"], ["this is a data file", "--data a.csv --data b.csv"]),
        (["tune", "m.gguf"], ["this is a model", "luthier tune --model m.gguf --data FILE"]),
        (["tune", "nowhere.yaml"], ["there is no such recipe", "luthier init"]),
        (
            ["tune", "--model", "m", "--data", "a.jsonl", "--sweep", "model.source=a,b"],
            ["--sweep model.source: cannot be swept", "the same base"],
        ),
        (
            ["tune", "--model", "m", "--data", "a.jsonl", "--sweep", "training.rat=1,2"],
            ["training.rat: unknown key", "Did you mean"],
        ),
        (["tune", "r.yaml", "--model", "m"], ["--model has no place beside it", "-o model.source=MODEL"]),
        (["tune", "--modle", "m"], ["--modle", "--model", "luthier tune --help"]),
        (["tnue"], ["tnue", "tune", "luthier --help"]),
        (["evaluate", "x"], ["--data", "luthier evaluate --help"]),
        (["export", "x", "--to", "zip", "--out", "y"], ["'zip'", "merged", "adapter"]),
        (["show", "x", "--sample", "three"], ["--sample"]),
        (["resume", "nowhere"], ["there is no such run", "nowhere"]),
        (["show", "nowhere"], ["there is no such run", "nowhere"]),
        (["runs", "nowhere"], ["there is no such folder", "nowhere"]),
    ],
    ids=" ".join,
)
def test_bad_input_ends_with_2_and_says_what_to_do(
    words: list[str],
    fragments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    err = errors_of(capsys)
    for fragment in fragments:
        assert fragment in err
    assert not (tmp_path / "runs").exists()


def test_a_json_list_is_a_data_file_and_a_json_mapping_a_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, recipe = tmp_path / "rows.json", tmp_path / "recipe.json"
    rows.write_text('[{"text": "a"}]')
    recipe.write_text(json.dumps({"model": {"source": "m"}, "data": {"train": ["a"]}, "zzz": 1}))
    assert main(["tune", str(rows)]) == 2
    assert "this is a data file" in errors_of(capsys)
    assert main(["tune", str(recipe)]) == 2
    assert "zzz: unknown key" in errors_of(capsys)


def test_a_run_folder_is_no_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "events.jsonl").write_text("")
    assert main(["tune", str(tmp_path)]) == 2
    assert f"luthier resume {tmp_path}" in errors_of(capsys)


def test_what_is_wrong_with_a_recipe_is_said_by_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    assert main(["tune", str(path), "-o", "training.epoch=3"]) == 2
    err = errors_of(capsys)
    assert err.splitlines()[0] == "error: training.epoch: unknown key"
    assert "Did you mean epochs?" in err


def test_debug_shows_where_from_and_stands_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "nowhere", "--debug"]) == 2
    first = capsys.readouterr().err
    assert main(["--debug", "show", "nowhere"]) == 2
    assert "Traceback" in first
    assert capsys.readouterr().err == first
    assert global_flags(["chat", "--quiet", "--", "--debug"]) == ({"--quiet"}, ["chat", "--", "--debug"])


@pytest.mark.parametrize(
    ("error", "code", "fragment"),
    [
        (
            DataError("a row is bad", where="a.jsonl:3", got="a list", do="mend it"),
            2,
            "  where: a.jsonl:3\n  got: a list",
        ),
        (LuthierError("something"), 1, "error: something"),
        (NotFinite("the loss is no number"), 4, "error: the loss"),
        (StorageError("the disk is full"), 5, "error: the disk"),
        (Interrupted("stopped", do="luthier resume r"), 130, "luthier resume r"),
        (KeyboardInterrupt(), 130, "stopped"),
        (typer.Abort(), 130, "stopped"),
        (OutOfMemory("too much"), 3, "too much"),
        (MemoryError(), 3, "microbatch_tokens"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            3,
            "not enough memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 3, "not enough memory"),
        (typer.BadParameter("this is not possible"), 2, "this is not possible"),
        (KeyError("private words"), 1, "a fault of Luthier: KeyError"),
    ],
)
def test_every_error_has_its_block_and_code(error: BaseException, code: int, fragment: str) -> None:
    text, got = told(error)
    assert got == code
    assert text.startswith("error: ")
    assert fragment in text
    assert "private words" not in text


def test_nothing_in_an_error_can_move_the_cursor() -> None:
    text, _ = told(DataError("no such column", got="\x1b[2J\x07\u202e"))
    assert not set("\x1b\x07\u202e") & set(text)


def test_a_reader_that_goes_away_ends_it_silently(tmp_path: Path) -> None:
    for i in range(3000):
        (tmp_path / f"run-{i:05}").mkdir()
        (tmp_path / f"run-{i:05}" / "events.jsonl").write_text("")
    command = f"{sys.executable} -m luthier.cli runs {tmp_path} --json; echo rc $? >&2"
    done = subprocess.run(["bash", "-c", f"( {command} ) | head -c 1"], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "rc 141"


def test_output_is_utf8_whatever_the_locale(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "luthier.cli", "tune", "größe.csv"]
    done = subprocess.run(command, env={"PYTHONIOENCODING": "ascii"}, capture_output=True, check=False, cwd=tmp_path)
    assert "where: größe.csv" in done.stderr.decode("utf-8")
