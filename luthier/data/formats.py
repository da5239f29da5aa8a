"""One function for each format: a record to the `Example` it means. `luthier.data.detect` chooses among them.

Each takes the record and the columns that hold the parts (`{"prompt": "question", ...}`) and raises `BadRow`. What a
row says beyond its format stays in the example's `columns`. An empty CSV field, a null and a missing key are the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from luthier.data import turns
from luthier.data.read import Record
from luthier.data.rows import BadRow, column_name, file_stem, kind_of
from luthier.data.rows_json import json_value
from luthier.types import JSON, Conversation, Example, Labelled, Message, Provenance, Text

Columns = Mapping[str, str]
MULTI_COLUMNS = frozenset({"labels", "categories", "classes", "tags", "topics", "intents", "codes"})
"""Label columns whose text is divided at `|`. Elsewhere `|` is part of the name; a list is always several labels."""


def messages(record: Record, columns: Columns) -> Conversation:
    """OpenAI's form: a list of turns with role and content, and `tools`; the older `functions` are read as tools."""
    return _conversation(record, columns, _turns(record, columns["messages"], turns.openai))


def sharegpt(record: Record, columns: Columns) -> Conversation:
    """A list of turns with from and value."""
    return _conversation(record, columns, _turns(record, columns["messages"], turns.sharegpt))


def alpaca(record: Record, columns: Columns) -> Conversation:
    """An instruction, an optional input after a blank line, an output; `history` holds earlier pairs."""
    pair = _pair(record, columns)
    return _conversation(record, columns, [*_history(record, columns.get("history")), *pair])


def prompt_completion(record: Record, columns: Columns) -> Conversation:
    """A prompt and a completion, each a text or a list of turns."""
    row = _row(record)
    sides = []
    for part, role in (("prompt", "user"), ("completion", "assistant")):
        value = row.get(columns[part])
        if isinstance(value, list):
            sides.append([turns.openai(turn, f"{columns[part]}[{index}]") for index, turn in enumerate(value)])
        else:
            sides.append([Message(role, _text(record, columns[part]))])
    prompt, completion = sides
    added = _optional_text(record, columns.get("input"))
    if added and len(prompt) == 1:
        prompt = [Message(prompt[0].role, f"{prompt[0].content}\n\n{added}", extra=prompt[0].extra)]
    if any(message.role == "assistant" for message in prompt):
        # The completion alone is what such a row teaches; the answers before it are context.
        prompt = [Message(m.role, m.content, 0.0 if m.role == "assistant" else None, m.extra) for m in prompt]
    return _conversation(record, columns, [*prompt, *completion])


def question_answer(record: Record, columns: Columns) -> Conversation:
    """A question and its answer, both text."""
    return _conversation(record, columns, _pair(record, columns))


def text(record: Record, columns: Columns) -> Text:
    """A document."""
    body = _text(record, columns["text"])
    return Text(_id(record, columns), body, _provenance(record, {"text": body}), _rest(record, columns))


def labelled(record: Record, columns: Columns) -> Labelled:
    """A text and its label, or its labels: a list, a list as JSON text, or names with `|` between (`MULTI_COLUMNS`)."""
    body = _text(record, columns["text"])
    labels = labels_of(_present(record, columns["label"]), columns["label"])
    meaning = {"text": body, "labels": labels}
    return Labelled(
        _id(record, columns), body, tuple(labels), _provenance(record, meaning), columns=_rest(record, columns)
    )


def regression(record: Record, columns: Columns) -> Labelled:
    """A text and a number."""
    body = _text(record, columns["text"])
    value = number_of(_present(record, columns["label"]))
    if value is None:
        got = kind_of(_row(record)[columns["label"]])
        raise BadRow(f"column {column_name(columns['label'])} holds {got} that is no number", "Write a finite number")
    meaning = {"text": body, "value": value}
    rest = _rest(record, columns)
    return Labelled(_id(record, columns), body, (), _provenance(record, meaning), value, rest)


FORMATS: dict[str, Callable[[Record, Columns], Example]] = {
    "messages": messages,
    "sharegpt": sharegpt,
    "prompt_completion": prompt_completion,
    "alpaca": alpaca,
    "question_answer": question_answer,
    "labelled": labelled,
    "regression": regression,
    "text": text,
}


def rehashed(example: Example) -> Example:
    """The example with the hash of what it says now. `rehashed(example) == example` for one that was just read."""
    meaning: JSON
    if isinstance(example, Conversation):
        turns_ = [[m.role, m.content, m.weight, m.extra] for m in example.messages]
        meaning = {"messages": turns_, "tools": example.tools}
    elif isinstance(example, Text):
        meaning = {"text": example.text}
    elif example.value is None:
        meaning = {"text": example.text, "labels": list(example.labels)}
    else:
        meaning = {"text": example.text, "value": example.value}
    return replace(example, provenance=replace(example.provenance, hash=digest(meaning)))


def split_key(example: Example) -> str:
    """Hex digest of what a model is asked: the turns before the last assistant turn, or the text.

    Letter case and spacing do not count, so that two spellings of one prompt never stand on two sides.
    """
    if not isinstance(example, Conversation):
        return digest({"text": _folded(example.text)})
    last = max(index for index, message in enumerate(example.messages) if message.role == "assistant")
    asked = [[m.role, _folded(m.content), m.extra.get("tool_calls", [])] for m in example.messages[:last]]
    return digest({"asked": asked})


