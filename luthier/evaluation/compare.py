"""Two sets of answers to the same items -> evaluation.json: every measure with its interval, and one verdict.

Reads stored items only (see `scorers`), so that any comparison can be repeated without a model. Nothing depends on the
order of the items. One arm alone is described without a verdict; its intervals are then those of its own values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from luthier.errors import InputError
from luthier.evaluation import scorers, statistics, verdict
from luthier.evaluation.scorers import SCORERS, TASKS, Item, Scorer, Task
from luthier.evaluation.statistics import Difference
from luthier.types import JSON

LISTED = 10
"""How many improved and how many worsened items are named."""
LARGEST_CONFUSION = 200
"""Labels up to which the confusion matrix is written out."""
FEW_GROUPS = 10
FEW_ITEMS = 30
ODD_LETTERS = 0.2
"""Share of letters that ROUGE-L cannot read from which a note says so."""
RANKED_BY = {"macro_f1": {"labels": "accuracy", "multi_labels": "set_f1"}, "micro_f1": {"multi_labels": "set_f1"}}
"""The score of one item that stands for a measure of the whole set when items are ranked by their gain."""


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Items of both arms, in one order."""

    base: list[Item] | None
    tuned: list[Item]
    groups: list[str] | None
    labels: list[str]
    task: Task
    confidence: float


def compare(
    items_base: Sequence[Item] | None,
    items_tuned: Sequence[Item],
    *,
    task: str,
    primary: str | None = None,
    margin: float | None = None,
    confidence: float = 0.95,
    clusters: Mapping[str, str] | None = None,
    labels: Sequence[str] | None = None,
    names: tuple[str, str] = ("base", "tuned"),
    useful: float | None = None,
    seeds: int | None = 1,
) -> JSON:
    """The content of evaluation.json.

    Args:
        items_base: None to describe `items_tuned` alone.
        task: a key of `TASKS`.
        primary: the measure that the verdict is about. None: the task's own, or loss when nothing was generated.
        margin: of the primary, in its units. None: the measure's own (`SCORERS`), as for all others.
        clusters: item id -> its group (customer, document); every item needs one.
        labels: label names in the order of the model's outputs; labels seen beyond them are appended.
        names: of base and tuned, for people.
        useful: smallest effect of the primary worth having.
        seeds: training runs behind the tuned arm; None when unknown.

    Raises:
        InputError: the arms hold different items, the primary does not fit, or an item has no group.
    """
    kind = scorers.known_task(task)
    pairs = _pair(items_base, items_tuned, kind, clusters, labels, confidence)
    order = _measures(pairs, primary)
    compared = [_compare_one(pairs, SCORERS[name], margin if i == 0 else None) for i, name in enumerate(order)]
    adjusted = statistics.holm([found.difference.p for found in compared[1:]])
    rows = [
        _row(found, pairs, p=p, useful=useful if i == 0 else None, seeds=seeds if i == 0 else None)
        for i, (found, p) in enumerate(zip(compared, [compared[0].difference.p, *adjusted], strict=True))
    ]
    improved, worsened = _ranked(pairs, SCORERS[order[0]])
    report = {
        "version": 1,
        "task": kind,
        "primary": order[0],
        "margin": compared[0].margin,
        "confidence": confidence,
        "items": len(pairs.tuned),
        "clusters": None if pairs.groups is None else len(set(pairs.groups)),
        "arms": {
            "base": None if pairs.base is None else _arm(pairs.base, names[0], pairs, order),
            "tuned": _arm(pairs.tuned, names[1], pairs, order),
        },
        "metrics": rows,
        "verdict": None if pairs.base is None else {key: rows[0][key] for key in ("word", "sentence")},
        "per_class": _per_class(pairs),
        "confusion": _confusion(pairs),
        "calibration": _calibration(pairs),
        "improved": improved,
        "worsened": worsened,
        "notes": _notes(pairs, rows, seeds=seeds),
    }
    plain: JSON = _plain(report)
    return plain


# Items


