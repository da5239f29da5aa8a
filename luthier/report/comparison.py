"""The part of the report that sets base against tuned: metrics, classes, calibration and examples."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from luthier.masking import mask
from luthier.numbers import decimals, number, short
from luthier.report.figures import Gain, forest, heat_map, reliability
from luthier.runs.record import RunRecord

JSON = dict[str, Any]
Draw = Callable[..., Markup]
MOST_CLASSES = 12
"""A confusion matrix of more labels is unreadable; its largest entries are listed instead."""
MOST_PAIRS = 15
EXAMPLES = 3
LONGEST_TEXT = 1200
"""Characters of a prompt or answer that are shown."""
MOST_TURNS = 4

MEANINGS = {
    "rouge_l": "how much of the reference's wording an answer has in the same order; 1 is all of it",
    "chrf": "how many short strings of letters an answer shares with the reference; 100 is the same text",
    "token_f1": "how many words an answer shares with the reference; 1 is all of them and no others",
    "exact_match": "the share of rows with exactly the reference's answer",
    "accuracy": "the share of rows with the right label",
    "macro_f1": "the mean over labels of precision and recall combined: rare labels count as much as common ones",
    "micro_f1": "precision and recall combined over all labels together: common labels count more",
    "squared_error": "the mean square of the distance to the right number",
    "absolute_error": "the mean distance to the right number",
    "loss": "how surprised the model is by the right answer; lower is better",
}
SCALES = {"0-1": "on a scale of 0 to 1", "0-100": "on a scale of 0 to 100", "squared": "squared units", "absolute": ""}
MARKS = (("better", "▲"), ("worse", "▼"), ("not worse", "◆"))


def gather(record: RunRecord, both: Draw) -> JSON | None:
    """What the template shows of evaluation.json; None where there is none. `both` draws a figure in two widths."""
    evaluation = record.evaluation
    if evaluation is None:
        return None
    main = primary(evaluation)
    gains = [gain for metric in evaluation["metrics"] if (gain := _gain(metric)) is not None]
    alone = _gain(main, margin=evaluation["margin"])
    small = alone._replace(label="") if alone else None
    word = evaluation["verdict"]["word"] if evaluation["verdict"] else "not compared"
    return {
        "arms": evaluation["arms"],
        "items": evaluation["items"],
        "primary": {**main, "digits": _digits(main)},
        "mark": _mark(word),
        "word": word.replace("within delta", f"within {short(evaluation['margin'])}"),
        "sentence": evaluation["verdict"]["sentence"] if evaluation["verdict"] else main["sentence"],
        "percent": short(100 * evaluation["confidence"]),
        "metrics": [
            {
                **metric,
                "word": (metric["word"] or "–").replace("within delta", f"within {number(metric['margin'])}"),
                "mark": _mark(metric["word"] or ""),
                "digits": _digits(metric),
                "meaning": MEANINGS.get(metric["name"], ""),
            }
            for metric in evaluation["metrics"]
        ],
        "small": both(lambda width: forest([small], width, title=_title([main])), wide=430) if small else None,
        "forest": both(lambda width: forest(gains, width, title=_title(evaluation["metrics"]))) if gains else None,
        "per_class": evaluation["per_class"],
        "confusion": _confusion(evaluation["confusion"], both),
        "calibration": _calibration(evaluation["calibration"], both),
        "examples": _examples(record, evaluation),
        "counts": _counts(record, main["name"], higher_is_better=main["higher_is_better"]),
        "notes": evaluation["notes"],
    }


def primary(evaluation: JSON) -> JSON:
    """The metric that the verdict is about."""
    return next(metric for metric in evaluation["metrics"] if metric["name"] == evaluation["primary"])


def _mark(word: str) -> str:
    return next((mark for start, mark in MARKS if word.startswith(start)), "○")


def _digits(metric: JSON) -> int:
    """Decimals for all numbers of a metric."""
    low, high = metric["low"], metric["high"]
    half = None if low is None or high is None else (high - low) / 2
    return decimals(metric["base"], metric["tuned"], half=half)


def _gain(metric: JSON, *, margin: float | None = None) -> Gain | None:
    """Turns a difference round where lower is better; None where it is not known."""
    if metric["difference"] is None:
        return None
    sign = 1 if metric["higher_is_better"] else -1
    known = [sign * end for end in (metric["low"], metric["high"]) if end is not None]
    low, high = sorted(known) if len(known) == 2 else (None, None)
    unit = SCALES.get(str(metric["unit"]), str(metric["unit"]))
    return Gain(metric["label"], sign * metric["difference"], low, high, unit, _digits(metric), margin)


def _title(metrics: Sequence[JSON]) -> str:
    said = (f"{m['label']} from {number(m['base'])} to {number(m['tuned'])}, {m['word']}" for m in metrics)
    return "Gains of the tuned model over the base with their intervals. " + "; ".join(said) + "."


def _confusion(found: JSON | None, both: Draw) -> JSON | None:
    if found is None:
        return None
    labels = [str(label) for label in found["labels"]]
    shown = {name: found[name] for name in ("base", "tuned") if found.get(name) is not None}
    if len(labels) <= MOST_CLASSES:
        maps = [
            (name.capitalize(), both(lambda w, c=counts, n=name: heat_map(labels, c, w, name=n), wide=400))
            for name, counts in shown.items()
        ]
        return {"maps": maps, "pairs": []}
    pairs = [
        {"true": true, "answered": answered, **{name: counts[i][j] for name, counts in shown.items()}}
        for i, true in enumerate(labels)
        for j, answered in enumerate(labels)
        if i != j and any(counts[i][j] for counts in shown.values())
    ]
    pairs.sort(key=lambda pair: (-pair.get("tuned", 0), -pair.get("base", 0), pair["true"], pair["answered"]))
    return {"maps": [], "pairs": pairs[:MOST_PAIRS], "labels": len(labels)}


def _calibration(found: JSON | None, both: Draw) -> JSON | None:
    arms = {name: found[name] for name in ("base", "tuned") if found.get(name)} if found else {}
    arms = {name: arm for name, arm in arms.items() if arm["ece"] is not None}
    if not arms:
        return None
    return {"figure": both(lambda width: reliability(arms, width), wide=400), "arms": arms}


def _counts(record: RunRecord, metric: str, *, higher_is_better: bool) -> JSON | None:
    """On how many rows the tuned model scored higher, alike or lower; None where rows have no such score."""
    base, tuned = _arm(record, "base"), _arm(record, "tuned")
    pairs = [(base[i]["scores"].get(metric), tuned[i]["scores"].get(metric)) for i in base if i in tuned]
    known = [(b, t) for b, t in pairs if b is not None and t is not None]
    if not known:
        return None
    up = sum(t > b for b, t in known)
    down = sum(t < b for b, t in known)
    better, worse = (up, down) if higher_is_better else (down, up)
    return {"better": better, "worse": worse, "same": len(known) - up - down, "rows": len(known)}


def _arm(record: RunRecord, arm: str) -> dict[str, JSON]:
    return {row["id"]: row for row in record.predictions if row["arm"] == arm}


def _examples(record: RunRecord, evaluation: JSON) -> list[JSON]:
    """Groups of rows with what both models answered: most improved, most worsened, and some that nobody chose."""
    base, tuned = _arm(record, "base"), _arm(record, "tuned")
    paired = [i for i in base if i in tuned and (base[i]["answer"] is not None or tuned[i]["answer"] is not None)]
    improved = [i for i in evaluation["improved"] if i in paired][:EXAMPLES]
    worsened = [i for i in evaluation["worsened"] if i in paired][:EXAMPLES]
    rest = sorted(
        set(paired) - {*improved, *worsened}, key=lambda i: hashlib.sha256(i.encode("utf-8", "replace")).digest()
    )
    groups = (
        ("Most improved", improved, "No row scored higher than with the base model."),
        ("Most worsened", worsened, "No row scored lower than with the base model."),
        ("Picked by a fixed rule", rest[:EXAMPLES], "No rows are left to show."),
    )
    metric = primary(evaluation)
    return (
        [
            {"title": title, "empty": empty, "rows": [_example(base[i], tuned[i], metric) for i in ids]}
            for title, ids, empty in groups
        ]
        if paired
        else []
    )


def _example(base: JSON, tuned: JSON, metric: JSON) -> JSON:
    prompt = base["prompt"]
    turns = prompt if isinstance(prompt, list) else [{"role": "text", "content": prompt}]
    return {
        "id": mask(str(base["id"])),
        "left_out": max(len(turns) - MOST_TURNS, 0),
        "turns": [(shown(str(turn.get("role", ""))), shown(_content(turn))) for turn in turns[-MOST_TURNS:]],
        "reference": shown(_plain(base["reference"])),
        "answers": [_answer("Base", base, metric), _answer("Tuned", tuned, metric)],
    }


def _answer(name: str, row: JSON, metric: JSON) -> JSON:
    score = row["scores"].get(metric["name"])
    sure = row.get("probabilities")
    return {
        "name": name,
        "text": shown(_plain(row["answer"])),
        "score": f"{metric['label']} {short(score)}" if score is not None else "",
        "sure": f"{short(round(100 * max(sure)))} % sure" if sure and isinstance(row["answer"], str) else "",
        "cut": row.get("finish") == "length",
    }


def _content(turn: JSON) -> str:
    """A turn's words, and the calls of tools that it makes."""
    words = _plain(turn.get("content") or "")
    calls = turn.get("tool_calls")
    return f"{words}\n{json.dumps(calls, ensure_ascii=False)}".strip() if calls else words


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, float | int):
        return number(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ", ".join(value) or "no label"
    return json.dumps(value, ensure_ascii=False)


def shown(text: str) -> str:
    """A private text as a page may show it: masked, and shortened in the middle."""
    text = mask(text.strip().replace("\r\n", "\n"))
    if len(text) <= LONGEST_TEXT:
        return text
    left_out = len(text) - LONGEST_TEXT
    return (
        f"{text[: LONGEST_TEXT * 2 // 3]}\n[… {number(left_out)} characters left out …]\n{text[-LONGEST_TEXT // 3 :]}"
    )
