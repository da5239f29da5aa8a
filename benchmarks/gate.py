"""What the data gate costs against the number of rows: time and peak memory of the whole text audit.

    python -m benchmarks.gate [--rows 10000 100000 1000000] [--busy-ok]

Rows are invented support chats of about 400 bytes. Of a hundred, one repeats another word for word, two with a word
changed, three hold an address, a telephone number or a card, and forty an order number. One in fifty is a test row.
Every audit is a process of its own, and its memory is that of all its processes together, looked at twenty times a
second.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks import machine

RESULTS = Path(__file__).parent / "results"
SIZES = (10_000, 100_000, 1_000_000)
TEST_SHARE = 50


def _listed(text: str) -> list[str]:
    """What stands between the bars, over any lines."""
    return " ".join(text.split()).split(" | ")


THINGS = _listed(
    """
    router | parcel | invoice | kettle | charger | blender | jacket | lamp | printer | headset | keyboard |
    camera | mattress | speaker | tablet | thermostat | scooter | drill | monitor | toaster | backpack | bicycle
    | helmet | oven | fridge | vacuum | mixer | heater | phone | watch
    """
)
PARTS = _listed(
    """
    display | button | cable | lid | battery | handle | zip | sensor | plug | filter | hinge | screen | strap |
    motor | switch | fan | drawer | wheel | antenna | remote | case | lens | stand | pump | belt | cover | light
    | dial | tray | box | label | adapter | manual | seal | hose | clip | spring
    """
)
FAULTS = _listed(
    """
    flickers | went dark | came broken | got stuck | smells burnt | is scratched | will not charge | makes a
    loud noise | leaks | is too small | fell off | overheats | arrived without its box | stays cold | shows the
    wrong price | keeps restarting | does not fit | is missing | was billed twice | turns itself off | cannot be
    paired | is not what I ordered | lost its colour | will not open
    """
)
WHEN = _listed(
    """
    since this morning | after two days | when I plug it in | whenever it rains | since the last update | after
    the first wash | every other evening | as soon as it is warm | since I moved house | while my son uses it |
    after the courier dropped it | during the night | since the repair in spring | when the app is open | after
    I cleaned it | if two people use it at once
    """
)
ASKS = _listed(
    """
    Can you send a new one? | I want my money back. | What should I do now? | Who pays for the return? | Please
    tell me when it will be fixed. | Is that covered by the warranty? | Could a technician come by? | How long
    will that take? | I would rather swap it for another model. | Please cancel the order then. | Do I need the
    receipt for that? | Can I bring it to a shop?
    """
)
OPENINGS = _listed(
    """
    Hello, | Hi there, | Good morning, | Dear team, | Hey, | Good evening, | To whom it may concern, | Hi again,
    | Hello support, | Sorry to bother you,
    """
)
REGRETS = _listed(
    """
    I am sorry about the trouble. | Thank you for telling us. | That should not have happened. | I understand
    how annoying that is. | Thanks for your patience. | I have looked at your order. | I apologise for the
    delay. | Good that you wrote to us.
    """
)
STEPS = _listed(
    """
    Please unplug the {thing} for ten minutes and check the {part}. | I have sent a label for the {thing} to
    you, so put the {part} into the box as well. | Our workshop needs a picture of the {part} before it can
    order another {thing}. | You may keep the {thing}, and a new {part} leaves our warehouse {day}. | The refund
    for the {thing} reaches you by {day}, less the {part} that you keep. | Hold the button beside the {part}
    until the {thing} starts again. | A technician can look at the {part} of your {thing} on {day}. | Swap the
    {part} of the {thing} with the one that we send on {day}.
    """
)
CLOSINGS = _listed(
    """
    Let me know if that helps. | Is there anything else? | Just reply to this message if it happens again. |
    Have a good day. | We will write again as soon as it is on its way. | You can follow it in your account.
    """
)
DAYS = _listed(
    """
    Monday | Tuesday | Wednesday | Thursday | Friday | Saturday | tomorrow
    """
)


def chats(count: int, *, seed: int = 20, faults: bool = True) -> Iterator[dict[str, Any]]:
    """Rows in the form of OpenAI's messages, with the column `customer`.

    Args:
        faults: whether rows repeat others and hold private data.
    """
    draw = random.Random(seed)
    held: list[tuple[str, str]] = []
    for number in range(count):
        kind = draw.random()
        if faults and held and kind < 0.03:
            asked, answer = draw.choice(held)
            if kind > 0.01:
                words = asked.split(" ")
                words[draw.randrange(len(words))] = draw.choice(PARTS)
                asked = " ".join(words)
        else:
            asked, answer = _chat(draw, number, private=faults)
            if len(held) < 5000:
                held.append((asked, answer))
            else:
                held[draw.randrange(5000)] = (asked, answer)
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        yield {"messages": turns, "customer": f"c{draw.randrange(count)}"}


def _chat(draw: random.Random, number: int, *, private: bool) -> tuple[str, str]:
    thing, other = draw.sample(THINGS, 2)
    said = [draw.choice(OPENINGS)]
    for what in draw.sample((thing, other, thing), draw.choice((1, 2, 2))):
        said.append(f"the {draw.choice(PARTS)} of my {what} {draw.choice(FAULTS)} {draw.choice(WHEN)}.")
    if draw.random() < 0.4:
        said.append(f"My order is A{draw.randrange(10**6):06d}.")
    if private and draw.random() < 0.03:
        said.append(_private(draw, number))
    said.append(draw.choice(ASKS))
    steps = [draw.choice(STEPS).format(thing=thing, part=draw.choice(PARTS), day=draw.choice(DAYS)) for _ in range(2)]
    return " ".join(said), " ".join([draw.choice(REGRETS), *steps, draw.choice(CLOSINGS)])


def _private(draw: random.Random, number: int) -> str:
    return draw.choice(
        (
            f"Write to customer{number}@mail.example please.",
            f"Call me at +49 30 {draw.randrange(10**6, 10**7)}.",
            "I paid with card 4111 1111 1111 1111.",
        )
    )


def write(folder: Path, count: int) -> tuple[Path, Path]:
    """A training and a test file with `count` rows in all."""
    paths = folder / f"chats-{count}.jsonl", folder / f"chats-{count}-test.jsonl"
    with paths[0].open("w") as train, paths[1].open("w") as test:
        for number, row in enumerate(chats(count)):
            (test if number % TEST_SHARE == 0 else train).write(json.dumps(row) + "\n")
    return paths


def measure(folder: Path, count: int) -> dict[str, Any]:
    """One audit: seconds, peak memory, and what was found."""
    train, test = write(folder, count)
    out = folder / f"audit-{count}"
    command = [sys.executable, "-m", "luthier.cli", "data", "audit", str(train), "--against", str(test)]
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, "--policy", "support", "--out", str(out), "--quiet"], stdout=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.05)
    seconds = time.monotonic() - began
    report = json.loads((out / "report.json").read_text())
    found = {entry["rule"]: entry["count"] for entry in report["findings"]}
    megabytes = (train.stat().st_size + test.stat().st_size) / 1e6
    for path in (train, test):
        path.unlink()
    return {"rows": count, "megabytes": megabytes, "seconds": seconds, "memory": peak, "found": found}


def resident(pid: int) -> int:
    """Bytes of memory of a process and all below it. Pages that they share count for each."""
    try:
        own = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return own + sum(resident(int(child)) for child in children)


def page(points: list[dict[str, Any]], busy: bool) -> str:
    """The results as a page."""
    last, here = points[-1], machine.describe()
    lines = [
        "# The data gate: time and memory against rows",
        "",
        f"`python -m benchmarks.gate` on {date.today().isoformat()}, on {here['processor']}, "
        f"{here['cores']} cores. "
        + ("Other work ran beside it. " if busy else "")
        + "Invented support chats of about 400 bytes, policy `support`, with a test file: form, hidden text, private "
        "data, duplicates, leakage, noise, poison, balance. Memory is that of all processes together.",
        "",
        "| rows | MB | seconds | rows a second | peak memory, MB | rows with a finding of near_duplicate |",
        "|---|---|---|---|---|---|",
    ]
    for p in points:
        lines.append(
            f"| {p['rows']:,} | {p['megabytes']:.0f} | {p['seconds']:.1f} | {p['rows'] / p['seconds']:,.0f} "
            f"| {p['memory'] / 1e6:,.0f} | {p['found'].get('near_duplicate', 0):,} |"
        )
    ten = last["seconds"] * 10_000_000 / last["rows"]
    lines += [
        "",
        f"Ten million rows, at the speed of the last line: about {ten / 60:.0f} minutes (computed, not measured).",
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    points = []
    with tempfile.TemporaryDirectory(prefix="gate-") as name:
        for count in arguments.rows:
            points.append(measure(Path(name), count))
            print(points[-1], flush=True)
    busy = (machine.busy() or 0) > 0.5
    target = arguments.out or RESULTS / f"{date.today().isoformat()}-gate.md"
    target.write_text(page(points, busy))
    return 0


if __name__ == "__main__":
    sys.exit(main())
