"""Chat templates: a plain one for models without, and the checks that a template must pass before anything is trained.

The checks run on neutral conversations, so what they show is the template's text and nobody's data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from luthier.data.render import PROBE_ANSWER, PROBE_QUESTION, TEMPLATE, Renderer, template_source
from luthier.errors import DataError, LuthierError, ModelError
from luthier.types import Conversation, Finding, Message, Provenance

PLAIN = "plain"
PLAIN_TEMPLATE = r"""
{{- '### Tools:\n' if tools }}
{%- for tool in tools or [] %}{{ tool | tojson }}{{ '\n' }}{% endfor %}
{{- '\n' if tools }}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
### System:
{{ message.content | trim }}
{%- elif message.role == 'user' -%}
### User:
{{ message.content | trim }}
{%- elif message.role == 'tool' -%}
### Tool:
{{ message.content | trim }}
{%- elif message.role == 'assistant' -%}
### Assistant:
{{ message.content | trim }}
{%- for call in message.tool_calls or [] -%}
{{ '\n' if message.content | trim or not loop.first }}<tool_call>
{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
</tool_call>
{%- endfor -%}
{{ eos_token }}
{%- else -%}
{{ raise_exception('The plain template knows the roles system, user, assistant and tool.') }}
{%- endif -%}
{{ '\n\n' if not loop.last or add_generation_prompt }}
{%- endfor -%}
{{ '### Assistant:\n' if add_generation_prompt }}"""
"""Headings in plain words, contents trimmed, EOS after every assistant turn. Needs no special token but EOS."""

ROWS_TRIED_FOR_A_KEY = 50


def ensure_template(tokenizer: Any, template: str | None) -> list[Finding]:
    """Gives the tokenizer the chat template of the recipe's `model.template`, or the plain one where it has none.

    Args:
        template: `plain`, the path of a Jinja file, or None for the tokenizer's own.

    Raises:
        ModelError: the file cannot be read, or the plain template is needed and no EOS token exists.
    """
    if template is None and tokenizer.chat_template:
        return []
    if template is not None and template != PLAIN:
        tokenizer.chat_template = _read(Path(template))
        return [_finding("template_from_file", "info", f"the chat template is the file {Path(template).name}")]
    if tokenizer.eos_token is None:
        raise ModelError(
            "the tokenizer has no EOS token, so nothing could end an answer in the plain template",
            do="set model.tokenizer to a tokenizer with an eos_token, or model.template to a file with its own ending",
        )
    own = bool(tokenizer.chat_template)
    # A template writes BOS itself, and only where the tokenizer puts one before plain text.
    tokenizer.chat_template = ("" if Renderer(tokenizer).frame.first is None else "{{ bos_token }}") + PLAIN_TEMPLATE
    if own:
        return [_finding("plain_template", "info", "the plain template takes the place of the tokenizer's own")]
    return [
        _finding(
            "plain_template",
            "info",
            "the tokenizer has no chat template; the plain one is used: ### User: ... ### Assistant: ...",
            "nothing to do for a base model; for a chat model set model.template to its own template",
        )
    ]


def check_template(renderer: Renderer) -> list[Finding]:
    """Renders neutral conversations: one turn, several, with a system message, with tools.

    What is learnt must begin with the tokens of the serving prompt, and must hold the token that ends the turn.

    Raises:
        ModelError: one of the two does not hold, with the place where the renderings part.
    """
    end = renderer.ending
    _hold(renderer, SINGLE)
    _hold(renderer, SEVERAL)
    shown = renderer.tokenizer.convert_ids_to_tokens(end.token)
    findings = [_finding("turn_end", "info", f"assistant turns end in the token {shown!r} ({end.token}); it is learnt")]
    if end.opening:
        findings.append(
            _finding(
                "template_inserts",
                "warn" if end.opening.strip() else "info",
                f"the template puts {end.opening!r} between the serving prompt and every answer; it is not learnt",
                "if answers should begin with it, have the template write it as part of the generation prompt",
            )
        )
    try:
        renderer.render(SEVERAL, turns="all")
    except ModelError as error:
        parting = "; ".join(line.strip() for line in error.got.splitlines()[1:])
        findings.append(
            _finding(
                "history_rewritten",
                "warn",
                "the template writes earlier assistant turns differently once others follow, so only the last turn of "
                f"a conversation can be learnt exactly ({parting})",
                "objective.turns: last",
            )
        )
    findings += _role(renderer, "system", SYSTEM)
    if "tools" in template_source(renderer.tokenizer):
        findings += _role(renderer, "tool", TOOLS)
    return findings


def unused_keys(renderer: Renderer, conversations: Iterable[Conversation]) -> list[Finding]:
    """Keys of the data that the template does not use: reasoning, names, tools. One finding for each.

    A key counts as used as soon as one of the first rows with it renders differently without it.
    """
    rows: dict[tuple[str, str], list[str]] = {}
    used: set[tuple[str, str]] = set()
    for conversation in conversations:
        for key in _keys(conversation) - used:
            seen = rows.setdefault(key, [])
            seen.append(f"{conversation.provenance.file}:{conversation.provenance.line}")
            if len(seen) <= ROWS_TRIED_FOR_A_KEY and _changes(renderer, conversation, *key):
                used.add(key)
    return [
        Finding(
            rule="unused_key",
            severity="warn",
            message=f"the chat template does not use {name!r} of {owner}: what it holds is not in the rendering",
            remedy="move its text into the content, set model.template to a template that uses it, or remove the key",
            examples=tuple(where),
            count=len(where),
        )
        for (owner, name), where in sorted(rows.items())
        if (owner, name) not in used
    ]


def _hold(renderer: Renderer, sample: Conversation) -> None:
    """The last turn of a neutral conversation, rendered for training: whatever goes wrong is the template's doing."""
    try:
        sequence = renderer.render(sample, turns="last")
    except DataError as error:
        raise ModelError(
            f"the chat template fails on a neutral conversation of {len(sample.messages)} messages: {error.what}",
            where=TEMPLATE,
            got=error.got,
            do="set model.template: a Jinja file, or `plain`",
        ) from None
    learnt = sequence.tokens_T[sequence.weights_T > 0].tolist()
    if renderer.ending.token not in learnt:
        raise ModelError(
            "the token that ends an assistant turn would not be learnt, so the model would never stop",
            where=TEMPLATE,
            got=f"{len(learnt)} tokens are learnt, none of them is {renderer.ending.token}",
            do="set model.template: a Jinja file, or `plain`",
        )


def _role(renderer: Renderer, role: str, sample: Conversation) -> list[Finding]:
    try:
        renderer.render(sample, turns="last")
    except LuthierError as error:
        return [
            _finding(
                "template_role",
                "info",
                f"the template does not take messages of role {role!r}: {error.what}; rows with one are refused",
                f"move {role} text into a user message, or set model.template",
            )
        ]
    return []


def _keys(conversation: Conversation) -> set[tuple[str, str]]:
    """(owner, key) of everything in a conversation that a template is free to ignore."""
    keys = {
        (f"{message.role} messages", key)
        for message in conversation.messages
        for key, value in message.extra.items()
        if _holds_text(value)
    }
    return keys | ({("the row", "tools")} if conversation.tools else set())


def _holds_text(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_holds_text(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_text(inner) for inner in value)
    return isinstance(value, str) and bool(value.strip())


def _changes(renderer: Renderer, conversation: Conversation, owner: str, key: str) -> bool:
    """Whether the rendering differs without the key. A row that does not render is reported where it is rendered."""
    if owner == "the row":
        without = replace(conversation, tools=())
    else:
        without = replace(
            conversation,
            messages=tuple(
                replace(m, extra={k: v for k, v in m.extra.items() if k != key}) if owner == f"{m.role} messages" else m
                for m in conversation.messages
            ),
        )
    try:
        return renderer.conversation_text(conversation) != renderer.conversation_text(without)
    except DataError:
        return True


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelError(
            "there is no such template file", where=str(path), do="model.template: a file or `plain`"
        ) from None
    except UnicodeDecodeError as error:
        raise ModelError("a template is UTF-8 text", where=str(path), got=f"byte {error.start} is not") from None
    except OSError as error:
        raise ModelError("the template file cannot be read", where=str(path), got=error.strerror or "") from None
    if not text.strip():
        raise ModelError("the template file is empty", where=str(path))
    return text


def _finding(rule: str, severity: Any, message: str, remedy: str = "") -> Finding:
    return Finding(rule=rule, severity=severity, message=message, remedy=remedy)


def _sample(*messages: Message, tools: tuple[dict[str, Any], ...] = ()) -> Conversation:
    return Conversation("neutral", messages, Provenance(TEMPLATE, 0, ""), tools)


_QUESTION, _ANSWER = Message("user", PROBE_QUESTION), Message("assistant", PROBE_ANSWER)
_CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SINGLE = _sample(_QUESTION, _ANSWER)
SEVERAL = _sample(_QUESTION, _ANSWER, Message("user", "And back?"), Message("assistant", "The same way."))
SYSTEM = _sample(Message("system", "You know this town well."), _QUESTION, _ANSWER)
TOOLS = _sample(
    Message("user", "How is the weather in Oslo?"),
    Message("assistant", "", extra={"tool_calls": [_CALL]}),
    Message("tool", "4 degrees", extra={"tool_call_id": "call00001", "name": "weather"}),
    Message("assistant", "It is cold."),
    tools=(_TOOL,),
)