def digest(value: Any) -> str:
    """blake2b-128 of canonical JSON: sorted keys, no spaces, no nulls in objects (Parquet adds them to every row)."""
    text = json.dumps(_without_nulls(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def labels_of(value: Any, column: str) -> list[str]:
    """Label names, sorted, each once; a single label is a list of one."""
    if isinstance(value, str) and value.lstrip().startswith("[") and value.rstrip().endswith("]"):
        value = json_value(value, f"column {column_name(column)}")
    elif isinstance(value, str) and column.lower() in MULTI_COLUMNS and "|" in value:
        value = value.split("|")
    several = value if isinstance(value, list) else [value]
    return sorted({label_of(label, column) for label in several})


def label_of(value: Any, column: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not value.is_integer():
        raise BadRow(
            f"column {column_name(column)} holds a fraction, not a label",
            "Set data.format=regression to predict numbers",
        )
    if isinstance(value, (int, float)):
        return str(int(value))
    if not isinstance(value, str):
        raise BadRow(
            f"column {column_name(column)} holds {kind_of(value)} where a label belongs", "Write its name as text"
        )
    if not value.strip() or "\0" in value:
        raise BadRow(f"column {column_name(column)} holds an empty label", "Write the label, or [] for none")
    return value.strip()


def number_of(value: Any) -> float | None:
    """A finite number, also where it stands as text; else None."""
    if isinstance(value, str):
        value = float(value) if _NUMBER.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _row(record: Record) -> JSON:
    assert record.value is not None, "only records without a problem are converted"
    return record.value


def _present(record: Record, column: str) -> Any:
    """The value of a column that the format needs."""
    row = _row(record)
    if column not in row:
        known = ", ".join(column_name(key) for key in list(row)[:12])
        raise BadRow(
            f"the row lacks column {column_name(column)}", f"It has {known or 'no columns'}; name it alike in all rows"
        )
    if row[column] is None:
        raise BadRow(f"column {column_name(column)} is empty", "Fill it, or remove the row")
    return row[column]


def _text(record: Record, column: str) -> str:
    return _as_text(_present(record, column), column)


def _as_text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"column {column_name(column)} holds {kind_of(value)}, not text", "Write text in quotes")
    if "\0" in value:
        raise BadRow(f"column {column_name(column)} holds a NUL character", "Remove it")
    if not value.strip():
        raise BadRow(f"column {column_name(column)} is empty", "Fill it, or remove the row")
    return value


def _optional_text(record: Record, column: str | None) -> str:
    """Empty where the row has none."""
    value = _row(record).get(column) if column else None
    if value is None or value == "":
        return ""
    return _as_text(value, str(column)) if not isinstance(value, str) or value.strip() else ""


def _pair(record: Record, columns: Columns) -> list[Message]:
    asked, added = _text(record, columns["prompt"]), _optional_text(record, columns.get("input"))
    answer = _text(record, columns["completion"])
    return [Message("user", f"{asked}\n\n{added}" if added else asked), Message("assistant", answer)]


def _history(record: Record, column: str | None) -> list[Message]:
    value = _row(record).get(column) if column else None
    place = column_name(column or "")
    if isinstance(value, str):
        value = json_value(value, f"column {place}") if value.strip() else None
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadRow(f"column {place} holds {kind_of(value)}", "Write a list of [question, answer] pairs")
    found = []
    for index, pair in enumerate(value):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(t, str) and t.strip() for t in pair):
            raise BadRow(f"item {index} of column {place} is no pair of texts", "Write [question, answer]")
        found += [Message("user", pair[0]), Message("assistant", pair[1])]
    return found


def _turns(record: Record, column: str, read: Callable[[Any, str], Message]) -> list[Message]:
    value = _present(record, column)
    if isinstance(value, str):
        value = json_value(value, f"column {column_name(column)}")
    if not isinstance(value, list):
        raise BadRow(f"column {column_name(column)} holds {kind_of(value)}", "Write a list of turns")
    return [read(turn, f"{column}[{index}]") for index, turn in enumerate(value)]


def _conversation(record: Record, columns: Columns, found: list[Message]) -> Conversation:
    row = _row(record)
    system = _optional_text(record, columns.get("system"))
    if system and not any(message.role == "system" for message in found):
        found = [Message("system", system), *found]
    turns.check(found, columns.get("messages", "the conversation"))
    tools = turns.tools(row.get(columns["tools"]), columns["tools"]) if "tools" in columns else ()
    meaning = {"messages": [[m.role, m.content, m.weight, m.extra] for m in found], "tools": tools}
    return Conversation(_id(record, columns), tuple(found), _provenance(record, meaning), tools, _rest(record, columns))


def _id(record: Record, columns: Columns) -> str:
    value = _row(record).get(columns["id"]) if "id" in columns else None
    if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip():
        return str(value)
    return f"{file_stem(record.file)}:{record.line}"


def _provenance(record: Record, meaning: Any) -> Provenance:
    return Provenance(record.file, record.line, digest(meaning))


def _rest(record: Record, columns: Columns) -> JSON:
    used = set(columns.values())
    return {key: value for key, value in _row(record).items() if key not in used and value is not None}


def _folded(value: str) -> str:
    return " ".join(value.casefold().split())


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [_without_nulls(inner) for inner in value]
    return value
