"""What each measure is: of one answer, and of a whole set of items. No model, no torch, no choice of what to trust.

`SCORERS` is the table of all of them. An item is a line of predictions.jsonl:

    id, arm, row, prompt, reference, answer, finish, prompt_tokens, answer_tokens, loss_sum, loss_units, probabilities

and `score_items` adds `scores`. A failed answer is never left out: none at all, or an empty one, scores zero. An answer
that was cut at the length limit is scored as it stands; how many were cut is shown beside the scores.

Means over items, ratios of sums and measures of the whole set are different things, told apart by `Scorer.kind`.

Shape suffixes: N items, C labels, K numbers of each item that a measure sums, R rows of sums.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from luthier.errors import InputError
from luthier.evaluation.statistics import Floats
from luthier.types import JSON

Task = Literal["answers", "labels", "multi_labels", "number", "text"]
Item = JSON
NO_ANSWER = "(no answer)"
"""Stands for a missing label in a confusion matrix."""


class Scorer(NamedTuple):
    name: str
    label: str
    """For people."""
    higher_is_better: bool
    unit: str
    """`0-1`, `0-100`, `nats`, or what else the number is measured in."""
    kind: Literal["binary", "mean", "ratio", "corpus"]
    """binary: 0 or 1 for each item. mean: a number for each item. ratio: summed loss over summed units. corpus: of the
    whole set only, never a mean over items."""
    margin: float
    """Largest loss of quality that counts as `not worse` unless the recipe says otherwise: in `unit`, or for errors of
    numbers (`relative`) as a share of the base's error."""
    function: Callable[[Any, Any], float] | None = None
    """(answer, reference) -> score of one item, for the kinds binary and mean."""

    @property
    def relative(self) -> bool:
        """Whether `margin` is a share of the base's error."""
        return self.unit in ("squared", "absolute")


# Of one answer


def normalise(text: str) -> str:
    """What counts as the same answer: Unicode NFKC, case folded, runs of white space as one space, and without quotes,
    brackets and emphasis around the whole or sentence punctuation at its end. Signs and units (- % $) stay."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return text.lstrip(_OPENING).rstrip(_OPENING + _CLOSING).strip()


_OPENING = "\"'`*_“”„‘’‚«»‹›([{)]}「」『』¿¡ "
_CLOSING = ".,;:!?。、"


def exact_match(answer: str, reference: str) -> float:
    """1 when both are equal after `normalise`."""
    given = normalise(answer)
    return float(given != "" and given == normalise(reference))


def words(text: str) -> list[str]:
    """Lower-cased words: runs of letters, digits and underscores; each Han or kana character alone."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words of both, each counted as often as it stands there (as SQuAD, without dropping articles)."""
    given, wanted = Counter(words(answer)), Counter(words(reference))
    return f1(float(wanted.total()), float(given.total()), float((given & wanted).total()))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L F of the `rouge-score` package with its Porter stemmer. It reads a-z and 0-9 only."""
    if not answer.strip():
        return 0.0
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


def chrf(answer: str, reference: str) -> float:
    """Sentence chrF2 of sacrebleu (character n-grams to 6), 0 to 100."""
    if not answer.strip():
        return 0.0
    return float(_chrf().sentence_score(answer, [reference]).score)


def accuracy(answer: str, reference: str) -> float:
    """1 for the right label, to the letter."""
    return float(answer == reference)


def set_match(answer: Iterable[str], reference: Iterable[str]) -> float:
    """1 when both are the same set of labels; two empty sets are the same."""
    return float(set(answer) == set(reference))


def set_f1(answer: Iterable[str], reference: Iterable[str]) -> float:
    """F1 of one item's labels; 1 when there are none and none were given. Ranks items, and is never averaged."""
    given, wanted = set(answer), set(reference)
    return f1(len(wanted), len(given), len(given & wanted)) if given or wanted else 1.0


def squared_error(answer: float, reference: float) -> float:
    # A product, because a power that is too large raises instead of giving infinity.
    return (answer - reference) * (answer - reference)


def absolute_error(answer: float, reference: float) -> float:
    return abs(answer - reference)


def f1(wanted: float, given: float, both: float) -> float:
    return 2 * both / (wanted + given) if wanted + given > 0 else 0.0


@cache
def _rouge() -> Any:
    # Half a second of imports (nltk, absl), paid by those who compare answers only.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF()


