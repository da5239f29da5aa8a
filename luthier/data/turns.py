"""Turns of a conversation: OpenAI's and ShareGPT's forms to `Message`, and the rules of a conversation to learn from.

The rules: a system turn only at the start; at least one user turn; an assistant turn at the end; user and assistant
alternate, and only tool calls come between. A conversation may open with an assistant turn (many services greet first).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.rows import BadRow, kind_of
from luthier.data.rows_json import json_value
from luthier.types import JSON, Message

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
MEANT = {"bot": "assistant", "model": "assistant", "ai": "assistant", "agent": "assistant", "human": "user"} | {
    "gpt": "assistant",
    "customer": "user",
    "chatbot": "assistant",
    "observation": "tool",
}
"""Roles that other tools write, and what OpenAI's form calls them."""
_WEIGHT_KEYS = ("weight", "loss_weight")
_PARTS = frozenset({"text", "input_text", "output_text"})
_OTHER_PARTS = frozenset({"image_url", "image", "input_audio", "audio", "video", "file", "refusal"})


def openai(turn: Any, place: str) -> Message:
    """One turn with `role` and `content`; keys that we do not know stay in `extra`. `place` names it in errors."""
    _is_turn(turn, place, "role and content")
    role = _role(turn.get("role"), ROLES, f"{place}.role")
    extra = {key: value for key, value in turn.items() if key not in _OWN and value is not None}
    calls = turn.get("tool_calls")
    if calls is None and turn.get("function_call") is not None:
        calls = [turn["function_call"]]
    if calls:
        if role != "assistant":
            raise BadRow(f"{place} calls a tool, but is no assistant turn", "Move tool_calls to the assistant's turn")
        extra["tool_calls"] = tool_calls(calls, f"{place}.tool_calls")
    content = _content(turn.get("content"), f"{place}.content", empty=bool(calls) or role == "tool")
    return Message(role, content, _weight(turn, role, place), extra)


_OWN = frozenset({"role", "content", "tool_calls", "function_call", *_WEIGHT_KEYS})


def sharegpt(turn: Any, place: str) -> Message:
    """One turn with `from` and `value`; a `function_call` holds a call, or a list of calls, as JSON."""
    _is_turn(turn, place, "from and value")
    role = _role(turn.get("from"), SHAREGPT_ROLES, f"{place}.from")
    extra = {k: v for k, v in turn.items() if k not in ("from", "value", *_WEIGHT_KEYS) and v is not None}
    weight = _weight(turn, role, place)
    if turn["from"] == "function_call":
        value = turn.get("value")
        calls = json_value(value, f"{place}.value") if isinstance(value, str) else value
        calls = [calls] if isinstance(calls, dict) else calls
        return Message(role, "", weight, extra | {"tool_calls": tool_calls(calls, f"{place}.value")})
    return Message(role, _content(turn.get("value"), f"{place}.value", empty=role == "tool"), weight, extra)


def _is_turn(turn: Any, place: str, keys: str) -> None:
    if not isinstance(turn, dict):
        raise BadRow(f"{place} is {kind_of(turn)}", f"Write an object with {keys}")


def _role(role: Any, known: Mapping[str, str], place: str) -> str:
    if not isinstance(role, str):
        raise BadRow(f"{place} is {'missing' if role is None else kind_of(role)}", f"Use one of {', '.join(known)}")
    if role in known:
        return known[role]
    meant = MEANT.get(role.lower()) or (role.lower() if role.lower() in known else None)
    # The role is quoted only where it is a known word: in a row with mixed-up keys it could be anybody's text.
    got = f"`{role}`" if meant else f"an unknown word of {len(role)} characters"
    raise BadRow(f"{place} is {got}", f"Use {meant}" if meant else f"Use one of {', '.join(known)}")


def _content(value: Any, place: str, *, empty: bool) -> str:
    if isinstance(value, list):
        value = "".join(_part(part, f"{place}[{index}]") for index, part in enumerate(value))
    if value is None and empty:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{place} is {'missing or null' if value is None else kind_of(value)}", "Write text in quotes")
    if "\0" in value:
        raise BadRow(f"{place} holds a NUL character", "Remove it")
    if not empty and not value.strip():
        raise BadRow(f"{place} is empty", "Write its text, or remove the turn")
    return value


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise BadRow(f"{place} is {kind_of(part)}", 'Write {"type": "text", "text": ...}')
    kind = part.get("type")
    if kind in _OTHER_PARTS:
        raise BadRow(f"{place} is a part of type {kind}", "Only text can be learnt; remove the part or the row")
    text = part.get("text") if part.get("text") is not None else part.get("value")
    if kind not in _PARTS or not isinstance(text, str):
        raise BadRow(f"{place} is no text part", 'Write {"type": "text", "text": ...}')
    return text


