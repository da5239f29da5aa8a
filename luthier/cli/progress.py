"""What a command says on standard error while it works: bars on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from luthier.cli import words
from luthier.numbers import duration, number

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

JSON = dict[str, Any]
EVERY_SECONDS = 5.0
"""Between two plain lines of the same work."""
RECENT = 20
"""Steps over which the speed is averaged."""
TRAINING = "training"


class Board(Protocol):
    """Where lines and bars go."""

    def say(self, line: str) -> None: ...

    def bar(self, what: str, done: int, total: int | None, note: str) -> None: ...

    def close(self) -> None: ...


class Named:
    """A part of a board, where every line and bar begins with a name."""

    def __init__(self, board: Board, name: str) -> None:
        self._board, self._name = board, name

    def say(self, line: str) -> None:
        self._board.say(f"{self._name}: {line}")

    def bar(self, what: str, done: int, total: int | None, note: str) -> None:
        self._board.bar(f"{self._name}: {what}", done, total, note)

    def close(self) -> None: ...


class Display:
    """Listens to the events of `luthier.runs.journal` and to progress, and shows both on a board."""

    def __init__(self, board: Board, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._board, self._clock = board, clock
        self._findings: list[JSON] = []
        self._began: dict[str, tuple[float, int]] = {}
        """Work -> when it was first heard of, and how much was done then."""
        self._speeds: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._steps = 0
        self._last: JSON = {}
        """The newest step."""
        self._best = ""
        self._arms: dict[str, Display] = {}
        """Arm of a sweep -> who shows its events."""

    def __enter__(self) -> Display:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._say_findings()
        self._board.close()

    def __call__(self, event: JSON) -> None:
        kind = event["event"]
        if "arm" in event:
            name = words.plain(event["arm"])
            arm = self._arms.setdefault(name, Display(Named(self._board, name), clock=self._clock))
            arm({key: value for key, value in event.items() if key != "arm"})
            return
        if kind == "finding":
            self._findings.append(event)
            return
        self._say_findings()
        if kind in LISTENERS:
            LISTENERS[kind](self, event)

    def _say_findings(self) -> None:
        for line in words.findings(self._findings):
            self._board.say(line)
        self._findings.clear()

    def progress(self, event: JSON) -> None:
        what, done, total = words.plain(event["what"]), event["done"], event["total"]
        self._board.bar(what, done, total, self._left(what, done, total))

    def _left(self, what: str, done: int, total: int | None) -> str:
        """`about 3 min 20 s left`, once something can be said of it."""
        now = self._clock()
        began, before = self._began.setdefault(what, (now, done))
        if not total or done <= before or done >= total:
            return ""
        return f"about {duration((now - began) / (done - before) * (total - done))} left"

    def started(self, event: JSON) -> None:
        self._steps = event["steps"]
        for note in event.get("notes", ()):
            self._board.say(words.plain(note))
        begins = f"goes on after step {number(event['step'])}" if event["event"] == "resumed" else "begins"
        weights = f", {number(event['trained'])} of {number(event['weights'])} weights" if "weights" in event else ""
        self._board.say(f"training {begins}: {words.counted(self._steps, 'step')}{weights}")
        self._began[TRAINING] = (self._clock(), event.get("step", 0))
        self._board.bar(TRAINING, event.get("step", 0), self._steps, "")

    def step(self, event: JSON) -> None:
        self._speeds.append((event["tokens"], event["seconds"]))
        self._last = event
        self._show_step()

    def _show_step(self) -> None:
        step, loss = self._last["step"], self._last["loss"]
        tokens, seconds = (sum(column) for column in zip(*self._speeds, strict=True))
        speed = f"{number(round(tokens / seconds))} tokens/s" if seconds else ""
        note = (f"loss {number(loss)}", speed, self._left(TRAINING, step, self._steps), self._best)
        self._board.bar(TRAINING, step, self._steps, "  ".join(filter(None, note)))

    def validation(self, event: JSON) -> None:
        loss = number(event["loss"])
        if event["best"]:
            self._best = f"best validation {loss} at step {number(event['step'])}"
            self._show_step()
        best = "the best so far" if event["best"] else self._best
        self._board.say(f"validation after step {number(event['step'])}: loss {loss}" + (f" ({best})" if best else ""))

    def swept(self, event: JSON) -> None:
        for line in words.swept(event):
            self._board.say(line)

    def line(self, event: JSON) -> None:
        self._board.say(words.plain(LINES[event["event"]](event)))


LINES: dict[str, Callable[[JSON], str]] = {
    "created": lambda e: f"run folder: {e['run']}",
    "derived": words.derived,
    "prepared": words.side,
    "sweep": words.sweep,
    "failed": lambda e: f"this arm has ended: {e['reason']}",
    "stopped": lambda e: f"training stopped after step {number(e['step'])}: {e['reason']}",
    "evaluated": lambda e: f"base and tuned compared in {duration(e['seconds'])}",
    "finished": words.finished,
}
"""Event -> the line that is said of it."""
LISTENERS: dict[str, Callable[[Display, JSON], None]] = {
    "progress": Display.progress,
    "started": Display.started,
    "resumed": Display.started,
    "step": Display.step,
    "validation": Display.validation,
    "swept": Display.swept,
    **dict.fromkeys(LINES, Display.line),
}
"""Event -> who shows it. Events that are not named here are for the journal alone."""


class Silence:
    """A board that shows nothing."""

    def say(self, line: str) -> None: ...

    def bar(self, what: str, done: int, total: int | None, note: str) -> None: ...

    def close(self) -> None: ...


class Lines:
    """Plain lines for files, pipes and logs: of one work at most one every few seconds, and its end."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._last: tuple[str, float, int] = ("", clock(), 0)
        self._open = True

    def say(self, line: str) -> None:
        if not self._open:
            return
        try:
            print(line, file=self._stream, flush=True)
        except BrokenPipeError:
            # Nobody reads on. That is no reason to end the work.
            self._open = False

    def bar(self, what: str, done: int, total: int | None, note: str) -> None:
        before, when, shown = self._last
        now = self._clock()
        if what != before:
            self._last = (what, when if what != TRAINING else now, -1)
        elif done == shown:
            return
        if done and (done == total or now - self._last[1] >= EVERY_SECONDS):
            self._last = (what, now, done)
            of = f" of {number(total)}" if total else ""
            self.say(f"{what}: {number(done)}{of}" + (f"  {note}" if note else ""))

    def close(self) -> None: ...


