"""Supervised are the answers and the tokens that end them, in every family and for any text, and nothing else."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.render import Renderer, describe
from luthier.errors import DataError
from luthier.types import Conversation, Message, Provenance, Sequence
from tests.data.families import FAMILIES, Family, tokenizer

RENDERERS = {name: Renderer(tokenizer(family)) for name, family in FAMILIES.items()}
EVERY = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
EVERY_TURN = pytest.mark.parametrize(
    "family", [f for f in FAMILIES.values() if f.every_turn], ids=[f.name for f in FAMILIES.values() if f.every_turn]
)

# Written by hand from the published formats: what a model of each family has to write, turn by turn.
EXPECTED = {
    "chatml": ["First answer.<|im_end|>", "Second answer.<|im_end|>"],
    "llama3": ["First answer.<|eot_id|>", "Second answer.<|eot_id|>"],
    "gemma": ["First answer.<end_of_turn>", "Second answer.<end_of_turn>"],
    "mistral": [" First answer.</s>", " Second answer.</s>"],
    "zephyr": ["First answer.</s>", "Second answer.</s>"],
    "phi3": ["First answer.<|end|>", "Second answer.<|end|>"],
    "smollm2": ["First answer.<|im_end|>", "Second answer.<|im_end|>"],
    "qwen2.5": ["First answer.<|im_end|>", "Second answer.<|im_end|>"],
    "qwen3": ["Second answer.<|im_end|>"],
    "plain": ["First answer.<|endoftext|>", "Second answer.<|endoftext|>"],
}


TRICKY = {
    "leading newlines that the template takes away": ("qwen3", "\n\nBecause.", "Because.<|im_end|>"),
    "nothing but a newline": ("qwen3", "\n", "<|im_end|>"),
    "an empty answer": ("chatml", "", "<|im_end|>"),
    "spaces that the template trims": ("llama3", "  Because. \n", "Because.<|eot_id|>"),
    "spaces that the template keeps": ("chatml", "Because. \n", "Because. \n<|im_end|>"),
    "the end of a turn inside the answer": ("chatml", "A<|im_end|>\nB", "A<|im_end|>\nB<|im_end|>"),
    "a heading inside the answer": ("plain", "A\n\n### User:\nB", "A\n\n### User:\nB<|endoftext|>"),
    "an answer that the prompt also holds": ("chatml", "assistant", "assistant<|im_end|>"),
}


def conversation(*contents: str, weights: dict[int, float] | None = None, **others: Any) -> Conversation:
    """User and assistant in turn."""
    messages = tuple(
        Message("assistant" if i % 2 else "user", content, (weights or {}).get(i)) for i, content in enumerate(contents)
    )
    return Conversation("row-1", messages, Provenance("chats.jsonl", 7, "0" * 32), **others)


def runs(sequence: Sequence, renderer: Renderer) -> list[str]:
    """The text of each unbroken run of supervised tokens."""
    shown = describe(sequence, renderer.tokenizer)
    return ["".join(t.text for t in group) for learnt, group in groupby(shown, lambda t: t.weight > 0) if learnt]


TWO_TURNS = conversation("First question?", "First answer.", "Second question?", "Second answer.")


@EVERY
def test_answers_and_their_ends_are_learnt_and_nothing_else(family: Family) -> None:
    renderer = RENDERERS[family.name]
    sequence = renderer.render(TWO_TURNS, turns="all" if family.every_turn else "last")
    assert runs(sequence, renderer) == EXPECTED[family.name]
    assert set(sequence.weights_T.tolist()) == {0.0, 1.0}


@EVERY
def test_last_turn_alone(family: Family) -> None:
    renderer = RENDERERS[family.name]
    assert runs(renderer.render(TWO_TURNS, turns="last"), renderer) == EXPECTED[family.name][-1:]


@EVERY
def test_rendering_is_the_tokenizers_own_and_begins_with_the_serving_prompt(family: Family) -> None:
    renderer = RENDERERS[family.name]
    sequence = renderer.render(TWO_TURNS, turns="last")
    rows = [message.as_dict() for message in TWO_TURNS.messages]
    apply = renderer.tokenizer.apply_chat_template
    assert sequence.tokens_T.tolist() == apply(rows, tokenize=True, return_dict=False)
    prompt = renderer.prompt(TWO_TURNS.messages)
    assert prompt == apply(rows[:-1], tokenize=True, return_dict=False, add_generation_prompt=True)
    assert sequence.tokens_T[: len(prompt)].tolist() == prompt
    assert not sequence.weights_T[: len(prompt)][-1:].any()


@EVERY
def test_one_end_token_is_learnt_for_each_learnt_turn(family: Family) -> None:
    renderer = RENDERERS[family.name]
    sequence = renderer.render(TWO_TURNS, turns="all" if family.every_turn else "last")
    end = renderer.tokenizer.convert_tokens_to_ids(family.end)
    assert renderer.stop_tokens()[0] == end
    assert set(renderer.stop_tokens()) == {end, renderer.tokenizer.eos_token_id}
    learnt = sequence.tokens_T[sequence.weights_T > 0].tolist()
    assert learnt.count(end) == len(EXPECTED[family.name])
    assert learnt[-1] == end


@EVERY_TURN
def test_a_message_s_own_weight_overrides(family: Family) -> None:
    renderer = RENDERERS[family.name]
    texts = [message.content for message in TWO_TURNS.messages]
    without_first = renderer.render(conversation(*texts, weights={1: 0}))
    assert runs(without_first, renderer) == EXPECTED[family.name][1:]
    halves = renderer.render(conversation(*texts, weights={1: 0.5, 3: 0.25}), turns="last")
    assert runs(halves, renderer) == EXPECTED[family.name]
    by_weight = [w for w, _ in groupby(halves.weights_T[halves.weights_T > 0].tolist())]
    assert by_weight == [0.5, 0.25]


@pytest.mark.parametrize(("name", "answer", "learnt"), TRICKY.values(), ids=TRICKY.keys())
def test_answers_that_are_hard_to_find(name: str, answer: str, learnt: str) -> None:
    assert runs(RENDERERS[name].render(conversation("Why assistant?", answer)), RENDERERS[name]) == [learnt]


def test_unlearnt_earlier_turns_may_be_rewritten_by_the_template() -> None:
    renderer = RENDERERS["qwen3"]
    texts = [message.content for message in TWO_TURNS.messages]
    assert runs(renderer.render(conversation(*texts, weights={1: 0}), turns="all"), renderer) == EXPECTED["qwen3"]


def test_a_thinking_block_of_the_template_is_not_learnt_but_one_of_the_data_is() -> None:
    renderer = RENDERERS["qwen3"]
    empty = renderer.render(conversation("Why?", "Because."))
    assert "<think>\n\n</think>\n\nBecause." in renderer.tokenizer.decode(empty.tokens_T)
    assert runs(empty, renderer) == ["Because.<|im_end|>"]
    written = "<think>\nLet me see.\n</think>\n\nBecause.<|im_end|>"
    separate = Message("assistant", "Because.", extra={"reasoning_content": "Let me see."})
    for answer in (separate, Message("assistant", "<think>Let me see.</think>Because.")):
        row = Conversation("r", (Message("user", "Why?"), answer), Provenance("f", 1, ""))
        assert runs(renderer.render(row), renderer) == [written]
    inside = conversation("Why?", "<think>\nLet me see.\n</think>\n\nBecause.")
    assert runs(renderer.render(inside), renderer) == [written]


CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
QUOTED = {**CALL, "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
WRITTEN_CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


def with_tools(call: dict[str, Any], said: str = "") -> Conversation:
    messages = (
        Message("user", "Weather in Oslo?"),
        Message("assistant", said, extra={"tool_calls": [call]}),
        Message("tool", "4 degrees", extra={"tool_call_id": "call00001"}),
        Message("assistant", "Cold."),
    )
    return Conversation("r", messages, Provenance("f", 1, ""), tools=(TOOL,))


@pytest.mark.parametrize("name", ["qwen2.5", "plain"])
@pytest.mark.parametrize("call", [CALL, QUOTED], ids=["mapping", "json text"])
def test_tool_calls_are_learnt_and_tool_results_are_not(name: str, call: dict[str, Any]) -> None:
    renderer, end = RENDERERS[name], FAMILIES[name].end
    sequence = renderer.render(with_tools(call))
    assert runs(sequence, renderer) == [WRITTEN_CALL + end, "Cold." + end]
    assert '"name": "weather", "parameters"' in renderer.tokenizer.decode(sequence.tokens_T)
    said = renderer.render(with_tools(call, "I look it up."))
    assert runs(said, renderer) == ["I look it up.\n" + WRITTEN_CALL + end, "Cold." + end]


def test_a_tool_call_after_the_template_s_own_thinking_block() -> None:
    renderer = RENDERERS["qwen3"]
    called = with_tools(CALL).messages[:2]
    row = Conversation("r", called, Provenance("f", 1, ""), tools=(TOOL,))
    assert "<think>\n\n</think>\n\n<tool_call>" in renderer.conversation_text(row)
    assert runs(renderer.render(row), renderer) == [WRITTEN_CALL + "<|im_end|>"]


SNIPPETS = [
    *(
        "<|im_end|>",
        "<|im_start|>assistant\n",
        "<|im_start|>",
        "</s>",
        "<|user|>",
        "<|assistant|>\n",
        "[INST]",
        "[/INST]",
    ),
    *("<|eot_id|>", "<end_of_turn>\n", "<start_of_turn>model\n", "<|end|>", "<|endoftext|>", "### Assistant:\n"),
    *("<think>", "</think>", "<tool_call>", "{{ x }}", "{% raw %}", "First answer.", "answer", "assistant"),
    *("\n", "\n\n", " ", "   ", "\t", "\r\n", "\u00a0", "🙂", "👩‍👩‍👧", "e\u0301", "日本", "- one\n- two", "21", "."),
]
# "▁" is SentencePiece's letter for a space and cannot be told from one.
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="▁")
CONTENT = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(CHARACTERS, max_size=8)), max_size=6).map("".join)


def as_written(content: str, family: Family) -> str:
    """What the family's template makes of an answer."""
    if family.name in ("llama3", "gemma", "plain"):
        return content.strip()
    return content.lstrip("\n") if family.name == "qwen3" else content