def _pair(
    items_base: Sequence[Item] | None,
    items_tuned: Sequence[Item],
    task: Task,
    clusters: Mapping[str, str] | None,
    labels: Sequence[str] | None,
    confidence: float,
) -> _Pairs:
    tuned = _ordered(items_tuned, task)
    base = None if items_base is None else _ordered(items_base, task)
    if base is not None:
        if [_key(item) for item in base] != [_key(item) for item in tuned]:
            raise InputError(
                "base and tuned were not asked the same items",
                got=f"{len(base)} and {len(tuned)} items, {len(_keys(base) & _keys(tuned))} in both",
                do="evaluate both on the same rows",
            )
        changed = sum(a.get("reference") != b.get("reference") for a, b in zip(base, tuned, strict=True))
        if changed:
            raise InputError("base and tuned have different references", got=f"{changed} items differ")
    groups = None
    if clusters is not None:
        missing = sum(item["id"] not in clusters for item in tuned)
        if missing:
            raise InputError("some items have no group", got=f"{missing} of {len(tuned)}", do="name one for each item")
        groups = [str(clusters[item["id"]]) for item in tuned]
    seen = scorers.labels_of([*tuned, *(base or [])]) if task in ("labels", "multi_labels") else []
    known = list(labels or [])
    return _Pairs(base, tuned, groups, known + [name for name in seen if name not in set(known)], task, confidence)


def _ordered(items: Sequence[Item], task: Task) -> list[Item]:
    """Sorted, so that the order of rows changes no draw; scored where that has not been done."""
    ordered = sorted(items, key=_key)
    if len(_keys(ordered)) != len(ordered):
        raise InputError("an item was answered twice by the same arm", got=f"{len(ordered)} answers")
    return [item if item.get("scores") else scorers.score_items([item], task)[0] for item in ordered]


def _key(item: Item) -> tuple[int, str]:
    return item["row"], item["id"]


def _keys(items: Sequence[Item]) -> set[tuple[int, str]]:
    return {_key(item) for item in items}


def _measures(pairs: _Pairs, primary: str | None) -> list[str]:
    """The primary first, then all others that can be computed from these items."""
    task = TASKS[pairs.task]
    both = [*pairs.tuned, *(pairs.base or [])]
    possible = [task.primary, *task.others]
    if both and not any(item.get("loss_units") for item in both):
        possible = [name for name in possible if name != "loss"]
    if both and pairs.task == "answers" and all(item.get("answer") is None for item in both):
        possible = [name for name in possible if name == "loss"]
    if not possible:
        raise InputError("the items hold neither answers nor losses", got=f"{len(both)} items")
    first = possible[0] if primary is None else primary
    if first not in possible:
        raise InputError(
            f"{first}: cannot be the primary measure here", got=f"task {pairs.task}", do=f"one of {', '.join(possible)}"
        )
    return [first, *(name for name in possible if name != first)]


# Measures


@dataclass(frozen=True, slots=True)
class _Compared:
    scorer: Scorer
    base: float
    tuned: float
    difference: Difference
    margin: float


def _compare_one(pairs: _Pairs, scorer: Scorer, margin: float | None) -> _Compared:
    base = math.nan if pairs.base is None else _value(pairs.base, scorer, pairs.labels)
    tuned = _value(pairs.tuned, scorer, pairs.labels)
    own = _own_margin(scorer, pairs, base) if margin is None else margin
    return _Compared(scorer, base, tuned, _difference(pairs, scorer), own)


def _value(items: Sequence[Item], scorer: Scorer, labels: Sequence[str]) -> float:
    """One arm's value of a measure; NaN without items."""
    if not items:
        return math.nan
    if scorer.kind == "ratio":
        return scorers.mean_loss(items)
    if scorer.kind == "corpus":
        sums_K = scorers.label_counts(items, labels).sum(axis=0)
        return float(scorers.CORPUS[scorer.name](sums_K[None])[0])
    return sum(_scores(items, scorer.name)) / len(items)


def _difference(pairs: _Pairs, scorer: Scorer) -> Difference:
    """Tuned - base; of one arm alone, its own value."""
    tuned, base, labels = pairs.tuned, pairs.base, pairs.labels
    groups, confidence = pairs.groups, pairs.confidence
    if scorer.kind == "corpus":
        metric, tuned_NK = scorers.CORPUS[scorer.name], scorers.label_counts(tuned, labels)
        if base is None:
            return statistics.corpus_value(tuned_NK, metric, groups=groups, confidence=confidence)
        base_NK = scorers.label_counts(base, labels)
        return statistics.corpus_difference(base_NK, tuned_NK, metric, groups=groups, confidence=confidence)
    if scorer.kind == "ratio":
        of_tuned = scorers.column(tuned, "loss_sum"), scorers.column(tuned, "loss_units")
        if base is None:
            return statistics.ratio_value(*of_tuned, groups=groups, confidence=confidence)
        of_base = scorers.column(base, "loss_sum"), scorers.column(base, "loss_units")
        return statistics.ratio_difference(*of_base, *of_tuned, groups=groups, confidence=confidence)
    scores = _scores(tuned, scorer.name)
    if base is not None:
        test = statistics.binary_difference if scorer.kind == "binary" else statistics.mean_difference
        return test(_scores(base, scorer.name), scores, groups=groups, confidence=confidence)
    if scorer.kind == "binary" and groups is None:
        return statistics.rate_value(scores, confidence=confidence)
    found = statistics.ratio_value(scores, np.ones(len(scores)), groups=groups, confidence=confidence)
    return replace(found, test=found.test.removeprefix(statistics.DELTA))


