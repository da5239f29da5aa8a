"""Formats: what rows of each form mean, that detection says why, and that equal content has one hash in every file."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.detect import NAMES, NEEDED, detect
from luthier.data.formats import FORMATS, digest, split_key
from luthier.data.read import Record, records
from luthier.data.rows import BadRow
from luthier.recipe import Columns
from luthier.recipe.data import Format
from luthier.types import Conversation, Example, Labelled, Text


def convert(row: dict[str, Any], *, file: str = "rows.jsonl", line: int = 1, **columns: str) -> Example:
    found = detect([row], Columns.model_validate(columns))
    return FORMATS[found.format](Record(file, line, row), found.columns)


def said(example: Example) -> list[tuple[str, str]]:
    assert isinstance(example, Conversation)
    return [(message.role, message.content) for message in example.messages]


def test_the_tables_cover_every_format_of_the_recipe() -> None:
    from typing import get_args

    assert set(FORMATS) == set(NAMES) == set(NEEDED) == set(get_args(Format))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "messages"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "sharegpt"),
        ({"conversations": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "messages"),
        ({"instruction": "Q", "input": None, "output": "A"}, "alpaca"),
        ({"prompt": "Q", "completion": "A"}, "prompt_completion"),
        ({"question": "Q", "answer": "A"}, "question_answer"),
        ({"Question": "Q", "Response": "A"}, "question_answer"),
        ({"input_text": "Q", "choices": ["a"], "answer": "A"}, "question_answer"),
        ({"query": "Q", "response": "A", "id": 7}, "question_answer"),
        ({"text": "Q", "category": "c"}, "labelled"),
        ({"text": "Q", "label": 3}, "labelled"),
        ({"text": "Q", "label": 0.25}, "regression"),
        ({"review": "Q", "score": "4"}, "regression"),
        ({"text": "Q", "url": "u"}, "text"),
    ],
)
def test_detection_knows_common_columns_and_says_which(row: dict[str, Any], expected: str) -> None:
    found = detect([row], Columns())
    assert found.format == expected
    assert "1 of 1 rows" in found.why
    assert all(f"`{column}`" in found.why for column in row)


def test_detection_says_what_it_saw() -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    found = detect([{"messages": turns, "day": 1}] * 20, Columns())
    assert found.why == (
        "messages: column `messages` holds lists of objects with role and content in 20 of 20 rows; not used: `day`"
    )


def test_the_recipe_overrides_detection() -> None:
    row = {"dialogue": "D", "section_text": "S", "question": "Q", "answer": "A"}
    assert said(convert(row, prompt="dialogue", completion="section_text")) == [("user", "D"), ("assistant", "S")]
    assert said(convert(row, completion="section_text", prompt="question")) == [("user", "Q"), ("assistant", "S")]
    found = detect([{"text": "T", "label": "x"}], Columns(), "text")
    assert (found.format, dict(found.columns)) == ("text", {"text": "text"})


def test_the_form_of_most_rows_wins() -> None:
    sample = [{"text": "T"}] * 9 + [{"prompt": "Q", "completion": "A"}]
    assert detect(sample, Columns()).format == "text"


def test_openai_messages_with_tools_weights_and_unknown_keys() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}],
                "name": "Ann",
            },
            {"role": "assistant", "content": None, "tool_calls": [call], "weight": 0},
            {"role": "tool", "content": "3", "tool_call_id": "c1"},
            {"role": "assistant", "content": "Three.", "reasoning_content": "1 + 2", "refusal": None},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "ticket": 12,
    }
    example = convert(row)
    assert isinstance(example, Conversation)
    roles = [message.role for message in example.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]
    assert example.messages[1].content == "One two"
    assert example.messages[1].extra == {"name": "Ann"}
    assert example.messages[2].extra["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert [message.weight for message in example.messages] == [None, None, 0.0, None, None]
    assert example.messages[4].extra == {"reasoning_content": "1 + 2"}
    assert example.tools[0]["function"]["name"] == "f"
    assert example.columns == {"ticket": 12}


def test_functions_and_function_call_are_the_older_form_of_tools() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
            {"role": "function", "name": "f", "content": "2"},
            {"role": "assistant", "content": "Two."},
        ],
        "functions": [{"name": "f", "parameters": {}}],
    }
    example = convert(row)
    assert isinstance(example, Conversation)
    assert example.tools == ({"type": "function", "function": {"name": "f", "parameters": {}}},)
    assert example.messages[1].extra["tool_calls"] == [
        {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    ]
    assert (example.messages[2].role, example.messages[2].extra) == ("tool", {"name": "f"})


def test_sharegpt_calls_and_observations() -> None:
    row = {
        "conversations": [
            {"from": "system", "value": "S"},
            {"from": "human", "value": "Q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "observation", "value": "2"},
            {"from": "gpt", "value": "Two."},
        ],
        "tools": '[{"name": "f"}]',
    }
    example = convert(row)
    assert [role for role, _ in said(example)] == ["system", "user", "assistant", "tool", "assistant"]
    assert isinstance(example, Conversation)
    assert example.messages[2].extra["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert example.tools == ({"type": "function", "function": {"name": "f"}},)


def test_alpaca_joins_input_and_puts_history_and_system_first() -> None:
    row = {"instruction": "I", "input": "N", "output": "O", "system": "S", "history": [["Q1", "A1"]]}
    expected = [("system", "S"), ("user", "Q1"), ("assistant", "A1"), ("user", "I\n\nN"), ("assistant", "O")]
    assert said(convert(row)) == expected


def test_prompt_and_completion_may_be_turns_and_only_the_completion_is_learnt() -> None:
    row = {
        "prompt": [
            {"role": "user", "content": "Q1"},
            {"role": "assistant", "content": "A1"},
            {"role": "user", "content": "Q2"},
        ],
        "completion": [{"role": "assistant", "content": "A2"}],
    }
    example = convert(row)
    assert isinstance(example, Conversation)
    assert [message.weight for message in example.messages] == [None, 0.0, None, None]


def test_a_conversation_may_open_with_the_assistant_and_say_something_before_a_call() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": {}}}
    row = {
        "messages": [
            {"role": "assistant", "content": "Hello!"},
            {"role": "user", "content": "Q"},
            {"role": "assistant", "content": "One moment."},
            {"role": "assistant", "tool_calls": [call]},
        ]
    }
    assert len(said(convert(row))) == 4


@pytest.mark.parametrize(
    ("column", "value", "labels"),
    [
        ("label", "card", ("card",)),
        ("label", " card ", ("card",)),
        ("label", 3, ("3",)),
        ("label", 3.0, ("3",)),
        ("label", True, ("true",)),
        ("label", "a|b", ("a|b",)),
        ("labels", "b|a", ("a", "b")),
        ("labels", ["b", "a", "b"], ("a", "b")),
        ("label", '["b", "a"]', ("a", "b")),
        ("labels", [], ()),
    ],
)
def test_labels(column: str, value: object, labels: tuple[str, ...]) -> None:
    example = convert({"text": "T", column: value})
    assert isinstance(example, Labelled)
    assert (example.labels, example.value) == (labels, None)


def test_several_labels_are_detected() -> None:
    assert detect([{"text": "T", "labels": ["a"]}], Columns()).multi
    assert detect([{"text": "T", "labels": "a|b"}], Columns()).multi
    assert not detect([{"text": "T", "label": "a|b"}], Columns()).multi


def test_numbers_to_predict_may_stand_as_text() -> None:
    for value in (2.5, "2.5", " +2.5e0 "):
        example = convert({"text": "T", "score": value})
        assert isinstance(example, Labelled)
        assert (example.value, example.labels) == (2.5, ())


def test_ids_come_from_the_row_or_from_file_and_line() -> None:
    assert convert({"text": "T", "ID": 12}).id == "12"
    assert convert({"text": "T", "id": None}, file="data/tickets.csv.gz", line=9).id == "tickets:9"
    assert convert({"text": "T"}, file="-", line=3).id == "-:3"


def test_a_row_without_the_columns_is_told_which_it_lacks() -> None:
    with pytest.raises(BadRow, match="lacks column `answer`") as caught:
        FORMATS["question_answer"](
            Record("a", 1, {"question": "Q", "text": "T"}), {"prompt": "question", "completion": "answer"}
        )
    assert caught.value.do.startswith("It has `question`, `text`")


PAIRS = [
    {"id": "1", "question": "Où?\nWo?", "answer": 'say "ß"', "note": ""},
    {"id": "2", "question": "Two", "answer": "7", "note": "x"},
]
CHATS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "Q"},
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}],
            },
            {"role": "tool", "content": "2", "tool_call_id": "1"},
            {"role": "assistant", "content": "Two.", "weight": 1.0},
        ],
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"type": "number"}}}}}
        ],
    },
    {"messages": [{"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"}], "tools": None},
]


def as_csv(data: list[dict[str, Any]]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(data[0]))
    writer.writeheader()
    plain = [{k: v if isinstance(v, str) or v is None else json.dumps(v) for k, v in row.items()} for row in data]
    writer.writerows(plain)
    return out.getvalue().encode("utf-8")


def as_parquet(data: list[dict[str, Any]]) -> bytes:
    import pyarrow as arrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(data), out)
    return out.getvalue()


@pytest.mark.parametrize("data", [PAIRS, CHATS], ids=["pairs", "chats"])
def test_equal_rows_have_equal_hashes_in_every_kind_of_file(tmp_path: Path, data: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in data).encode()
    files = {
        "rows.jsonl": lines,
        "rows.json": json.dumps(data, indent=1).encode(),
        "rows.csv": as_csv(data),
        "rows.parquet": as_parquet(data),
        "rows.jsonl.gz": gzip.compress(lines),
    }
    hashes = []
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        read = list(records([str(tmp_path / name)]))
        found = detect([record.value for record in read if record.value], Columns())
        examples = [FORMATS[found.format](record, found.columns) for record in read]
        hashes.append([(example.provenance.hash, split_key(example)) for example in examples])
    assert all(other == hashes[0] for other in hashes)
    assert len({hash for hash, _ in hashes[0]}) == len(data)
    assert all(len(hash) == 32 for hash, _ in hashes[0])


def test_arguments_as_text_and_as_object_are_the_same_row() -> None:
    one, two = json.loads(json.dumps(CHATS[0])), json.loads(json.dumps(CHATS[0]))
    two["messages"][1]["tool_calls"][0]["function"]["arguments"] = {"x": 1}
    assert convert(one).provenance.hash == convert(two).provenance.hash


def test_the_hash_tells_answers_weights_and_tools_apart_and_the_split_key_only_prompts() -> None:
    base = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}
    other = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "B"}]}
    weighed = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": 0.5}]}
    tooled = base | {"tools": [{"type": "function", "function": {"name": "f"}}]}
    examples = [convert(row) for row in (base, other, weighed, tooled)]
    assert len({example.provenance.hash for example in examples}) == 4
    assert len({split_key(example) for example in examples}) == 1
    assert split_key(convert({"question": " q ", "answer": "A"})) == split_key(examples[0])
    assert split_key(convert({"question": "Q!", "answer": "A"})) != split_key(examples[0])


@given(st.text(min_size=1), st.text(min_size=1))
def test_the_split_key_ignores_case_and_spacing_only(text: str, other: str) -> None:
    def key(text: str) -> str:
        return split_key(Text("x", text, convert({"text": "T"}).provenance))

    assert key(text) == key(f"  {text}\n") == key(text.replace(" ", "  "))
    assert (key(text) == key(other)) == (text.casefold().split() == other.casefold().split())


@given(st.dictionaries(st.text(max_size=4), st.none() | st.integers() | st.text(max_size=4), max_size=5))
def test_the_digest_ignores_the_order_of_keys_and_nulls(value: dict[str, object]) -> None:
    turned = dict(reversed(list(value.items())))
    assert digest(value) == digest(turned) == digest({k: v for k, v in turned.items() if v is not None})