class Bars:
    """A bar for each work, drawn again as it goes on; lines scroll by above them."""

    def __init__(self, stream: TextIO) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        from luthier.cli.screen import console

        self._progress: Progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False),
            console=console(stream),
            refresh_per_second=4,
        )
        self._tasks: dict[str, TaskID] = {}
        self._now = ""
        self._progress.start()

    def say(self, line: str) -> None:
        self._progress.console.print(line, soft_wrap=True)

    def bar(self, what: str, done: int, total: int | None, note: str) -> None:
        if what != self._now and self._now in self._tasks:
            self._end(self._now)
        self._now = what
        count = f"{number(done)}/{number(total)}" if total else number(done)
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, completed=done, count=count, note=note)
            return
        self._progress.update(self._tasks[what], completed=done, total=total, count=count, note=note)

    def _end(self, what: str) -> None:
        """A work of unknown length is done when the next one begins; its bar must not go on swinging."""
        task = next(task for task in self._progress.tasks if task.id == self._tasks[what])
        if task.total is None:
            self._progress.update(task.id, total=max(task.completed, 1), completed=max(task.completed, 1))

    def close(self) -> None:
        if self._now in self._tasks:
            self._end(self._now)
        self._progress.stop()


def display(*, quiet: bool) -> Display:
    """The display for this process's standard error."""
    if quiet:
        return Display(Silence())
    moves = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    return Display(Bars(sys.stderr) if moves else Lines(sys.stderr))
