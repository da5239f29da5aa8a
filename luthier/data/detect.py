"""What rows mean, told from their columns; the recipe's `format` and `columns` override it. Says what was seen."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, get_args

from luthier.data.formats import MULTI_COLUMNS, number_of
from luthier.data.rows import BadRow, column_name
from luthier.data.rows_json import json_value
from luthier.errors import DataError
from luthier.recipe.data import Columns, Format
from luthier.types import JSON

_TURNS = ("messages", "conversations", "conversation", "chat", "turns")
_SYSTEM = ("system", "system_prompt")
_LABELS = (
    *("label", "labels", "category", "categories", "class", "classes", "intent", "intents", "topic", "topics"),
    *("tag", "tags", "target", "sentiment"),
)
_NUMBERS = ("score", "rating", "stars", "value")
_TEXTS = ("text", "sentence", "utterance", "review", "comment", "tweet", "message", "document", "content", "body")
_ID = ("id", "_id", "uuid", "row_id", "example_id")

NAMES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "messages": {"messages": _TURNS, "tools": ("tools", "functions"), "system": _SYSTEM},
    "sharegpt": {"messages": _TURNS, "tools": ("tools", "functions"), "system": _SYSTEM},
    "prompt_completion": {
        "prompt": ("prompt",),
        "completion": ("completion",),
        "input": (),
        "tools": ("tools",),
        "system": _SYSTEM,
    },
    "alpaca": {
        "prompt": ("instruction",),
        "completion": ("output",),
        "input": ("input",),
        "history": ("history",),
        "system": _SYSTEM,
    },
    "question_answer": {
        "prompt": ("question", "query", "prompt", "input_text", "input", "instruction", "user", "article", "dialogue"),
        "completion": ("answer", "response", "reply", "output_text", "output", "completion", "assistant", "summary"),
        "input": ("context",),
        "system": _SYSTEM,
    },
    "labelled": {"text": _TEXTS, "label": (*_LABELS, *_NUMBERS)},
    "regression": {"text": _TEXTS, "label": (*_NUMBERS, *_LABELS)},
    "text": {"text": ("text", "document", "content", "body")},
}
"""Which column names are recognised as which part of which format, in any letter case. Formats are tried in the order
of `_ORDER`; every format also knows an id column."""

NEEDED: Mapping[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "sharegpt": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("prompt", "completion"),
    "question_answer": ("prompt", "completion"),
    "labelled": ("text", "label"),
    "regression": ("text", "label"),
    "text": ("text",),
}
_ORDER = (
    "messages",
    "sharegpt",
    "prompt_completion",
    "alpaca",
    "question_answer",
    "regression",
    "labelled",
    "text",
)


class Detection(NamedTuple):
    format: str
    """A name of `recipe.Format`."""
    columns: Mapping[str, str]
    """Which column holds which part: `{"prompt": "question", "completion": "answer"}`."""
    why: str
    """One sentence: what was seen, and which columns are not used."""
    multi: bool = False
    """Labels come as lists: any number of them may apply to a text."""


def detect(sample: Sequence[JSON], columns: Columns, format: Format | None = None, *, where: str = "") -> Detection:
    """Chooses a format for rows like those of `sample` (good rows, 200 or so).

    Args:
        columns: parts whose column the recipe names; the others are found by name.
        format: the recipe's format, if it names one.
        where: the files, for errors.

    Raises:
        DataError: nothing fits, or several columns could be one part; or a named column does not exist.
    """
    assert sample, "detection needs rows"
    known = list(dict.fromkeys(key for row in sample for key in row))
    mapped = {part: name for part, name in columns.model_dump().items() if name is not None}
    _exist(mapped, known, where)
    if format is None:
        _refuse_preferences(sample, known, mapped, where)
    doubts: list[str] = []
    for candidate in (format,) if format else _ORDER:
        if not set(mapped) <= {*NAMES[candidate], "id"}:
            continue
        found = _parts(candidate, known, mapped, doubts)
        rows = _fitting(candidate, found, sample, chosen=format is not None) if found else 0
        if doubts:
            break
        if found and (rows * 2 >= len(sample) or (format is not None and rows)):
            return _detected(candidate, found, known, rows, sample, chosen=format is not None)
    raise _undecided(sample, known, mapped, format, doubts, where)


def _exist(mapped: Mapping[str, str], known: list[str], where: str) -> None:
    for part, name in mapped.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else "name one of the columns there are"
            raise DataError(
                f"data.columns.{part}: there is no column {column_name(name)}",
                where=where,
                got=f"columns: {', '.join(known)}",
                do=hint,
            )


def _parts(format: str, known: list[str], mapped: Mapping[str, str], doubts: list[str]) -> dict[str, str]:
    """The column of each part; empty where a needed one is not found, or not told from another."""
    names = {**NAMES[format], "id": _ID}
    by_name = {
        part: [mapped[part]] if part in mapped else [column for column in known if column.lower() in names[part]]
        for part in names
    }
    if not all(by_name[part] for part in NEEDED[format]):
        return {}
    for part in NEEDED[format]:
        if len(by_name[part]) > 1:
            doubts.append(f"columns {' and '.join(by_name[part])} could each be data.columns.{part}")
            return {}
    order = {part: {name: index for index, name in enumerate(names[part])} for part in names}
    return {
        part: min(columns, key=lambda column: order[part].get(column.lower(), 0))
        for part, columns in by_name.items()
        if columns
    }


def _fitting(format: str, parts: Mapping[str, str], sample: Sequence[JSON], *, chosen: bool) -> int:
    """How many rows of the sample have the needed columns, with values of the format's shape."""
    rows = [row for row in sample if all(row.get(parts[part]) is not None for part in NEEDED[format])]
    if format in ("messages", "sharegpt"):
        key = "role" if format == "messages" else "from"
        return sum(_is_turns(row[parts["messages"]], key) for row in rows)
    if format == "regression" and not chosen:
        values = [row[parts["label"]] for row in rows]
        named = parts["label"].lower() in _NUMBERS
        numbers = [number_of(value) for value in values]
        whole = all(number is not None and number.is_integer() for number in numbers)
        return len(rows) if None not in numbers and (named or not whole) else 0
    return len(rows)


