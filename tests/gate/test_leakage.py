"""Rows that are trained on and also judged by."""

import random
from dataclasses import replace
from pathlib import Path

from luthier.gate import leakage
from luthier.gate.contamination import Reference
from luthier.gate.policy import Policy
from luthier.gate.rows import Row
from tests.gate.stored import chat, hits, labelled, rows_of, sentence


def test_what_leaks_is_taken_from_train_and_never_from_test(tmp_path: Path) -> None:
    draw = random.Random(0)
    asked = [sentence(draw, 20) for _ in range(6)]
    rows = [
        chat(1, asked[0], "one"),
        chat(2, asked[0].upper() + "?", "two", side="test"),
        chat(3, asked[1], "three", side="validation"),
        chat(4, asked[1], "four", side="test"),
        chat(5, f"{asked[2]} now", "five"),
        chat(6, asked[2], "six", side="test"),
        chat(7, asked[3], "seven"),
        chat(8, asked[4], "eight", side="test"),
    ]
    found = hits(tmp_path, rows, leakage.look)
    assert rows_of(found, "leak") == {1, 3}
    assert rows_of(found, "near_leak") == {5}
    assert {hit.row: hit.other for hit in found} == {"c:1": "c:2", "c:3": "c:4", "c:5": "c:6"}


def test_every_copy_of_a_leaked_row_is_named(tmp_path: Path) -> None:
    rows = [labelled(i, "where is my card", "a") for i in range(1500)]
    rows.append(labelled(2000, "Where is my card?", "b", side="test"))
    assert rows_of(hits(tmp_path, rows, leakage.look), "leak") == set(range(1500))


def test_order_does_not_change_what_leaks(tmp_path: Path) -> None:
    draw = random.Random(3)
    rows: list[Row] = []
    for number in range(80):
        text = (
            sentence(draw, 20) if number % 2 == 0 else f"{rows[-1].prompt} {sentence(draw, draw.randrange(3))}".strip()
        )
        rows.append(labelled(number, text, "a", side=draw.choice(("train", "validation", "test"))))
    found = hits(tmp_path, rows, leakage.look)
    assert len(found) > 10
    shuffled = draw.sample(rows, len(rows))
    assert set(hits(tmp_path, shuffled, leakage.look, chunk_rows=9)) == set(found)


def test_groups_on_two_sides(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [
        chat(1, sentence(draw, 9), "one", customer="7"),
        chat(2, sentence(draw, 9), "two", customer=8),
        chat(3, sentence(draw, 9), "three", side="test", customer=7),
        chat(4, sentence(draw, 9), "four"),
        chat(5, sentence(draw, 9), "five", side="test"),
    ]
    policy = Policy.model_validate({"groups": ["customer"]})
    found = hits(tmp_path, rows, leakage.look, policy=policy)
    assert [(hit.rule, hit.row, hit.other) for hit in found] == [("group_leak", "c:1", "c:3")]


def test_runs_of_words_of_a_benchmark(tmp_path: Path) -> None:
    draw = random.Random(0)
    item, short, brief = sentence(draw, 40), sentence(draw, 12), "Name the capital of France!"
    opening = sentence(draw, 15)
    rows = [
        chat(1, f"{sentence(draw, 8)} {' '.join(item.split()[5:19]).title()}, {sentence(draw, 8)}", "one"),
        chat(2, "two", f"{sentence(draw, 8)} {short}"),
        chat(3, "name the capital of FRANCE", "Paris"),
        chat(4, sentence(draw, 40), f"name the capital of france {sentence(draw, 9)}"),
        chat(5, " ".join(item.split()[:12]), "twelve words are too few"),
        chat(6, item, "not looked at", side="test"),
        *(chat(100 + i, f"{opening} {sentence(draw, 9)}", "boilerplate") for i in range(40)),
    ]
    against = [
        Reference("bench.jsonl:1", item),
        Reference("bench.jsonl:2", short),
        Reference("bench.jsonl:3", brief),
        Reference("bench.jsonl:4", f"{opening} otherwise {sentence(draw, 30)}"),
        Reference("bench.jsonl:5", " "),
    ]
    found = [h for h in hits(tmp_path, rows, leakage.look, against=against) if h.rule == "contamination"]
    assert {(hit.row, hit.other) for hit in found} == {
        ("c:1", "bench.jsonl:1"),
        ("c:2", "bench.jsonl:2"),
        ("c:3", "bench.jsonl:3"),
    }


def test_one_side_alone_leaks_nothing(tmp_path: Path) -> None:
    rows = [labelled(i, "same text", "a") for i in range(3)]
    assert hits(tmp_path, rows, leakage.look) == []
    assert hits(tmp_path, [replace(row, side="test") for row in rows], leakage.look) == []
