"""report.html: the verdict, what was asked, the data, the training, base against tuned, examples, cost, method, limits.

Values are gathered here and laid out by `template.html.jinja`, which escapes all of them. Texts of rows pass through
`masking.mask` first.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from luthier.masking import mask
from luthier.numbers import THIN, duration, fixed, memory, number, probability, setting, short, signed
from luthier.report import comparison
from luthier.report.figures import loss_curve, rate_curve
from luthier.runs.folder import RunFolder, write_text
from luthier.runs.record import RunRecord, read_record
from luthier.runs.wording import (
    OBJECTIVES,
    adapter,
    expectation,
    gate_sentence,
    headline,
    is_adapter,
    limits,
    loading,
    part,
    selection,
    standing_stop,
)
from luthier.types import SIDES

JSON = dict[str, Any]
WIDE, NARROW = 720, 340
"""Widths in px that every figure is drawn in; the style sheet shows one of them."""
MOST_PLACES = 8
"""Places of a finding that are listed by name."""
CONTROLS = dict.fromkeys([*range(9), 11, 12, 13, *range(14, 32), *range(127, 160)], "\ufffd")
SEVERITIES = {"block": "must be fixed", "warn": "look at this", "info": "for information"}


def write_report(run: RunFolder) -> Path:
    """Writes RUN/report.html and returns its path.

    Raises:
        InputError: the folder holds no run, or a file in it is damaged.
        StorageError: the page cannot be written.
    """
    # Lone surrogates (a JSON escape can hold one) have no UTF-8, and control characters no meaning in HTML.
    page = render(read_record(run)).encode("utf-8", "replace").decode("utf-8").translate(CONTROLS)
    write_text(run.report, page)
    return run.report


def render(record: RunRecord) -> str:
    """The page as text."""
    return (
        environment()
        .get_template("template.html.jinja")
        .render(
            name=record.name,
            created=str(record.manifest.get("created", ""))[:10],
            version=str(record.manifest.get("luthier", "")),
            headline=headline(record),
            key=_key_figures(record),
            asked=_asked(record),
            derived=record.derived,
            data=_data(record),
            training=_training(record),
            sweep=_sweep(record),
            comparison=comparison.gather(record, both),
            cost=_cost(record),
            use=_use(record),
            method=_method(record),
            limits=limits(record),
        )
    )


def environment() -> Environment:
    """Where this folder's templates are rendered: everything is escaped, and a missing name is an error."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        number=number, fixed=fixed, signed=signed, probability=probability, setting=setting, short=short
    )
    return made


def both(draw: Callable[[int], Markup], *, wide: int = WIDE, narrow: int = NARROW) -> Markup:
    """A figure in both widths."""
    return Markup('<div class="wide">{}</div><div class="narrow">{}</div>').format(draw(wide), draw(narrow))


def _key_figures(record: RunRecord) -> list[tuple[str, str]]:
    figures = []
    if record.evaluation:
        figures.append(("compared on", f"{number(record.evaluation['items'])} unseen rows"))
    spent = _spent(record)
    figures += [("time to train", duration(spent["training_seconds"])), ("peak memory", memory(spent["memory_bytes"]))]
    return [*figures, ("tokens trained on", number(spent["tokens"]))]


def _asked(record: RunRecord) -> list[tuple[str, str]]:
    recipe, base = record.recipe, part(record.manifest, "base")
    model, data, training = part(recipe, "model"), part(recipe, "data"), part(recipe, "training")
    kind = str(part(recipe, "objective").get("kind", ""))
    source = str(base.get("source") or model.get("source") or "not recorded")
    revision = f" at {base['revision']}" if base.get("revision") else ""
    asked = [
        ("Base model", source + revision),
        ("Its licence", str(base.get("licence") or "not known")),
        ("Training data", setting(data.get("train", []))),
        ("Test data", setting(data.get("test", [])) if data.get("test") else "held back from the training data"),
        ("To be learnt", OBJECTIVES.get(kind, kind or "not recorded")),
        ("Weights trained", adapter(record) + _share(record)),
        ("Passes over the data", setting(training.get("epochs"))),
        ("Examples in a step", setting(training.get("batch_examples"))),
        ("Learning rate", f"{setting(training.get('rate'))}, {training.get('schedule', '')} decay"),
        ("Seed", setting(training.get("seed"))),
    ]
    if data.get("system"):
        asked.append(("System message", mask(str(data["system"]))))
    return asked


def _share(record: RunRecord) -> str:
    """How many of the model's numbers are trained."""
    start = record.last("started") or {}
    if not start.get("trained") or not start.get("weights"):
        return ""
    return f": {number(start['trained'])} of {number(start['weights'])} numbers"


def _data(record: RunRecord) -> JSON:
    sides = {event["side"]: event for event in record.all("prepared")}
    findings = [
        {
            **finding,
            "severity_words": SEVERITIES.get(finding["severity"], finding["severity"]),
            "places": finding["examples"][:MOST_PLACES],
            "more": max(max(finding["count"], len(finding["examples"])) - MOST_PLACES, 0),
        }
        for finding in sorted(record.findings, key=lambda finding: list(SEVERITIES).index(finding["severity"]))
    ]
    return {
        "sides": [sides[side] for side in SIDES if side in sides],
        "files": record.manifest.get("data", []),
        "findings": findings,
        "gate": gate_sentence(record),
    }