def _scores(items: Sequence[Item], name: str) -> list[float]:
    found = (item["scores"].get(name) for item in items)
    return [math.nan if score is None else score for score in found]


def _own_margin(scorer: Scorer, pairs: _Pairs, base: float) -> float:
    """The measure's margin in its units; errors of numbers have theirs as a share of the base's error."""
    if not scorer.relative:
        return scorer.margin
    if pairs.base is None:
        return math.nan
    if math.isfinite(base) and base > 0:
        return scorer.margin * base
    # A base without a single error: a share of how much the references themselves vary.
    spread = float(scorers.column(pairs.tuned, "reference").std()) if pairs.tuned else 0.0
    return scorer.margin * (spread ** (2 if scorer.unit == "squared" else 1) or 1.0)


def _row(found: _Compared, pairs: _Pairs, *, p: float, useful: float | None, seeds: int | None) -> JSON:
    scorer, difference, alone = found.scorer, found.difference, pairs.base is None
    word: str | None = None
    if alone:
        sentence = verdict.value_sentence(difference, scorer.label, scorer.unit, pairs.confidence)
    else:
        word, sentence = verdict.verdict(
            difference,
            margin=found.margin,
            higher_is_better=scorer.higher_is_better,
            confidence=pairs.confidence,
            p=p,
            label=scorer.label,
            unit=scorer.unit,
            base=found.base,
            tuned=found.tuned,
            useful=useful,
            seeds=seeds,
        )
    return {
        "name": scorer.name,
        "label": scorer.label,
        "higher_is_better": scorer.higher_is_better,
        "unit": scorer.unit,
        "base": found.base,
        "tuned": found.tuned,
        "difference": None if alone else difference.estimate,
        "low": difference.low,
        "high": difference.high,
        "p": p,
        "test": difference.test,
        "word": word,
        "sentence": sentence,
        "items": difference.items,
        "margin": found.margin,
        "smallest_detectable": (
            None if alone else statistics.smallest_detectable(difference, confidence=pairs.confidence)
        ),
    }


# The rest of the report


def _arm(items: Sequence[Item], name: str, pairs: _Pairs, order: Sequence[str]) -> JSON:
    metrics = {one: _value(items, SCORERS[one], pairs.labels) for one in order}
    if "loss" in metrics and pairs.task in ("answers", "text"):
        metrics["perplexity"] = scorers.perplexity(metrics["loss"])
    if pairs.task == "number":
        metrics["r2"] = scorers.r_squared(items)
    tokens = [item["answer_tokens"] for item in items if item.get("answer_tokens") is not None]
    return {
        "name": name,
        "metrics": metrics,
        "cut_answers": sum(item.get("finish") == "length" for item in items),
        "empty_answers": 0 if pairs.task == "text" else sum(_empty(item.get("answer")) for item in items),
        "answer_tokens": sum(tokens) / len(tokens) if tokens else None,
    }


def _empty(answer: Any) -> bool:
    return answer is None or (isinstance(answer, str) and not answer.strip())


def _per_class(pairs: _Pairs) -> list[JSON] | None:
    if not pairs.labels:
        return None
    wanted = Counter(label for item in pairs.tuned for label in scorers.label_set(item["reference"]))
    tuned = scorers.per_label(pairs.tuned, pairs.labels)
    base = [None] * len(tuned) if pairs.base is None else scorers.per_label(pairs.base, pairs.labels)
    return [
        {"label": label, "items": wanted[label], "base": None if b is None else b._asdict(), "tuned": t._asdict()}
        for label, b, t in zip(pairs.labels, base, tuned, strict=True)
    ]


def _confusion(pairs: _Pairs) -> JSON | None:
    if pairs.task != "labels" or not 0 < len(pairs.labels) <= LARGEST_CONFUSION:
        return None
    unanswered = any(item.get("answer") is None for item in [*pairs.tuned, *(pairs.base or [])])
    labels = [*pairs.labels, scorers.NO_ANSWER] if unanswered else pairs.labels
    base = None if pairs.base is None else scorers.confusion(pairs.base, labels)
    return {"labels": labels, "base": base, "tuned": scorers.confusion(pairs.tuned, labels)}


