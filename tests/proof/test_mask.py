"""The mask, read back from rendered rows: right for every family's template, and each planted fault is named. No text
of a row is ever in what is said."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.length import pieces
from luthier.data.pack import pack
from luthier.data.render import Renderer
from luthier.errors import DataError
from luthier.proof import mask as module
from luthier.proof.mask import Row, mask
from luthier.types import Conversation, Labelled, Message, Provenance, Sequence, Text
from tests.data.families import FAMILIES, tokenizer

SECRET = "Mrs Featherstonehaugh"
WHERE = Provenance("chats.jsonl", 7, "0" * 32)


def conversation(*contents, weights=None):
    messages = tuple(
        Message("assistant" if i % 2 else "user", content, (weights or {}).get(i)) for i, content in enumerate(contents)
    )
    return Conversation("row-1", messages, WHERE)


def rendered(renderer, example, turns="all"):
    return Row(example, [renderer.render(example, turns=turns)])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("turns", ["all", "last"])
def test_every_template_is_masked_as_it_should_be(name, turns):
    family = FAMILIES[name]
    if turns == "all" and not family.every_turn:
        pytest.skip("this template writes earlier turns differently")
    made = tokenizer(family)
    example = conversation("First question?", "First answer.", "Second question?", "Second answer.")
    proof = mask([rendered(Renderer(made), example, turns)], made, turns=turns)
    assert proof.passed, proof


@settings(deadline=None, max_examples=60)
@given(
    question=st.text(min_size=1, max_size=30),
    answer=st.text(min_size=1, max_size=30),
    name=st.sampled_from(["chatml", "llama3", "mistral", "qwen2.5"]),
)
def test_any_text_that_renders_is_masked_as_it_should_be(question, answer, name):
    made = tokenizer(FAMILIES[name])
    try:
        row = rendered(Renderer(made), conversation(question, answer))
    except DataError:
        return
    proof = mask([row], made)
    assert proof.passed, proof


@pytest.fixture(scope="module")
def made():
    return tokenizer(FAMILIES["chatml"])


@pytest.fixture(scope="module")
def row(made):
    example = conversation(f"Who is {SECRET}?", f"{SECRET} is a maker of violins.", "And who else?", "Nobody else is.")
    return rendered(Renderer(made), example)


def changed(row, change):
    """The row with other weights."""
    weights = row.documents[0].weights_T.copy()
    change(weights)
    return Row(row.example, [replace_weights(row.documents[0], weights)])


def replace_weights(document, weights):
    return Sequence(document.id, document.tokens_T, weights, document.label)


def set_to(place, value):
    def change(weights):
        weights[place(np.flatnonzero(weights))] = value

    return change


FAULTS = {
    "the end of the last turn": (set_to(lambda at: at[-1], 0), module.END),
    "the newline after the last turn": (set_to(lambda at: at[-1] + 1, 1), module.BEHIND),
    "the last letter before the end": (set_to(lambda at: at[-2], 0), module.COUNT),
    "the first token of an answer": (set_to(lambda at: at[0], 0), module.PART),
    "the newline before an answer": (set_to(lambda at: at[0] - 1, 1), module.MORE),
    "the prompt": (set_to(lambda at: slice(0, at[0]), 1), module.MORE),
    "one turn of two": (set_to(lambda at: at[: 1 + int(np.argmax(np.diff(at)))], 0), module.COUNT),
    "half the weight": (set_to(lambda at: at, 0.5), module.WEIGHT),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_with_its_row_and_without_its_text(made, row, name):
    change, kind = FAULTS[name]
    proof = mask([row, changed(row, change)], made)
    assert proof.passed is False
    assert (proof.largest, proof.bound) == (1.0, 0.0)
    assert kind in proof.detail
    assert "1 of 2 rows, such as chats.jsonl:7" in proof.detail
    assert SECRET not in str(proof)


def test_the_right_mask_at_the_wrong_place_is_found(made, row):
    def shifted(documents):
        batch = pack(documents)
        return replace(batch, select_S=torch.clamp(batch.select_S + 1, max=batch.tokens - 1))

    proof = mask([row], made, rendered=shifted)
    assert proof.passed is False
    assert module.SHIFT in proof.detail


def test_an_answer_that_the_question_holds_as_well_is_learnt_where_it_is_the_answer(made):
    renderer = Renderer(made)
    row = rendered(renderer, conversation("Say: yes", "yes"))
    tokens = row.documents[0].tokens_T.tolist()
    learnt = np.flatnonzero(row.documents[0].weights_T)
    assert mask([row], made).passed

    # The same words with the same end, learnt in the question.
    user_end = tokens.index(tokens[learnt[-1]])
    weights = np.zeros(len(tokens), dtype=np.float32)
    weights[user_end - len(learnt) + 1 : user_end + 1] = 1
    proof = mask([Row(row.example, [replace_weights(row.documents[0], weights)])], made)
    assert proof.passed is False


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_calls_of_tools_are_learnt_behind_their_prompt(name):
    made = tokenizer(FAMILIES[name])
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    messages = (
        Message("user", "Is it cold?"),
        Message("assistant", "", None, {"tool_calls": [call]}),
        Message("tool", "-4"),
        Message("assistant", "It is."),
    )
    example = Conversation("row-1", messages, WHERE, ({"type": "function", "function": {"name": "weather"}},))
    turns = "all" if FAMILIES[name].every_turn else "last"
    row = rendered(Renderer(made), example, turns)
    proof = mask([row], made, turns=turns)
    assert proof.passed, proof
    early = changed(row, set_to(lambda at: at[0] - 1, 1))
    assert mask([early], made, turns=turns).passed is False


def test_a_message_that_is_left_out_by_its_weight_must_not_be_learnt(made):
    renderer = Renderer(made)
    example = conversation("a?", "first", "b?", "second", weights={1: 0.0, 3: 0.25})
    row = rendered(renderer, example)
    assert mask([row], made).passed
    told_otherwise = conversation("a?", "first", "b?", "second")
    assert mask([Row(told_otherwise, row.documents)], made).passed is False


def test_a_text_in_pieces_is_learnt_once_and_whole(made):
    text = Text("t", "One two three. " * 20, WHERE)
    whole = Renderer(made).render_text(text)
    parts = pieces(whole, 16)
    assert len(parts) > 3
    assert mask([Row(text, parts)], made).passed
    assert module.TEXT in mask([Row(text, [*parts[:1], *parts[2:]])], made).detail
    silent_end = replace_weights(parts[-1], np.append(parts[-1].weights_T[:-1], np.float32(0)))
    assert module.END in mask([Row(text, [*parts[:-1], silent_end])], made).detail


@pytest.mark.parametrize(
    ("names", "label", "right"),
    [
        (("b",), (1.0,), True),
        (("b",), (0.0,), False),
        (("a", "c"), (1.0, 0.0, 1.0), True),
        (("a",), (1.0, 1.0, 0.0), False),
        ((), (0.0, 0.0, 0.0), True),
    ],
)
def test_every_row_is_trained_with_its_own_label(made, names, label, right):
    example = Labelled("l", "some text", names, WHERE)
    row = Row(example, [Renderer(made).render_document(example, label)])
    proof = mask([row], made, labels=("a", "b", "c"))
    assert proof.passed is right
    assert right or module.LABEL in proof.detail


def test_every_row_is_trained_with_its_own_number(made):
    example = Labelled("l", "some text", (), WHERE, value=0.3)
    for value, right in ((0.3, True), (0.4, False)):
        row = Row(example, [Renderer(made).render_document(example, (float(np.float32(value)),))])
        assert mask([row], made).passed is right
