"""An audit's page: the decision and its reasons, every finding with masked examples, then what the rows are like.

It is written from report.json alone, which holds no text of a row that is not masked.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path, PurePath
from typing import Any

from markupsafe import Markup, escape

from luthier.masking import mask
from luthier.numbers import duration, memory, number
from luthier.report.figures import bars
from luthier.report.page import CONTROLS, SEVERITIES, both, environment
from luthier.runs.folder import read_json, write_text
from luthier.types import SIDES

JSON = dict[str, Any]
WORDS = {"pass": "✓ pass", "warnings": "○ pass, with warnings", "blocked": "✗ blocked"}
MENDS = {
    "none": "",
    "drop": "leaves these rows out",
    "redact": "replaces this by its kind",
    "pseudonym": "replaces this by pseudonyms",
    "repair": "writes this anew",
}
"""What `luthier data clean` does."""
SHOWN = 8
"""Examples of a finding."""


def write_page(folder: Path) -> Path:
    """Writes FOLDER/report.html from FOLDER/report.json and returns its path.

    Raises:
        InputError: there is no report, or it is damaged.
        StorageError: the page cannot be written.
    """
    page = render(read_json(folder / "report.json"), name=folder.resolve().name)
    path = folder / "report.html"
    write_text(path, page.encode("utf-8", "replace").decode("utf-8").translate(CONTROLS))
    return path


def render(report: JSON, *, name: str) -> str:
    """The page as text."""
    return (
        environment()
        .get_template("gate.html.jinja")
        .render(
            name=name,
            word=WORDS[report["decision"]],
            headline=_headline(report),
            key=_key_figures(report),
            findings=[_finding(entry, _short(report["sources"])) for entry in report["findings"]],
            sides=SIDES,
            lengths=_lengths(report),
            labels=_labels(report),
            languages=_languages(report),
            **{key: report[key] for key in ("decision", "reasons", "policy", "sources", "quiet", "off", "waivers")},
        )
    )


def _headline(report: JSON) -> str:
    count = dict.fromkeys(SEVERITIES, 0)
    for entry in report["findings"]:
        count[entry["severity"]] += entry["severity"] != "block" or entry["waived"] is None
    if report["decision"] == "blocked":
        rules = "one rule stands" if count["block"] == 1 else f"{number(count['block'])} rules stand"
        return f"These rows must not be trained on as they are: {rules} in the way."
    if report["decision"] == "warnings":
        things = "one thing" if count["warn"] == 1 else f"{number(count['warn'])} things"
        return f"These rows may be trained on; look at {things} first."
    return "Nothing that these rules look for stands in the way of training on these rows."


def _key_figures(report: JSON) -> list[tuple[str, str]]:
    work = report["work"]
    return [
        ("rows", number(report["rows"])),
        ("policy", report["policy"]),
        ("time", duration(work["seconds"])),
        ("peak memory", memory(work["memory_bytes"])),
    ]


def _short(sources: list[JSON]) -> dict[str, str]:
    """Folder -> nothing, where the names of the files alone tell them apart."""
    paths = [PurePath(source["file"]) for source in sources]
    alone = len({path.name for path in paths}) == len(paths)
    return {f"{path.parent}/": "" for path in paths} if alone else {}


def _finding(entry: JSON, short: dict[str, str]) -> JSON:
    examples = [
        {**example, **{key: _without(example[key], short) for key in ("place", "seen", "other")}}
        for example in entry["examples"][:SHOWN]
    ]
    return {
        **entry,
        "why": _coded(entry["why"]),
        "remedy": _coded(entry["remedy"]),
        "words": "waived" if entry["waived"] else SEVERITIES[entry["severity"]],
        "percent": f"{100 * entry['share']:.2g}",
        "mends": MENDS[entry["mend"]],
        "shown": examples,
        "more": max(entry["count"] - len(examples), 0),
        "scored": any(example["score"] is not None for example in examples),
        "paired": any(example["other"] for example in examples),
        "waived": mask(entry["waived"]) if entry["waived"] else None,
    }


def _without(text: str, short: dict[str, str]) -> str:
    for folder, name in short.items():
        text = text.replace(folder, name)
    return text


def _coded(text: str) -> Markup:
    """Words between backticks as code."""
    parts = [
        Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(text.split("`"))
    ]
    return Markup("").join(parts)


def _lengths(report: JSON) -> list[JSON]:
    found = []
    for what, length in report["lengths"].items():
        rows = [(f"up to {number(most)}", count) for most, count in length["bins"]]
        low, middle, high = length["quantiles"]
        said = (
            f"{what.capitalize()}: half of them have up to {number(middle)} characters, nine in ten between "
            f"{number(low)} and {number(high)}; the longest has {number(length['longest'])}."
        )
        name = f"Characters of each {what}"
        found.append({"figure": both(partial(bars, rows, name=name)), "said": said})
    return found


def _labels(report: JSON) -> JSON | None:
    labels = report["labels"]
    if not labels:
        return None
    rows = [(entry["label"], sum(entry[side] for side in SIDES)) for entry in labels]
    sides = [side for side in SIDES if any(entry[side] for entry in labels)]
    return {
        "figure": both(lambda width: bars(rows, width, name="Rows of each label")),
        "more": report["more_labels"],
        "sides": sides if len(sides) > 1 else [],
        "rows": labels,
    }


def _languages(report: JSON) -> Any:
    rows = [(language, count) for language, count in report["languages"]]
    return both(lambda width: bars(rows[:12], width, name="Rows by language of the answer")) if rows else None
