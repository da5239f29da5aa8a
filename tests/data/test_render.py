"""Prompts, texts and documents as tokens; template checks; length rules; errors that name a row and not its words."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.length import Frame, fit, pieces
from luthier.data.render import Renderer, describe
from luthier.data.templates import PLAIN_TEMPLATE, check_template, ensure_template, unused_keys
from luthier.errors import DataError, InputError, ModelError
from luthier.types import Conversation, Labelled, Message, Provenance, Sequence, Text
from tests.data.families import CHATML, FAMILIES, Family, encoder_tokenizer, tokenizer

FROM = Provenance("chats.jsonl", 7, "0" * 32)
EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


def row(*messages: Message, **others: Any) -> Conversation:
    return Conversation("row-1", messages, FROM, **others)


def user(text: str) -> Message:
    return Message("user", text)


def assistant(text: str, **extra: Any) -> Message:
    return Message("assistant", text, extra=extra)


def renderer_of(name: str, template: str | None = None) -> Renderer:
    made = tokenizer(FAMILIES[name])
    if template is not None:
        made.chat_template = template
    return Renderer(made)


def rules(findings: list[Any]) -> dict[str, str]:
    return {finding.rule: finding.severity for finding in findings}


# Templates


@EVERY
def test_every_family_passes_the_checks(family: Family) -> None:
    findings = check_template(renderer_of(family.name))
    assert f"'{family.end}'" in next(f.message for f in findings if f.rule == "turn_end")
    expected = {"turn_end"}
    expected |= {"template_inserts"} if family.inserts else set()
    expected |= set() if family.every_turn else {"history_rewritten"}
    expected |= set() if family.system else {"template_role"}
    assert {f.rule for f in findings} == expected


def test_a_thinking_block_of_the_template_is_said_aloud() -> None:
    findings = check_template(renderer_of("qwen3"))
    assert rules(findings)["template_inserts"] == "warn"
    assert r"<think>\n\n</think>\n\n" in next(f.message for f in findings if f.rule == "template_inserts")


def test_the_end_of_a_turn_may_be_another_token_than_eos() -> None:
    renderer = renderer_of("gemma")
    assert renderer.tokenizer.convert_ids_to_tokens(list(renderer.stop_tokens())) == ["<end_of_turn>", "<eos>"]


NO_END = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    "{{ 'assistant: ' if add_generation_prompt }}"
)
OTHER_PROMPT = CHATML.replace("'<|im_start|>assistant\\n' if", "'<|im_start|>bot\\n' if")
NO_ANSWER = CHATML.replace("message.content", "(message.content if message.role == 'user' else '')")
BLANK_LINE = (
    NO_END.replace("': '", "':\\n\\n'").replace("assistant: ", "assistant:\\n\\n").replace("'\\n'", "eos_token")
)
BROKEN = "{% for m in messages %}{{ m.content }}"
BAD_TEMPLATES = {
    "no end of turn": (NO_END, "no token ends an assistant turn"),
    "text in place of a token": (NO_END.replace("'\\n'", "'<end>\\n'"), "no token ends an assistant turn"),
    "serving prompt differs": (OTHER_PROMPT, "training and serving would differ"),
    "answer left out": (NO_ANSWER, "does not write the assistant's answer"),
    "a merge over the cut": (BLANK_LINE, "reaches over the cut between prompt and answer"),
    "not valid": (BROKEN, "cannot render a question and its answer"),
    "none": ("", "has no chat template"),
}


@pytest.mark.parametrize(("template", "what"), BAD_TEMPLATES.values(), ids=BAD_TEMPLATES.keys())
def test_a_template_that_would_train_wrongly_stops_the_run(template: str, what: str) -> None:
    with pytest.raises(ModelError, match=what) as caught:
        check_template(renderer_of("chatml", template))
    assert caught.value.do


def test_the_error_shows_where_the_renderings_part() -> None:
    with pytest.raises(ModelError) as caught:
        check_template(renderer_of("chatml", OTHER_PROMPT))
    assert "then 'bot\\n'" in caught.value.got
    assert "or   'assistant\\n" in caught.value.got


def test_earlier_turns_that_are_rewritten_are_refused_with_the_way_out() -> None:
    chat = row(user("SECRET one"), assistant("SECRET two"), user("SECRET three"), assistant("SECRET four"))
    with pytest.raises(ModelError) as caught:
        renderer_of("qwen3").render(chat, turns="all")
    shown = str(caught.value)
    assert "chats.jsonl:7" in shown
    assert "message 2 of 4" in shown
    assert "<think>" in shown
    assert "objective.turns: last" in shown
    assert "SECRET" not in shown


def test_a_model_without_a_template_gets_the_plain_one_and_is_told_so() -> None:
    made = tokenizer(replace(FAMILIES["plain"], template=None))
    assert rules(ensure_template(made, None)) == {"plain_template": "info"}
    assert made.chat_template == PLAIN_TEMPLATE
    check_template(Renderer(made))


def test_the_plain_template_opens_with_bos_where_the_tokenizer_does() -> None:
    made = tokenizer(FAMILIES["llama3"])
    ensure_template(made, "plain")
    tokens = Renderer(made).render(row(user("Hi"), assistant("Hello"))).tokens_T
    assert made.decode(tokens) == "<|begin_of_text|>### User:\nHi\n\n### Assistant:\nHello<|end_of_text|>"


def test_the_plain_template_writes_system_tools_and_results() -> None:
    call = {"function": {"name": "time", "arguments": {}}}
    tool = {"type": "function", "function": {"name": "time"}}
    chat = row(
        Message("system", "Be brief."),
        user("Time?"),
        assistant("", tool_calls=[call]),
        Message("tool", "noon"),
        assistant("Noon."),
        tools=(tool,),
    )
    assert renderer_of("plain").conversation_text(chat) == (
        '### Tools:\n{"type": "function", "function": {"name": "time"}}\n\n### System:\nBe brief.\n\n'
        "### User:\nTime?\n\n"
        '### Assistant:\n<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call><|endoftext|>\n\n'
        "### Tool:\nnoon\n\n### Assistant:\nNoon.<|endoftext|>"
    )


def test_the_plain_template_needs_an_eos_token() -> None:
    made = tokenizer(FAMILIES["plain"])
    made.eos_token = None
    with pytest.raises(ModelError, match="no EOS token"):
        ensure_template(made, "plain")


def test_a_template_file_takes_the_place_of_the_tokenizers_own(tmp_path: Path) -> None:
    made = tokenizer(FAMILIES["chatml"])
    assert ensure_template(made, None) == []
    file = tmp_path / "own.jinja"
    file.write_text("{# mine #}" + CHATML)
    assert rules(ensure_template(made, str(file))) == {"template_from_file": "info"}
    assert made.chat_template.startswith("{# mine #}")
    for wrong, content in (("missing.jinja", None), ("empty.jinja", b" \n"), ("latin.jinja", b"\xe4")):
        if content is not None:
            (tmp_path / wrong).write_bytes(content)
        with pytest.raises(ModelError, match="template"):
            ensure_template(made, str(tmp_path / wrong))


def test_keys_that_the_template_does_not_use_are_named() -> None:
    thinking = row(Message("user", "Why?", extra={"name": "Ada"}), assistant("So.", reasoning_content="Hm."))
    tools = row(user("Why?"), assistant("So."), tools=({"type": "function", "function": {"name": "f"}},))
    found = unused_keys(renderer_of("chatml"), [thinking, tools, thinking])
    assert [(f.rule, f.severity, f.count) for f in found] == [("unused_key", "warn", n) for n in (2, 1, 2)]
    assert ["'reasoning_content'" in f.message for f in found] == [True, False, False]
    assert found[0].examples == ("chats.jsonl:7", "chats.jsonl:7")
    assert ["'name'" in f.message for f in unused_keys(renderer_of("qwen3"), [thinking, tools])] == [True]


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ModelError, match="which characters a token stands for"):
        Renderer(SimpleNamespace(is_fast=False))


# Rows that cannot be rendered

SYSTEM = Message("system", "SECRET rules")
SILENT_SYSTEM = CHATML.replace("for message in messages", "for message in messages if message.role != 'system'")
DROPS_THINKING = CHATML.replace("message.content", "message.content.split('</think>')[-1]")
HIDES = CHATML.replace("message.content", "message.content | replace('SECRET', '***')")
CALL = {"function": {"name": "f", "arguments": {}}}
BAD_ROWS = {
    "a role that the template refuses": ("gemma", None, [SYSTEM, user("Hi"), assistant("Hello")], "role 'system'"),
    "a role that it skips": (
        "chatml",
        SILENT_SYSTEM,
        [SYSTEM, user("Hi"), assistant("Hello")],
        "leaves out .* 'system'",
    ),
    "turns out of order": (
        "mistral",
        None,
        [user("Hi"), user("SECRET"), assistant("Hello")],
        "cannot render this conv",
    ),
    "a newline that merges": ("qwen2.5", None, [user("SECRET"), assistant("\nSECRET")], "reaches over the cut"),
    "an answer to nothing": ("chatml", None, [assistant("SECRET"), user("Hi"), assistant("Hi")], "before any other"),
    "thinking left out": (
        "chatml",
        DROPS_THINKING,
        [user("Hi"), assistant("<think>SECRET</think>So")],
        "leaves out or",
    ),
    "an answer rewritten": ("chatml", HIDES, [user("Hi"), assistant("A SECRET.")], "rewrites part of the answer"),
    "calls left out": (
        "chatml",
        None,
        [user("Hi"), assistant("SECRET", tool_calls=[CALL])],
        "leaves out the tool calls",
    ),
    "no assistant": ("chatml", None, [user("SECRET")], "nothing in this conversation is to be learnt"),
    "all weights 0": (
        "chatml",
        None,
        [user("Hi"), Message("assistant", "SECRET", 0.0)],
        "nothing in this conversation",
    ),
    "a weight on a question": ("chatml", None, [Message("user", "SECRET", 1.0), assistant("So")], "only assistant"),
}


@pytest.mark.parametrize(("family", "template", "messages", "what"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_row_that_cannot_be_exact_is_named_and_not_quoted(
    family: str, template: str | None, messages: list[Message], what: str
) -> None:
    with pytest.raises(DataError, match=what) as caught:
        renderer_of(family, template).render(row(*messages))
    assert caught.value.where.startswith("chats.jsonl:7 (example row-1)")
    assert "SECRET" not in str(caught.value).upper()


def test_the_templates_own_words_are_shown_only_if_they_are_the_templates() -> None:
    with pytest.raises(InputError) as caught:
        renderer_of("gemma").render(row(SYSTEM, user("Hi"), assistant("Hello")))
    assert "the template says: System role not supported" in str(caught.value)
    quoting = CHATML.replace(
        "{{ '<|im_start|>' + message.role",
        "{{ raise_exception('no: ' + message.content) if message.role == 'system' }}{{ '<|im_start|>' + message.role",
    )
    with pytest.raises(InputError) as caught:
        renderer_of("chatml", quoting).render(row(SYSTEM, user("Hi"), assistant("Hello")))
    assert "SECRET" not in str(caught.value)


def test_arguments_go_in_as_text_where_the_template_joins_them() -> None:
    joins = CHATML.replace(
        "message.content +",
        "message.content + (message.tool_calls[0].function.arguments if message.tool_calls else '') +",
    )
    renderer = renderer_of("chatml", joins)
    for arguments in ({"city": "Oslo"}, '{"city": "Oslo"}'):
        called = assistant("", tool_calls=[{"function": {"name": "f", "arguments": arguments}}])
        sequence = renderer.render(row(user("Hi"), called))
        learnt = renderer.tokenizer.decode(sequence.tokens_T[sequence.weights_T > 0])
        assert learnt == '{"city": "Oslo"}<|im_end|>'


# Prompts, texts, documents


def test_a_prompt_is_the_same_with_and_without_the_answer() -> None:
    renderer = renderer_of("llama3")
    asked = (Message("system", "Be brief."), user("Hi"))
    prompt = renderer.prompt(asked)
    assert prompt == renderer.prompt((*asked, assistant("Hello")))
    assert renderer.tokenizer.decode(prompt).endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    with pytest.raises(DataError, match="at least one message"):
        renderer.prompt((assistant("Hello"),))
    with pytest.raises(DataError, match="role 'system'"):
        renderer_of("gemma").prompt(asked)


def test_plain_text_has_bos_where_the_tokenizer_puts_one_and_always_ends_in_eos() -> None:
    for name, first in (("llama3", "<|begin_of_text|>"), ("chatml", "")):
        renderer = renderer_of(name)
        sequence = renderer.render_text(Text("t", "The station is\n\nthe second street.", FROM))
        shown = renderer.tokenizer.decode(sequence.tokens_T)
        assert shown == first + "The station is\n\nthe second street." + renderer.tokenizer.eos_token
        assert sequence.weights_T[0] == 0
        assert (sequence.weights_T[1:] == 1).all()
    with pytest.raises(DataError, match="nothing to learn"):
        renderer_of("chatml").render_text(Text("t", "", FROM))


def test_a_document_has_the_tokenizers_own_special_tokens_and_no_targets() -> None:
    renderer = Renderer(encoder_tokenizer())
    sequence = renderer.render_document(Labelled("d", "hello there", ("greeting",), FROM), (2.0,))
    tokens = renderer.tokenizer.convert_ids_to_tokens(sequence.tokens_T.tolist())
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")
    assert not sequence.weights_T.any()
    assert sequence.label == (2.0,)
    assert sequence.tokens_T.tolist() == renderer.document("hello there")


@EVERY
def test_the_sample_shown_is_the_decoded_sequence(family: Family) -> None:
    renderer = renderer_of(family.name)
    sequence = renderer.render(row(user("Grüße 🙂🎻?"), assistant("  日本語 🎻 café\n\n  yes")), turns="last")
    shown = describe(sequence, renderer.tokenizer)
    assert "".join(token.text for token in shown) == renderer.tokenizer.decode(sequence.tokens_T)
    assert [token.weight for token in shown] == sequence.weights_T.tolist()


# Lengths

BOS, SEP = 1, 2
FRAME = Frame(BOS, SEP)


def sequence_of(tokens: list[int], supervised_from: int | None) -> Sequence:
    weights = np.zeros(len(tokens), dtype=np.float32)
    if supervised_from is not None:
        weights[supervised_from:] = 1
    return Sequence("s", np.asarray(tokens, dtype=np.int32), weights)


def test_over_long_sequences_are_kept_whole_refused_or_dropped() -> None:
    chat = sequence_of([BOS, 10, 11, 12, 13, 20, 21], 5)
    assert fit(chat, 7, "refuse") == (chat, "kept")
    assert fit(chat, 6, "refuse") == (None, "refused")
    assert fit(chat, 6, "drop") == (None, "dropped")


def test_a_cut_prompt_keeps_bos_and_every_target() -> None:
    chat = sequence_of([BOS, 10, 11, 12, 13, 20, 21], 5)
    assert tokens_of(fit(chat, 5, "cut_prompt", frame=FRAME)) == [BOS, 12, 13, 20, 21]
    assert tokens_of(fit(chat, 3, "cut_prompt", frame=FRAME)) == [BOS, 20, 21]
    assert fit(chat, 2, "cut_prompt", frame=FRAME) == (None, "refused")
    # Without a BOS to keep, the token before the first target stays: it is what the target is predicted from.
    assert tokens_of(fit(chat, 3, "cut_prompt")) == [13, 20, 21]
    assert fit(chat, 2, "cut_prompt") == (None, "refused")


def test_a_cut_end_keeps_the_closing_token_of_a_document() -> None:
    document = sequence_of([BOS, 10, 11, 12, SEP], None)
    assert tokens_of(fit(document, 4, "cut_end", frame=FRAME)) == [BOS, 10, 11, SEP]
    assert tokens_of(fit(document, 4, "cut_prompt", frame=FRAME)) == [BOS, 11, 12, SEP]
    chat = sequence_of([BOS, 10, 11, 20, 21], 3)
    assert tokens_of(fit(chat, 4, "cut_end", frame=FRAME)) == [BOS, 10, 11, 20]
    assert fit(chat, 3, "cut_end", frame=FRAME) == (None, "refused")


def tokens_of(fitted: Any) -> list[int]:
    return fitted.sequence.tokens_T.tolist()


@given(
    length=st.integers(1, 40),
    max_length=st.integers(3, 12),
    start=st.sampled_from([BOS, 99]),
    policy=st.sampled_from(["cut_prompt", "cut_end"]),
    supervised_from=st.none() | st.integers(1, 40),
)
def test_what_is_cut_fits_and_loses_no_target_of_a_cut_prompt(
    length: int, max_length: int, start: int, policy: Any, supervised_from: int | None
) -> None:
    sequence = sequence_of([start, *range(100, 99 + length)], supervised_from)
    fitted = fit(sequence, max_length, policy, frame=FRAME).sequence
    if fitted is None:
        return
    assert len(fitted.tokens_T) <= max_length or len(fitted.tokens_T) == length <= max_length
    assert len(fitted.tokens_T) == min(length, max_length)
    assert fitted.weights_T[0] == 0
    if policy == "cut_prompt":
        assert fitted.weights_T.sum() == sequence.weights_T.sum()


@given(length=st.integers(1, 60), max_length=st.integers(3, 12), start=st.sampled_from([BOS, 99]))
def test_pieces_of_a_text_teach_every_token_once_from_the_one_before_it(
    length: int, max_length: int, start: int
) -> None:
    text = sequence_of([start, *range(100, 99 + length)], 1)
    parts = pieces(text, max_length, frame=FRAME)
    pairs = []
    for part in parts:
        assert len(part.tokens_T) <= max_length
        assert (part.tokens_T[0] == BOS) == (start == BOS)
        assert part.weights_T[0] == 0
        targets = np.flatnonzero(part.weights_T)
        assert len(targets) or length == 1
        pairs += [(int(part.tokens_T[i - 1]), int(part.tokens_T[i])) for i in targets]
    whole = text.tokens_T.tolist()
    assert pairs == list(pairwise(whole))
