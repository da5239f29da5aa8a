"""Base against tuned on rows that neither has seen: at the end of a run, or by itself on any file."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from luthier import cache, machine
from luthier.batch import Batch
from luthier.data import tokens
from luthier.data.render import Renderer
from luthier.data.store import ExampleStore
from luthier.errors import InputError
from luthier.evaluation.compare import compare
from luthier.evaluation.run import TestSet, asked, items, pick_rows
from luthier.evaluation.scorers import score_items
from luthier.models.policy import Policy
from luthier.models.sources import Origin
from luthier.recipe import Full, Lora, Recipe
from luthier.runs.folder import RunFolder, refuse_filled, write_json, write_text
from luthier.training.reference import reference_logprobs
from luthier.types import JSON
from luthier.workflow.base_answers import BASE, base_answers, base_key
from luthier.workflow.build import build_base
from luthier.workflow.plan import TASKS
from luthier.workflow.tell import Tell, silent

Say = Callable[..., None]


def evaluate_run(
    run: RunFolder,
    recipe: Recipe,
    origin: Origin,
    tokenizer: Any,
    policy: Policy,
    *,
    say: Say,
    tell: Tell,
    past: Path | None = None,
) -> None:
    """Writes RUN/predictions.jsonl and RUN/evaluation.json; says so when nothing was held back.

    Args:
        past: where earlier runs are noted (`cache.past`): one that asked the same base the same rows has its answers.
    """
    if not run.side("test").exists():
        say(
            "finding",
            rule="no_test_rows",
            severity="warn",
            message="no rows were held back for a test, so nothing can be said of whether tuning helped",
            remedy="data.split.test, or a test file",
            examples=[],
            count=0,
        )
        return
    began = time.perf_counter()
    # What training gave up still lies in pieces in the heap, and keys and values would be laid beside it.
    machine.give_back()
    test = _test_set(run.root / "data", "test", recipe, tokenizer)
    tuned = _ask(test, policy, "tuned", base=False, tell=tell)
    # An adapter alone is switched off; where weights were trained whole, or a head is new, the base is read again.
    beside = recipe.adapter.modules_to_save if isinstance(recipe.adapter, Lora) else []
    alone = not isinstance(recipe.adapter, Full) and not beside and policy.head is None
    key = None if past is None else base_key(test, origin, policy, alone=alone, answers=True)
    found = None if past is None or key is None else base_answers(past, key)
    if found is not None:
        base = found.items
    else:
        subject = policy if alone else build_base(recipe, origin)[0]
        known = None if subject.head is not None else _reference(test, origin, subject, run, alone=alone, past=past)
        base = _ask(test, subject, "base", base=alone, tell=tell, known=known)
    result = _compared(test, base, tuned, names=(recipe.model.source, run.root.name))
    if policy.head is not None:
        result["notes"].append("the base has no trained head: its answers are those of a new one, drawn at random")
    if alone and recipe.model.quantise != "none":
        result["notes"].append(f"the base answered with its linear layers in {recipe.model.quantise}, as in training")
    if found is not None:
        same = f"the base's answers are those of the run {found.run.name}, which asked the same base the same rows"
        result["notes"].append(same)
    _write(run.predictions, [*base, *tuned])
    if past is not None and key is not None:
        cache.remember(past, BASE, key, run.predictions)
    write_json(run.evaluation, result)
    seconds, place = round(time.perf_counter() - began, 3), None if found is None else str(found.run)
    say("evaluated", seconds=seconds, items=len(tuned), base_from=place)


def _test_set(data: Path, side: str, recipe: Recipe, tokenizer: Any) -> TestSet:
    store = tokens.open_store(data / side)
    examples = ExampleStore(data)
    return TestSet(recipe, examples, store, Renderer(tokenizer), pick_rows(store, examples, recipe.evaluation.limit))


def _reference(
    test: TestSet, origin: Origin, policy: Policy, run: RunFolder, *, alone: bool, past: Path | None
) -> Callable[[Batch], Tensor]:
    """The base's log-probabilities, which stay the same where only what is written is asked for in another way."""
    return reference_logprobs(
        policy,
        test.tokens,
        asked(test),
        budget=test.recipe.training.budget,
        file=run.side("test") / "reference.npy",
        past=past,
        key=None if past is None else base_key(test, origin, policy, alone=alone, answers=False),
    ).of