def _is_turns(value: Any, key: str) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json_value(value, "")
        except BadRow:
            return False
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]


def _detected(
    format: str, parts: dict[str, str], known: list[str], rows: int, sample: Sequence[JSON], *, chosen: bool
) -> Detection:
    names = [column_name(parts[part]) for part in NEEDED[format]]
    if format in ("messages", "sharegpt"):
        keys = "role and content" if format == "messages" else "from and value"
        saw = f"column {names[0]} holds lists of objects with {keys} in {rows} of {len(sample)} rows"
    else:
        part_names = " and ".join(f"column {name} ({part})" for name, part in zip(names, NEEDED[format], strict=True))
        saw = f"{part_names} found in {rows} of {len(sample)} rows"
    if format == "regression":
        saw += ", with numbers to predict"
    more = [f"{column_name(column)} as {part}" for part, column in parts.items() if part not in NEEDED[format]]
    unused = [column_name(column) for column in known if column not in parts.values()]
    why = f"{format}{' (chosen in the recipe)' if chosen else ''}: {saw}"
    why += f"; also {', '.join(more)}" if more else ""
    why += f"; not used: {', '.join(unused)}" if unused else ""
    multi = format == "labelled" and any(_several(row.get(parts["label"]), parts["label"]) for row in sample)
    return Detection(format, parts, why, multi)


def _several(value: Any, column: str) -> bool:
    if isinstance(value, str):
        text = value.strip()
        return (text.startswith("[") and text.endswith("]")) or ("|" in text and column.lower() in MULTI_COLUMNS)
    return isinstance(value, list)


def _refuse_preferences(sample: Sequence[JSON], known: list[str], mapped: Mapping[str, str], where: str) -> None:
    """Rows that compare or rate answers would otherwise be learnt as if every answer in them were good."""
    compared = all(any(column.lower().startswith(word) for column in known) for word in ("chosen", "rejected"))
    if compared and "completion" not in mapped:
        raise DataError(
            "these rows hold pairs of a better and a worse answer, which are not learnt from as pairs",
            where=where,
            got=f"columns: {', '.join(known)}",
            do="to learn the better answer alone, write it into a column of text and set data.columns.completion to it",
        )
    turns = [column for column in known if column.lower() in _TURNS]
    rated = sum(isinstance(row.get("label"), bool) for row in sample)
    if turns and rated * 2 >= len(sample) and "messages" not in mapped:
        raise DataError(
            "these rows hold answers rated good or bad, and the bad ones would be learnt too",
            where=where,
            got=f"columns: {', '.join(known)}; `label` is true or false in {rated} of {len(sample)} rows",
            do=f"keep the good rows only, then set data.columns.messages={turns[0]}",
        )


def _undecided(
    sample: Sequence[JSON],
    known: list[str],
    mapped: Mapping[str, str],
    format: Format | None,
    doubts: list[str],
    where: str,
) -> DataError:
    got = f"columns: {', '.join(known)}"
    if format is not None:
        spare = [f"data.columns.{part}" for part in mapped if part not in NAMES[format]]
        if spare:
            return DataError(
                f"{spare[0]} has no effect with data.format={format}", where=where, got=got, do="remove it"
            )
        needs = " ".join(f"data.columns.{part}=COLUMN" for part in NEEDED[format])
        what = f"data.format={format} does not fit these rows"
        return DataError(what, where=where, got=got, do=f"say which column holds what: {needs}")
    if doubts:
        part = doubts[0].rsplit(" ", 1)[1]
        return DataError(doubts[0], where=where, got=got, do=f"choose with {part}=COLUMN")
    return DataError(
        "what these rows mean cannot be told from their columns", where=where, got=got, do=_suggestion(sample, known)
    )


def _suggestion(sample: Sequence[JSON], known: list[str]) -> str:
    """Settings with the real column names: long text is probably asked about, shorter text the answer."""
    length = {
        column: sum(len(row[column]) for row in sample if isinstance(row.get(column), str)) / len(sample)
        for column in known
    }
    texts = sorted((c for c in known if length[c] >= 1), key=lambda c: -length[c])
    formats = f"or data.format (one of {', '.join(get_args(Format))})"
    if not texts:
        return f"columns with text are needed; set data.columns for them, {formats}"
    if len(texts) == 1:
        return (
            f"set data.columns.text={texts[0]} to learn it as plain text, with data.columns.label=COLUMN to classify it"
        )
    asked, answer = texts[:2]
    for part in ("prompt", "completion"):
        by_name = [column for column in texts if column.lower() in NAMES["question_answer"][part]]
        if by_name and part == "prompt":
            asked = by_name[0]
            answer = next(column for column in texts if column != asked)
        elif by_name and by_name[0] != asked:
            answer = by_name[0]
    return (
        f"say which column is asked and which is the answer: -o {shlex.quote(f'data.columns.prompt={asked}')} "
        f"-o {shlex.quote(f'data.columns.completion={answer}')}, or the other way round; "
        f"or data.columns.text and data.columns.label to classify; {formats}"
    )
