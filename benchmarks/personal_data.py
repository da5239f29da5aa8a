"""How much private data is found: by kind, on 1,500 texts with marked spans, with Presidio's figures beside ours.

    python -m benchmarks.personal_data [--presidio PYTHON [--model FOLDER]]

`--presidio`: an interpreter with presidio-analyzer, in an environment of its own; `--model`: the folder of a spaCy
model for it, without which it knows patterns alone. The texts are those of presidio-research (MIT): templates filled
with invented people. A found span is right when it overlaps a span of its kind; it is exact when both borders agree.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from luthier.gate.private import find, presidio
from luthier.gate.private.spans import Span

ROOT = Path(__file__).parent
FILE = "presidio-pii/synth_dataset_v2.json"


class Kind(NamedTuple):
    """A kind as the texts mark it, and what we and Presidio call it."""

    label: str
    ours: tuple[str, ...] = ()
    theirs: tuple[str, ...] = ()
    sound: str = ""
    """Why its labels say little; empty where they are sound."""


KINDS = (
    Kind("CREDIT_CARD", ("card_number",), ("CREDIT_CARD",)),
    Kind("IBAN_CODE", ("iban",), ("IBAN_CODE",)),
    Kind("US_SSN", ("us_ssn",), ("US_SSN",)),
    Kind("US_DRIVER_LICENSE", ("driving_licence",), ("US_DRIVER_LICENSE",)),
    Kind("PHONE_NUMBER", ("phone",), ("PHONE_NUMBER",)),
    Kind("EMAIL_ADDRESS", ("email",), ("EMAIL_ADDRESS",)),
    Kind("DOMAIN_NAME", ("url",), ("URL",)),
    Kind("IP_ADDRESS", ("ip_address",), ("IP_ADDRESS",)),
    Kind("AGE", ("age",), ()),
    Kind("DATE_TIME", ("date", "date_of_birth"), ("DATE_TIME",), "weekdays and bare years are marked as well"),
    Kind(
        "STREET_ADDRESS",
        ("postal_address",),
        ("LOCATION",),
        "one address is up to three labels (28245 | Puruntie 82 | Apt. 595), the house number apart from its street",
    ),
    Kind(
        "ZIP_CODE",
        ("postal_address",),
        ("LOCATION",),
        "bare numbers behind invented towns; most stand within an address",
    ),
    Kind("PERSON", ("person_name",), ("PERSON",)),
    Kind("GPE", (), ("LOCATION",), 'the text "nan" is marked as a place'),
    Kind("ORGANIZATION", (), ("ORGANIZATION",)),
    Kind("NRP", (), ("NRP",)),
    Kind("TITLE", (), (), '"Dr." and occupations under one label'),
)

Marked = tuple[str, int, int]
Score = dict[str, float]


def main() -> None:
    arguments = _arguments()
    data = json.loads((arguments.data / FILE).read_text(encoding="utf-8"))
    texts = [row["full_text"] for row in data]
    labels = [[(s["entity_type"], s["start_position"], s["end_position"]) for s in row["spans"]] for row in data]
    if arguments.inside:
        print(json.dumps(_inside(texts, arguments.model)))
        return
    began = time.process_time()
    # Ages of any number, since the texts mark them all.
    ours = [[(s.kind, s.start, s.end) for s in find(text, oldest=0)] for text in texts]
    microseconds = (time.process_time() - began) / len(texts) * 1e6
    columns = {"ours": scores(labels, ours, lambda kind: kind.ours)}
    notes = [f"Ours took {microseconds:.0f} µs of CPU time a text of {sum(map(len, texts)) // len(texts)} characters."]
    if arguments.presidio:
        theirs = _presidio(arguments)
        for name, least in (("Presidio", 0.0), ("Presidio from 0.5", 0.5)):
            found = [[(kind, a, b) for kind, a, b, score in row if score >= least] for row in theirs["raw"]]
            columns[name] = scores(labels, found, lambda kind: kind.theirs)
        columns["ours with its names"] = scores(labels, theirs["merged"], lambda kind: kind.ours)
        notes.append(
            f"Presidio {theirs['version']} with {theirs['model']}, all of its English recognisers, took "
            f"{theirs['milliseconds']:.1f} ms of CPU time a text. It reports ages as DATE_TIME and the domains of "
            "e-mail addresses as URL, which counts against its precision there. Its larger models are better at names."
        )
    page = _page(columns, labels, notes)
    print(page)
    path = arguments.out or ROOT / "results" / f"{date.today()}-personal-data.md"
    path.write_text(page, encoding="utf-8")


def scores(
    labels: Sequence[Sequence[Marked]], found: Sequence[Sequence[Marked]], names: Callable[[Kind], tuple[str, ...]]
) -> dict[str, Score]:
    """For each kind precision and recall, by exact borders and by overlap; a kind without a name there is left out."""
    result = {}
    for kind in KINDS:
        own = names(kind)
        if not own:
            continue
        # Kinds that share a name, such as street and post code, share what was found: either is right.
        shared = {other.label for other in KINDS if set(names(other)) & set(own)}
        counts: dict[str, int] = defaultdict(int)
        for marked, spans in zip(labels, found, strict=True):
            mine = [(a, b) for name, a, b in spans if name in own]
            wanted = [(a, b) for label, a, b in marked if label == kind.label]
            right = [(a, b) for label, a, b in marked if label in shared]
            counts["labels"] += len(wanted)
            counts["found"] += len(mine)
            counts["label exact"] += sum(span in mine for span in wanted)
            counts["label overlap"] += sum(_overlaps(span, mine) for span in wanted)
            counts["found exact"] += sum(span in right for span in mine)
            counts["found overlap"] += sum(_overlaps(span, right) for span in mine)
        result[kind.label] = {
            f"{how} {what}": counts[f"{side} {how}"] / total if (total := counts[of]) else float("nan")
            for how in ("exact", "overlap")
            for what, side, of in (("recall", "label", "labels"), ("precision", "found", "found"))
        }
    return result


def _overlaps(span: tuple[int, int], others: Iterable[tuple[int, int]]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in others)


def _inside(texts: Sequence[str], model: str | None) -> dict[str, Any]:
    """Run by Presidio's interpreter: its own spans with their scores, and ours with its names merged in."""
    from importlib.metadata import version

    engine = presidio.analyzer(model)
    began = time.process_time()
    raw = [
        [(r.entity_type, r.start, r.end, r.score) for r in engine.analyze(text=text, language="en")] for text in texts
    ]
    milliseconds = (time.process_time() - began) / len(texts) * 1e3

    people = {
        text: [Span("person_name", a, b, score) for kind, a, b, score in row if kind == "PERSON"]
        for text, row in zip(texts, raw, strict=True)
    }
    merged = [
        [(s.kind, s.start, s.end) for s in find(text, oldest=0, recognisers=[people.__getitem__])] for text in texts
    ]
    meta = json.loads((Path(model) / "meta.json").read_text(encoding="utf-8")) if model else {}
    return {
        "raw": raw,
        "merged": merged,
        "milliseconds": milliseconds,
        "version": version("presidio-analyzer"),
        "model": f"spaCy's {meta['lang']}_{meta['name']} {meta['version']}" if meta else "patterns alone",
    }