def _ask(
    test: TestSet,
    policy: Policy,
    arm: str,
    *,
    base: bool,
    tell: Tell,
    known: Callable[[Batch], Tensor] | None = None,
) -> list[JSON]:
    def progress(done: int, total: int) -> None:
        tell({"event": "progress", "what": f"answers of {arm}", "done": done, "total": total})

    task = TASKS[test.recipe.objective.kind]  # type: ignore[union-attr]
    return score_items(items(test, policy, arm=arm, base=base, progress=progress, known=known), task)


def _compared(test: TestSet, base: list[JSON] | None, tuned: list[JSON], *, names: tuple[str, str]) -> JSON:
    recipe = test.recipe
    evaluation = recipe.evaluation
    task = TASKS[recipe.objective.kind]  # type: ignore[union-attr]
    written = any(item["answer"] is not None for item in tuned)
    return compare(
        base,
        tuned,
        task=task,
        primary=evaluation.primary if written or task == "text" else "loss",
        margin=evaluation.margin if written or task == "text" else None,
        confidence=evaluation.confidence,
        clusters=_groups(test, tuned),
        labels=getattr(recipe.objective, "labels", None),
        names=names,
    )


def _groups(test: TestSet, items: list[JSON]) -> dict[str, str] | None:
    """The group of each item where rows were split by group: rows of one customer are not independent of each other."""
    split = test.recipe.data.split
    if split.by != "group" or split.column is None:
        return None
    groups = [test.examples[item["row"]].columns.get(split.column) for item in items]
    if len({item["id"] for item in items}) < len(items) or any(group is None for group in groups):
        return None
    return {item["id"]: str(group) for item, group in zip(items, groups, strict=True)}


def _write(path: Path, rows: list[JSON]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def evaluate(
    target: str,
    data: list[str],
    *,
    against: str | None = None,
    out: Path | None = None,
    overrides: Sequence[str] = (),
    tell: Tell = silent,
) -> JSON:
    """Evaluates a run, a model folder or any model source on a file of rows; with `against`, compares.

    Args:
        target: a run folder, or what `model.source` takes.
        against: the other arm; `base` is the base of the run.
        out: where evaluation.json and predictions.jsonl go; nothing is written without it.
        overrides: `KEY=VALUE` of the recipe, such as `data.columns.prompt=dialogue`.

    Raises:
        LuthierError: something cannot be read, loaded or compared.
    """
    from luthier.workflow.arms import open_arm, recipe_for

    recipe = recipe_for(target, data, overrides)
    if out is not None:
        refuse_filled(out, do="choose another --out")
    with tempfile.TemporaryDirectory(prefix="luthier-evaluate-") as name:
        folder = Path(name)
        tuned_arm = open_arm(target, recipe, folder, tell=tell)
        resolved = tuned_arm.recipe
        test = _test_set(folder / "data", "train", resolved, tuned_arm.tokenizer)
        tuned = _ask(test, tuned_arm.policy, "tuned", base=False, tell=tell)
        base = None
        if against is not None:
            # The base of a run is asked as the run was: with its tokenizer and template.
            other = resolved.model.source if against == "base" else against
            base_arm = open_arm(other, resolved, None, tell=tell)
            tokenizer = tuned_arm.tokenizer if against == "base" else base_arm.tokenizer
            _same_tokens(tuned_arm.tokenizer, tokenizer, other)
            theirs = TestSet(resolved, test.examples, test.tokens, Renderer(tokenizer), test.rows)
            base = _ask(theirs, base_arm.policy, "base", base=False, tell=tell)
        result = _compared(test, base, tuned, names=(against or "", target))
    if out is not None:
        _write(out / "predictions.jsonl", [*(base or []), *tuned])
        write_json(out / "evaluation.json", result)
    return result


def _same_tokens(ours: Any, theirs: Any, source: str) -> None:
    if ours.get_vocab() != theirs.get_vocab():
        raise InputError(
            "the two models cut text into different tokens, so their losses cannot be compared",
            where=source,
            do="evaluate each by itself",
        )