SCORERS: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        Scorer("rouge_l", "ROUGE-L", True, "0-1", "mean", 0.02, rouge_l),
        Scorer("chrf", "chrF", True, "0-100", "mean", 2.0, chrf),
        Scorer("token_f1", "token F1", True, "0-1", "mean", 0.02, token_f1),
        Scorer("exact_match", "exact match", True, "0-1", "binary", 0.02, exact_match),
        Scorer("accuracy", "accuracy", True, "0-1", "binary", 0.02, accuracy),
        Scorer("macro_f1", "macro-F1", True, "0-1", "corpus", 0.02),
        Scorer("micro_f1", "micro-F1", True, "0-1", "corpus", 0.02),
        Scorer("squared_error", "squared error", False, "squared", "mean", 0.02, squared_error),
        Scorer("absolute_error", "absolute error", False, "absolute", "mean", 0.02, absolute_error),
        Scorer("loss", "loss", False, "nats", "ratio", 0.02),
    )
}


class Measures(NamedTuple):
    primary: str
    others: tuple[str, ...]
    items: dict[str, Callable[[Any, Any], float]]
    """What `score_items` computes of each item."""


TASKS: dict[Task, Measures] = {
    "answers": Measures(
        "rouge_l",
        ("chrf", "token_f1", "exact_match", "loss"),
        {"rouge_l": rouge_l, "chrf": chrf, "token_f1": token_f1, "exact_match": exact_match},
    ),
    "labels": Measures("accuracy", ("macro_f1", "loss"), {"accuracy": accuracy}),
    "multi_labels": Measures(
        "micro_f1", ("macro_f1", "exact_match", "loss"), {"exact_match": set_match, "set_f1": set_f1}
    ),
    "number": Measures(
        "squared_error", ("absolute_error",), {"squared_error": squared_error, "absolute_error": absolute_error}
    ),
    "text": Measures("loss", (), {}),
}


def score_items(items: Iterable[Item], task: Task) -> list[Item]:
    """Copies of the items with `scores` filled; a score that is no finite number is None.

    Answers may have several references, of which the nearest counts.
    """
    return [{**item, "scores": _scores(item, task)} for item in items]


def _scores(item: Item, task: Task) -> dict[str, float | None]:
    scores: dict[str, float | None] = {}
    answer, reference = item.get("answer"), item.get("reference")
    for name, function in TASKS[task].items.items():
        if answer is None:
            # There is no worst number: an error without an answer stays unknown, and the verdict says so.
            scores[name] = None if task == "number" else 0.0
        elif task == "answers" and not isinstance(reference, str):
            scores[name] = max((function(answer, one) for one in reference or ()), default=0.0)
        else:
            scores[name] = finite(function(answer, reference))
    loss = item_loss(item)
    if loss is not None:
        scores["loss"] = finite(loss)
    return scores


def item_loss(item: Item) -> float | None:
    """Loss per unit of one item; None when it has no loss, NaN or infinite when the model's loss was."""
    total, units = item.get("loss_sum"), item.get("loss_units")
    return total / units if total is not None and units else None


def finite(value: float) -> float | None:
    """The number, or None for what JSON cannot hold."""
    return value if math.isfinite(value) else None


# Of a whole set


def labels_of(items: Sequence[Item]) -> list[str]:
    """Every label that is a reference or an answer, sorted."""
    return sorted({label for item in items for key in ("reference", "answer") for label in label_set(item.get(key))})


def label_set(value: str | Iterable[str] | None) -> set[str]:
    """One label, several or none, as a set."""
    if value is None:
        return set()
    return {value} if isinstance(value, str) else set(value)


def label_counts(items: Sequence[Item], labels: Sequence[str]) -> NDArray[np.float32]:
    """[N, 3 C]: for each label, whether it is in the reference, in the answer, and in both."""
    place = {label: i for i, label in enumerate(labels)}
    # float32 halves the time of resampling and holds whole numbers exactly up to 2^24.
    counts_NK = np.zeros((len(items), 3 * len(labels)), np.float32)
    for row, item in enumerate(items):
        wanted, given = label_set(item["reference"]), label_set(item["answer"])
        for part, members in enumerate((wanted, given, wanted & given)):
            for label in members:
                counts_NK[row, part * len(labels) + place[label]] = 1
    return counts_NK


def macro_f1(sums_RK: Floats) -> Floats:
    """Mean F1 of the labels that occur; a label with neither an item nor a prediction is left out. [R, 3 C] -> [R].

    1 when no label is wanted and none is given.
    """
    wanted, given, both = np.split(sums_RK.astype(np.float64), 3, axis=1)
    size = wanted + given
    each = np.divide(2 * both, size, out=np.zeros_like(size), where=size > 0)
    occurring = (size > 0).sum(axis=1)
    return np.where(occurring > 0, each.sum(axis=1) / np.maximum(occurring, 1), 1.0)