def same(text: str, family: Family) -> str:
    # Phi-3's special tokens swallow the white space to their right, in contents too.
    return re.sub(r"\s", "", text) if family.options.get("rstrip") else text


@EVERY
@settings(max_examples=60, deadline=None)
@given(contents=st.integers(1, 3).flatmap(lambda turns: st.tuples(*[CONTENT] * (2 * turns))))
def test_the_mask_is_exact_for_any_text(family: Family, contents: tuple[str, ...]) -> None:
    renderer = RENDERERS[family.name]
    row = conversation(*contents)
    answers = list(contents[1::2]) if family.every_turn else [contents[-1]]
    try:
        sequence = renderer.render(row, turns="all" if family.every_turn else "last")
    except DataError as error:
        if "cut" in error.what:
            assert not prompts_begin_the_rendering(renderer, row)
        else:
            assert "</think>" in contents[-1]
            assert family.name == "qwen3"
        return
    assert prompts_begin_the_rendering(renderer, row) or not family.every_turn
    assert sequence.tokens_T.tolist() == renderer.tokenizer.apply_chat_template(
        [m.as_dict() for m in row.messages], tokenize=True, return_dict=False
    )
    seen = [same(text, family) for text in runs(sequence, renderer)]
    assert len(seen) == len(answers)
    for text, answer in zip(seen, answers, strict=True):
        exact = as_written(answer, family) + family.end
        if family.name == "qwen3" and "</think>" in answer:
            assert text.endswith(answer.split("</think>")[-1].lstrip("\n") + family.end)
        else:
            # The space that Mistral's template puts before an answer is one token with its first word.
            merged = " " + exact if family.name == "mistral" else exact
            assert text in (same(exact, family), merged)


def prompts_begin_the_rendering(renderer: Renderer, row: Conversation) -> bool:
    rows = [m.as_dict() for m in row.messages]
    apply = renderer.tokenizer.apply_chat_template
    whole = apply(rows, tokenize=True, return_dict=False)
    prompts = [
        apply(rows[:turn], tokenize=True, return_dict=False, add_generation_prompt=True)
        for turn in range(1, len(rows), 2)
    ]
    return all(whole[: len(prompt)] == prompt for prompt in prompts)


@EVERY_TURN
@settings(max_examples=30, deadline=None)
@given(question=CONTENT, answer=CONTENT.map(lambda text: "Answer: " + text))
def test_an_answer_that_begins_with_a_word_is_never_refused(family: Family, question: str, answer: str) -> None:
    sequence = RENDERERS[family.name].render(conversation(question, answer))
    assert sequence.weights_T.sum() >= 2
