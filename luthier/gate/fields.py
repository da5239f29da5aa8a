"""An example as the gate's row, and back with other texts in the places of its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.gate.rows import Field, Row
from luthier.types import Conversation, Example, Labelled, Message, Side

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of a turn under which models write what they thought; templates can train on it."""


def to_row(example: Example, *, id: str, side: Side) -> Row:
    """What the rules look at."""
    source = example.provenance
    if isinstance(example, Conversation):
        last = max(index for index, message in enumerate(example.messages) if message.role == "assistant")
        fields = [(index, field) for index, message in enumerate(example.messages) for field in _turn(index, message)]
        prompt = "\n".join(field.text for index, field in fields if index < last)
        answer = "\n".join(field.text for index, field in fields if index == last)
        every, labels, value = tuple(field for _, field in fields), tuple[str, ...](), None
    else:
        every = (Field("text", "text", example.text),)
        prompt, answer = (example.text, "") if isinstance(example, Labelled) else ("", example.text)
        labels, value = (example.labels, example.value) if isinstance(example, Labelled) else ((), None)
    return Row(
        id, source.hash, source.file, source.line, side, every, prompt, answer, labels, value, dict(example.columns)
    )


def rewritten(example: Example, texts: Sequence[str]) -> Example:
    """The example with these texts, in the order of `to_row(example).fields`.

    Raises:
        ValueError: the arguments of a tool call are no longer a JSON object.
    """
    left = iter(texts)
    if not isinstance(example, Conversation):
        return replace(example, text=next(left))
    return replace(example, messages=tuple(_rewritten_turn(message, left) for message in example.messages))


def _turn(index: int, message: Message) -> Iterator[Field]:
    place = f"messages[{index}]"
    for key in REASONING:
        if isinstance(text := message.extra.get(key), str):
            yield Field(f"{place}.{key}", message.role, text)
    if message.content:
        yield Field(f"{place}.content", message.role, message.content)
    for number, call in enumerate(message.extra.get("tool_calls", ())):
        yield Field(f"{place}.tool_calls[{number}].arguments", message.role, _written(call["function"]["arguments"]))


def _rewritten_turn(message: Message, left: Iterator[str]) -> Message:
    extra = dict(message.extra)
    for key in REASONING:
        if isinstance(extra.get(key), str):
            extra[key] = next(left)
    content = next(left) if message.content else ""
    if "tool_calls" in extra:
        extra["tool_calls"] = [_rewritten_call(call, next(left)) for call in extra["tool_calls"]]
    return replace(message, content=content, extra=extra)


def _rewritten_call(call: Mapping[str, Any], text: str) -> Mapping[str, Any]:
    arguments = json.loads(text)
    if not isinstance(arguments, dict):
        raise ValueError("the arguments of a tool call are an object")
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _written(arguments: Any) -> str:
    return json.dumps(arguments, ensure_ascii=False)