def micro_f1(sums_RK: Floats) -> Floats:
    """F1 of all labels counted together. [R, 3 C] -> [R]. 1 when no label is wanted and none is given."""
    wanted, given, both = (part.sum(axis=1) for part in np.split(sums_RK.astype(np.float64), 3, axis=1))
    return np.where(wanted + given > 0, 2 * both / np.maximum(wanted + given, 1), 1.0)


CORPUS: dict[str, Callable[[Floats], Floats]] = {"macro_f1": macro_f1, "micro_f1": micro_f1}


class LabelScore(NamedTuple):
    precision: float | None
    """None when the label was never given."""
    recall: float | None
    """None when no item has the label."""
    f1: float | None


def per_label(items: Sequence[Item], labels: Sequence[str]) -> list[LabelScore]:
    wanted, given, both = np.split(label_counts(items, labels).sum(axis=0, dtype=np.float64), 3)
    return [
        LabelScore(
            float(b / g) if g else None,
            float(b / w) if w else None,
            f1(float(w), float(g), float(b)) if w + g else None,
        )
        for w, g, b in zip(wanted, given, both, strict=True)
    ]


def confusion(items: Sequence[Item], labels: Sequence[str]) -> list[list[int]]:
    """How often each label (row) was answered with each label (column). A missing answer counts as `NO_ANSWER`."""
    place = {label: i for i, label in enumerate(labels)}
    table = [[0] * len(labels) for _ in labels]
    for item in items:
        answer = NO_ANSWER if item["answer"] is None else item["answer"]
        table[place[item["reference"]]][place[answer]] += 1
    return table


def column(items: Sequence[Item], key: str) -> NDArray[np.float64]:
    """One number of each item; NaN where it is missing."""
    return np.array([math.nan if item.get(key) is None else item[key] for item in items], np.float64)


def mean_loss(items: Sequence[Item]) -> float:
    """Summed loss / summed units over the whole set, whatever the batches were; NaN without units."""
    units = float(column(items, "loss_units").sum())
    return float(column(items, "loss_sum").sum()) / units if units else math.nan


def perplexity(loss: float) -> float:
    """exp(loss per unit); infinite where it exceeds every number."""
    return math.exp(loss) if loss < 709 else loss if math.isnan(loss) else math.inf


def r_squared(items: Sequence[Item]) -> float:
    """1 - squared error / variance of the references; NaN without an answer to each, or when all references agree."""
    if not items or any(item["answer"] is None for item in items):
        return math.nan
    reference_N = np.array([item["reference"] for item in items], float)
    answer_N = np.array([item["answer"] for item in items], float)
    spread = float(((reference_N - reference_N.mean()) ** 2).sum())
    return 1 - float(((answer_N - reference_N) ** 2).sum()) / spread if spread > 0 else math.nan


class Bin(NamedTuple):
    confidence: float
    accuracy: float
    items: int


class Calibration(NamedTuple):
    ece: float
    ece_if_calibrated: float
    """What a perfectly calibrated model with these confidences would show: ECE is biased upward on small sets."""
    bins: tuple[Bin, ...]


def calibration(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 15, simulations: int = 400, seed: int = 0
) -> Calibration:
    """Expected calibration error over bins of equal mass: sum_b n_b / N * |accuracy_b - confidence_b|.

    NaN and no bins without items, or when a value is not finite.
    """
    confidence_N, correct_N = np.asarray(confidence, float), np.asarray(correct, float)
    order = np.argsort(confidence_N, kind="stable")
    confidence_N, correct_N = confidence_N[order], correct_N[order]
    n = len(confidence_N)
    if n == 0 or not (np.isfinite(confidence_N).all() and np.isfinite(correct_N).all()):
        return Calibration(math.nan, math.nan, ())
    starts = np.unique(np.linspace(0, n, min(bins, n), endpoint=False).astype(int))
    sizes = np.diff(np.append(starts, n))
    expected, seen = np.add.reduceat(confidence_N, starts), np.add.reduceat(correct_N, starts)
    rng = np.random.default_rng(seed)
    by_chance = 0.0
    for _ in range(simulations):
        drawn = np.add.reduceat((rng.random(n) < confidence_N).astype(float), starts)
        by_chance += float(np.abs(drawn - expected).sum()) / n / simulations
    return Calibration(
        ece=float(np.abs(seen - expected).sum()) / n,
        ece_if_calibrated=by_chance,
        bins=tuple(Bin(float(e / s), float(c / s), int(s)) for e, c, s in zip(expected, seen, sizes, strict=True)),
    )


def known_task(task: str) -> Task:
    """The task of that name.

    Raises:
        InputError: there is none.
    """
    for known in TASKS:
        if task == known:
            return known
    raise InputError(f"{task}: no such task", do=f"one of {', '.join(TASKS)}")