def _training(record: RunRecord) -> JSON:
    steps, validations = record.all("step"), record.all("validation")
    finished, stopped = record.last("finished"), standing_stop(record)
    best = next((v for v in reversed(validations) if v.get("best")), None)
    kept = finished["best_step"] if finished and finished.get("best_step") else best["step"] if best else None
    return {
        "steps": len(steps),
        "kept": kept,
        "kept_loss": next((v["loss"] for v in validations if v["step"] == kept), None),
        "validations": len(validations),
        "stopped": stopped,
        "finished": finished,
        "loss": both(lambda width: loss_curve(steps, validations, width, kept=kept)) if steps else None,
        "rate": both(lambda width: rate_curve(steps, width)) if steps else None,
    }


def _sweep(record: RunRecord) -> JSON | None:
    swept = record.last("swept")
    if swept is None:
        return None
    arms = [{**arm, "time": duration(arm["seconds"])} for arm in swept["arms"]]
    return {"sentence": selection(swept), "chosen": swept["chosen"], "arms": arms}


def _spent(record: RunRecord) -> JSON:
    steps = record.all("step")
    finished = record.last("finished") or {}
    tokens, computed, computing = (sum(s[key] for s in steps) for key in ("tokens", "computed", "seconds"))
    peaks = [s["memory_bytes"] for s in steps]
    return {
        "training_seconds": computing if steps else None,
        "seconds": finished.get("seconds"),
        "memory_bytes": finished.get("memory_bytes", max(peaks) if peaks else None),
        "tokens": tokens,
        "computed": computed,
        "tokens_per_second": finished.get("tokens_per_second", tokens / computing if computing else None),
        "steps": len(steps),
    }


def _cost(record: RunRecord) -> list[tuple[str, str]]:
    spent, evaluated = _spent(record), record.last("evaluated")
    told_of = expectation(record.last("finished") or {})
    speed = number(spent["tokens_per_second"])
    return [
        ("Training steps", duration(spent["training_seconds"])),
        ("Comparison", duration(evaluated["seconds"]) if evaluated else "not made"),
        ("All of it, since it was last started", duration(spent["seconds"])),
        ("Optimizer steps", number(spent["steps"])),
        ("Tokens trained on", number(spent["tokens"])),
        ("Of these computed", _computed(spent)),
        ("Speed", f"{speed}{THIN}tokens a second" if spent["tokens_per_second"] else "not measured"),
        ("Peak memory of the process", memory(spent["memory_bytes"])),
        *((f"{what.capitalize()}, foretold and fact", told) for what, told in told_of),
        ("Machine", _machine(record) or "not recorded"),
        ("Energy", "not measured"),
    ]


def _computed(spent: JSON) -> str:
    if spent["computed"] == spent["tokens"]:
        return "all"
    spared = short(round(100 * (1 - spent["computed"] / spent["tokens"])))
    once = "what rows of a step begin with alike was computed once"
    return f"{number(spent['computed'])}: {once}, which spared {spared} %"


def _machine(record: RunRecord) -> str:
    machine = part(record.manifest, "machine")
    cores = f"{number(machine['cores'])} cores" if machine.get("cores") else ""
    size = f"{memory(machine['memory_bytes'])} of memory" if machine.get("memory_bytes") else ""
    return ", ".join(
        words for words in (machine.get("gpu"), machine.get("cpu"), cores, size, machine.get("platform")) if words
    )


def _use(record: RunRecord) -> JSON:
    run = shlex.quote(record.name)
    source = part(record.manifest, "base").get("source") or part(record.recipe, "model").get("source", "")
    python = loading(record, base=source, model=f"{record.name}/model", merged=f"{record.name}-merged")
    merged = shlex.quote(f"{record.name}-merged")
    return {
        "ready": record.run.model.exists(),
        "chat": f"luthier chat {run}",
        "export": f"luthier export {run} --to merged --out {merged}",
        "python": python,
        "lora": is_adapter(record),
        "needs_merge": is_adapter(record) and "peft" not in python,
    }


def _method(record: RunRecord) -> list[tuple[str, list[str]]]:
    manifest, evaluation = record.manifest, record.evaluation
    entries: list[tuple[str, list[str]]] = []
    if evaluation:
        tests: dict[str, list[str]] = {}
        for metric in evaluation["metrics"]:
            tests.setdefault(metric["test"] or "no test", []).append(metric["label"])
        margin, primary = number(evaluation["margin"]), comparison.primary(evaluation)
        entries += [
            ("Tests", [f"{', '.join(labels)}: {test}" for test, labels in tests.items()]),
            ("Intervals", [f"{short(100 * evaluation['confidence'])} % coverage, paired by row"]),
            ("Decided before the run", [f"{primary['label']} counts; a loss of up to {margin} is not worse"]),
        ]
    seeds = part(manifest, "seeds")
    entries += [
        ("Seeds", [f"{name} {seed}" for name, seed in seeds.items()]),
        ("Files of the base (SHA-256)", [f"{n}  {h}" for n, h in part(part(manifest, "base"), "files").items()]),
        ("Data files (SHA-256)", [f"{d['file']}  {d['sha256']}" for d in manifest.get("data", [])]),
        ("Recipe (SHA-256)", [manifest["recipe_sha256"]] if manifest.get("recipe_sha256") else []),
        ("Code (SHA-256)", [manifest["code_sha256"]] if manifest.get("code_sha256") else []),
        (
            "Versions",
            [
                ", ".join(
                    f"{n} {v}"
                    for n, v in {"luthier": manifest.get("luthier"), **part(manifest, "versions")}.items()
                    if v
                )
            ],
        ),
        ("Machine", [_machine(record)]),
        ("Runs it came from", [setting(parent) for parent in manifest.get("parents", [])]),
        ("Created", [str(manifest.get("created", ""))]),
    ]
    return [(name, [line for line in lines if line]) for name, lines in entries if any(lines)]