def _weight(turn: JSON, role: str, place: str) -> float | None:
    key = next((key for key in _WEIGHT_KEYS if turn.get(key) is not None), None)
    if key is None:
        return None
    value = turn[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise BadRow(f"{place}.{key} is {kind_of(value)}", "Write 0 to leave the turn out of the loss, or 1")
    if not 0 <= value < math.inf:
        raise BadRow(f"{place}.{key} is negative", "Write 0 to leave the turn out of the loss, or 1")
    if role == "assistant":
        return float(value)
    if value:
        raise BadRow(f"{place}.{key} is above 0 on a {role} turn", "Only assistant turns are learnt; remove it")
    return None


def tool_calls(calls: Any, place: str) -> list[JSON]:
    """Calls in OpenAI's form, `arguments` as an object: as text and as an object they mean the same."""
    if not isinstance(calls, list) or not calls:
        raise BadRow(f"{place} is {kind_of(calls)}", 'Write a list of {"name": ..., "arguments": {...}}')
    return [_tool_call(call, f"{place}[{index}]") for index, call in enumerate(calls)]


def _tool_call(call: Any, place: str) -> JSON:
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise BadRow(f"{place} names no function", 'Write {"name": ..., "arguments": {...}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = json_value(arguments, f"{place}.arguments") if arguments.strip() else {}
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise BadRow(f"{place}.arguments is {kind_of(arguments)}", "Write an object, or an object as JSON text")
    wrapper = {} if function is call else {key: value for key, value in call.items() if value is not None}
    return {**wrapper, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def tools(value: Any, place: str) -> tuple[JSON, ...]:
    """Tool definitions in OpenAI's form, from a list or a list as JSON text, wrapped or bare."""
    if isinstance(value, str):
        value = json_value(value, place) if value.strip() else None
    if value is None:
        return ()
    if not isinstance(value, list):
        raise BadRow(f"{place} is {kind_of(value)}", "Write a list of tools")
    found = []
    for index, tool in enumerate(value):
        function = tool.get("function", tool) if isinstance(tool, dict) else tool
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
            raise BadRow(f"{place}[{index}] names no function", 'Write {"type": "function", "function": {"name": ...}}')
        found.append({"type": "function", "function": function} if function is tool else {"type": "function", **tool})
    return tuple(found)


def check(messages: Sequence[Message], place: str) -> None:
    """Raises `BadRow` unless the turns make a conversation to learn from, by the rules at the top of this file."""
    if not messages:
        raise BadRow(f"{place} holds no turns", "Write at least a user turn and an assistant turn")
    for index, message in enumerate(messages):
        if message.role == "system" and index:
            do = "Join the system turns" if messages[index - 1].role == "system" else "Move it to the start"
            raise BadRow(f"{place}[{index}] is a system turn that is not the first turn", do)
    if all(message.role != "assistant" for message in messages):
        raise BadRow(f"{place} holds no assistant turn", "Add the answer that is to be learnt")
    if all(message.role != "user" for message in messages):
        raise BadRow(f"{place} holds no user turn", "Add what the assistant answers to")
    if messages[-1].role != "assistant":
        raise BadRow(f"{place} ends with a {messages[-1].role} turn", "End with the answer, or cut the turns after it")
    for index in range(1, len(messages)):
        _check_pair(messages, index, place)
    if all(message.weight == 0 for message in messages if message.role == "assistant"):
        raise BadRow(f"every assistant turn of {place} has weight 0", "Give one of them weight 1, or remove the row")


def _check_pair(messages: Sequence[Message], index: int, place: str) -> None:
    before, turn = messages[index - 1], messages[index]
    calls, called = bool(turn.extra.get("tool_calls")), bool(before.extra.get("tool_calls"))
    here = f"{place}[{index}]"
    if turn.role == "tool":
        if before.role != "tool" and not called:
            raise BadRow(f"{here} is a tool turn without a call before it", "Add tool_calls to the turn before it")
        _check_answer(messages, index, here)
    elif called and not (turn.role == "assistant" and calls):
        raise BadRow(f"{here} follows a tool call that no tool turn answers", "Add the tool's answer")
    elif before.role == "tool" and turn.role == "user":
        raise BadRow(f"{here} is a user turn right after a tool turn", "Add the assistant's turn between them")
    elif turn.role == before.role and turn.role != "system" and not calls:
        raise BadRow(f"{here} is a second {turn.role} turn in a row", "Join the two, or add the turn between them")


def _check_answer(messages: Sequence[Message], index: int, here: str) -> None:
    answered = messages[index].extra.get("tool_call_id")
    ids = {call.get("id") for message in messages[:index] for call in message.extra.get("tool_calls", ())} - {None}
    if answered is not None and ids and answered not in ids:
        raise BadRow(f"{here}.tool_call_id answers no call before it", "Give it the id of the call")