def _calibration(pairs: _Pairs) -> JSON | None:
    """Of labels whose probabilities were stored for every item of an arm; None where no arm has them."""
    if pairs.task != "labels":
        return None
    arms: JSON = {"base": None, "tuned": None}
    for name, items in (("base", pairs.base), ("tuned", pairs.tuned)):
        if items and all(item.get("probabilities") for item in items):
            confidence = [max(item["probabilities"]) for item in items]
            found = scorers.calibration(confidence, _scores(items, "accuracy"))
            arms[name] = {**found._asdict(), "bins": [one._asdict() for one in found.bins]}
    return arms if any(arms.values()) else None


def _ranked(pairs: _Pairs, scorer: Scorer) -> tuple[list[str], list[str]]:
    """Ids of the items that gained most, and of those that lost most, each first."""
    if pairs.base is None:
        return [], []
    name = RANKED_BY.get(scorer.name, {}).get(pairs.task, scorer.name)
    sign = 1 if scorer.higher_is_better else -1
    both = zip(_scores(pairs.base, name), _scores(pairs.tuned, name), pairs.tuned, strict=True)
    # Equal gains stay in the order of the rows.
    gains = [(sign * (after - before), item["id"]) for before, after, item in both if math.isfinite(after - before)]
    improved = [name for gain, name in sorted(gains, key=lambda pair: -pair[0]) if gain > 0]
    worsened = [name for gain, name in sorted(gains, key=lambda pair: pair[0]) if gain < 0]
    return improved[:LISTED], worsened[:LISTED]


def _notes(pairs: _Pairs, rows: Sequence[JSON], *, seeds: int | None) -> list[str]:
    """What a reader should know beside the numbers, in whole sentences."""
    notes, primary = [], rows[0]
    items = len(pairs.tuned)
    if pairs.base is not None and seeds == 1:
        notes.append("One training seed stands behind this result; the interval does not show how seeds differ.")
    if pairs.base is not None and len(rows) > 1:
        notes.append(
            "The p values of all measures but the primary are adjusted for their number (Holm); "
            "their intervals are not adjusted."
        )
    if pairs.groups is not None and len(set(pairs.groups)) < FEW_GROUPS:
        notes.append(
            f"Fewer than {FEW_GROUPS} groups: intervals are rough, and the exact sign-flip test is the safer evidence."
        )
    if items < FEW_ITEMS:
        notes.append(f"Fewer than {FEW_ITEMS} items: look at the answers rather than at the numbers.")
    loss = next((row for row in rows[1:] if row["name"] == "loss"), None)
    if loss and loss["word"] == verdict.BETTER and primary["word"] == verdict.WORSE:
        notes.append(
            f"The loss improved while {primary['label']} got worse: the model predicts the references better and "
            "answers worse. Trust the answers."
        )
    for name, arm in (("base", pairs.base), ("tuned", pairs.tuned)):
        cut = sum(item.get("finish") == "length" for item in arm or [])
        if cut:
            notes.append(f"{cut} of {items} {name} answers were cut at the length limit and scored as they stand.")
    notes += _warnings_about_items(pairs, primary)
    return notes


def _warnings_about_items(pairs: _Pairs, primary: JSON) -> list[str]:
    notes = []
    if pairs.base is not None:
        different = sum(a.get("answer") != b.get("answer") for a, b in zip(pairs.base, pairs.tuned, strict=True))
        if primary["word"] == verdict.IDENTICAL and different:
            notes.append(f"{different} answers differ although every item has the same {primary['label']}.")
        units = [scorers.column(arm, "loss_units") for arm in (pairs.base, pairs.tuned)]
        if not np.array_equal(units[0], units[1], equal_nan=True):
            notes.append(
                "The arms count their losses over different numbers of tokens; losses per token of different "
                "tokenizers cannot be compared."
            )
    if pairs.task == "answers" and primary["name"] == "rouge_l":
        text = "".join(str(item.get("reference")) for item in pairs.tuned).casefold()
        letters = [c for c in text if c.isalpha()]
        odd = sum(not c.isascii() for c in letters)
        if letters and odd / len(letters) > ODD_LETTERS:
            notes.append(
                f"{100 * odd / len(letters):.0f} % of the references' letters are outside a-z, which ROUGE-L does not "
                "read; chrF is the better measure here."
            )
    if len(pairs.labels) > LARGEST_CONFUSION and pairs.task == "labels":
        notes.append(f"More than {LARGEST_CONFUSION} labels: the confusion matrix is left out.")
    return notes


def _plain(value: Any) -> Any:
    """Lists, dictionaries, text and finite numbers only: NaN and infinities become None."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return scorers.finite(value) if isinstance(value, float) else value
