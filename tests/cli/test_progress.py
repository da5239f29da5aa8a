"""What is said while a run goes on: on a log, plain lines and few of them."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest

from luthier.cli.progress import Bars, Display, Lines
from luthier.cli.words import bracketed, derived, findings, finished, marked, plain
from luthier.numbers import THIN, setting

Event = dict[str, Any]


class Clock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def training(display: Display, clock: Clock, *, steps: int, seconds: float) -> None:
    display({"event": "created", "run": "runs/one"})
    display({"event": "derived", "key": "training.rate", "value": 2e-4, "why": "usual for LoRA"})
    display({"event": "prepared", "side": "train", "rows": 1, "tokens": 1200, "supervised_tokens": 300, "longest": 90})
    display({"event": "started", "run": "runs/one", "step": 0, "steps": steps, "trained": 10, "weights": 1000})
    for step in range(1, steps + 1):
        clock.now += seconds
        display({"event": "step", "step": step, "loss": 1 / step, "tokens": 200, "seconds": seconds, "rate": 1e-4})
        if step % 10 == 0:
            display({"event": "validation", "step": step, "loss": 2 / step, "best": True})
    display({"event": "stopped", "step": steps, "reason": "no better validation loss 3 times in a row"})
    display({"event": "finished", "step": steps, "seconds": steps * seconds, "tokens": 100, "computed": 75})


def test_a_log_gets_few_plain_lines() -> None:
    clock, log = Clock(), io.StringIO()
    with Display(Lines(log, clock=clock), clock=clock) as display:
        training(display, clock, steps=100, seconds=1.0)
    lines = log.getvalue().splitlines()
    assert lines[0] == "run folder: runs/one"
    assert "training.rate = 0.0002   (usual for LoRA)" in lines
    assert f"train: 1 row, 1{THIN}200 tokens of which 300 are learnt, the longest 90" in lines
    steps = [line for line in lines if line.startswith("training: ")]
    assert len(steps) == 20
    assert steps[-1].startswith("training: 100 of 100  loss 0.0100  200 tokens/s")
    assert re.search(rf"training: 50 of 100 .* about 50{THIN}s left", "\n".join(steps))
    assert "validation after step 10: loss 0.200 (the best so far)" in lines
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", log.getvalue())


def test_every_arm_of_a_sweep_has_its_name_before_its_lines_and_a_table_ends_them() -> None:
    clock, log = Clock(), io.StringIO()
    with Display(Lines(log, clock=clock), clock=clock) as display:
        display({"event": "sweep", "arms": 2, "left": 2, "together": True, "why": ""})
        for arm in ("rate-1", "rate-2"):
            display({"event": "started", "arm": arm, "run": "r", "step": 0, "steps": 4, "trained": 1, "weights": 9})
        for step in range(1, 5):
            for arm in ("rate-1", "rate-2"):
                clock.now += 3
                display(
                    {"event": "step", "arm": arm, "step": step, "loss": 1.0, "tokens": 30, "seconds": 3.0, "rate": 1.0}
                )
        display({"event": "failed", "arm": "rate-2", "reason": "step 5: no number"})
        row = {"values": {}, "step": 4, "steps": 4, "tokens": 120, "seconds": 12.0}
        arms = [{**row, "name": "rate-1", "loss": 0.5, "failed": None}]
        arms += [{**row, "name": "rate-2", "loss": None, "failed": "step 5"}]
        display({"event": "swept", "chosen": "rate-1", "arms": arms})
    lines = log.getvalue().splitlines()
    assert lines[0] == "training 2 arms side by side over one base"
    assert any(line.startswith("rate-1: training: 4 of 4  loss 1.00  10 tokens/s") for line in lines)
    assert any(line.startswith("rate-2: training: 4 of 4") for line in lines)
    assert "rate-2: this arm has ended: step 5: no number" in lines
    assert lines[-4].split() == ["arm", "validation", "loss", "at", "step", "tokens", "seconds"]
    assert lines[-3].split()[:2] == ["rate-1", "0.500"]
    assert lines[-2].split()[:2] == ["rate-2", "failed"]
    assert lines[-1] == "chosen: rate-1"


def test_the_end_says_what_shared_beginnings_have_spared() -> None:
    event = {"seconds": 42.0, "tokens": 200, "computed": 150}
    spared = "what rows of a step begin with alike was computed once, which spared 25 % of the tokens"
    assert finished(event) == f"finished in 42{THIN}s; {spared}"
    assert finished({**event, "computed": 200}) == f"finished in 42{THIN}s"


def test_work_before_training_is_said_when_it_is_slow_or_done() -> None:
    clock, log = Clock(), io.StringIO()
    display = Display(Lines(log, clock=clock), clock=clock)
    for done in range(0, 1001, 100):
        display({"event": "progress", "what": "reading rows", "done": done, "total": None})
        clock.now += 2
    display({"event": "progress", "what": "rendering train", "done": 0, "total": 7})
    display({"event": "progress", "what": "rendering train", "done": 7, "total": 7})
    display({"event": "progress", "what": "rendering train", "done": 7, "total": 7})
    lines = log.getvalue().splitlines()
    assert lines[-1] == "rendering train: 7 of 7"
    assert len(lines) == 4


def test_findings_come_gravest_first() -> None:
    log = io.StringIO()
    seen = {"message": "seen", "remedy": "mend it", "examples": ["a:1", "a:2", "a:3", "a:4"], "count": 12}
    with Display(Lines(log)) as display:
        for severity in ("info", "block", "warn"):
            display({"event": "finding", "rule": "r", "severity": severity, **seen})
    lines = log.getvalue().splitlines()
    assert [line for line in lines if "seen" in line] == [
        "must be mended: seen [r]",
        "warning: seen [r]",
        "note: seen [r]",
    ]
    assert lines[1] == "  at: a:1, a:2, a:3 and 9 more"
    assert lines[2] == "  do: mend it"


def test_a_reader_that_goes_away_does_not_end_the_run() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    clock = Clock()
    with Display(Lines(Gone(), clock=clock), clock=clock) as display:
        training(display, clock, steps=20, seconds=1.0)


def test_bars_show_the_same_and_end() -> None:
    clock, screen = Clock(), io.StringIO()
    with Display(Bars(screen), clock=clock) as display:
        display({"event": "progress", "what": "reading rows [1]", "done": 3, "total": None})
        training(display, clock, steps=20, seconds=1.0)
    said = screen.getvalue()
    assert "reading rows [1]" in said
    assert "20/20" in said
    assert "best validation 0.100 at step 20" in said


def test_events_that_nobody_shows_are_no_fault() -> None:
    with Display(Lines(io.StringIO())) as display:
        display({"event": "checkpoint", "step": 3, "folder": "step-000003"})
        display({"event": "of a later version"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (2e-5, "2e-05"),
        (0.05, "0.05"),
        (True, "yes"),
        (None, "none"),
        ([], "none"),
        (["a", "b"], "a, b"),
        ({"kind": "lora", "rank": 16, "alpha": 32.0}, "lora (rank 16, alpha 32)"),
        ({"kind": "text"}, "text"),
    ],
)
def test_values_are_written_for_people(given: object, said: str) -> None:
    assert setting(given) == said


def test_what_is_learnt_stands_in_brackets() -> None:
    tokens = [("Hi", 0.0), ("!\n", 0.0), ("Hel", 1.0), ("lo", 1.0), ("<end>", 0.5), ("\n", 0.0)]
    assert bracketed(tokens) == "Hi!\n⟦Hello⟧⟦<end>⟧×0.5\n"
    assert marked(tokens)[0] == ("Hi!\n", 0.0)


def test_texts_of_others_cannot_obey_a_terminal() -> None:
    assert plain("a\x1b[31m\r\x00b\u202ec\n\td") == "a\ufffd[31m\ufffd\ufffdb\ufffdc\n\td"
    assert "\x1b" not in derived({"key": "k", "value": "\x1b[0m", "why": "\x1b"})
    bad = {"rule": "r", "severity": "warn", "message": "\x1b[0m", "remedy": "", "examples": [], "count": 0}
    assert findings([bad]) == ["warning: \ufffd[0m [r]"]