def _presidio(arguments: argparse.Namespace) -> Mapping[str, Any]:
    command = [str(arguments.presidio), "-m", "benchmarks.personal_data", "--inside", "--data", str(arguments.data)]
    if arguments.model:
        command += ["--model", arguments.model]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT.parent, env={**os.environ, "PYTHONPATH": "."}
    )
    if done.returncode:
        sys.exit(done.stderr)
    result: Mapping[str, Any] = json.loads(done.stdout)
    return result


def _page(columns: Mapping[str, Mapping[str, Score]], labels: Sequence[Sequence[Marked]], notes: Sequence[str]) -> str:
    counts = {kind.label: sum(label == kind.label for row in labels for label, _, _ in row) for kind in KINDS}
    parts = [f"# Private data that is found, {date.today()}", ""]
    parts += [
        f"{len(labels):,} texts of presidio-research (`synth_dataset_v2.json`), by `benchmarks/personal_data.py`.",
        *notes,
        "",
    ]
    for how, words in (("overlap", "a span of the kind overlaps the label"), ("exact", "both borders agree")):
        parts += [f"## {how.capitalize()}: {words}", "", "Precision / recall; – where a side has no such kind."]
        parts += ["", f"| kind | labels | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
        for kind in KINDS:
            cells = [_cell(column.get(kind.label), how) for column in columns.values()]
            parts.append(f"| {kind.label} | {counts[kind.label]} | {' | '.join(cells)} |")
        parts.append("")
    parts += ["## How far these figures go", "", _DEVELOPED, ""]
    parts += ["## Labels to read with care", ""]
    parts += [f"- {kind.label}: {kind.sound}" for kind in KINDS if kind.sound]
    parts += ["", "## What is not found without a recogniser of names", "", _UNSEEN, ""]
    return "\n".join(parts)


_DEVELOPED = (
    "Our rules were developed on these very texts: their misses were read, and rules and words near a number were "
    "added. Presidio was not tuned to them by us. The texts are a few dozen templates filled in, so a phrase that is "
    "known counts many times. Expect less on your own texts, above all for phone numbers, ages and addresses, which "
    "go by words; what has a check digit depends least on it. `generated_small.json` of the same makers is no test "
    "either: 88 of its 100 texts fill the same templates."
)
_UNSEEN = (
    "Names that nothing announces (most of PERSON), towns and countries (GPE), organisations, nationalities and "
    "occupations: no form tells them from other words. Post codes behind a town, years and weekdays alone are left too."
)


def _cell(score: Score | None, how: str) -> str:
    if score is None:
        return "–"
    precision, recall = score[f"{how} precision"], score[f"{how} recall"]
    return f"{'–' if precision != precision else f'{precision:.3f}'} / {recall:.3f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--presidio", type=Path, help="an interpreter with presidio-analyzer")
    parser.add_argument("--model", help="the folder of a spaCy model")
    parser.add_argument("--out", type=Path, help="where the page is written")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
