"""Copies, near copies, other wordings and masks."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.gate import duplicates
from luthier.gate.pairs import MOST_IN_BUCKET, components
from luthier.gate.policy import Policy
from luthier.gate.rows import Hit, Row
from luthier.gate.text import bare, normal
from tests.gate.stored import chat, hits, labelled, rows_of, sentence

EVERY = ("duplicate", "near_duplicate", "repeated_in_test", "paraphrase", "template")


def mixed(seed: int, count: int = 60) -> list[Row]:
    """Rows of both sides, of which some repeat others."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for number in range(count):
        side = draw.choice(("train", "train", "test"))
        old = draw.choice(rows) if rows and draw.random() < 0.5 else None
        if old is None:
            rows.append(chat(number, sentence(draw, 24), sentence(draw, 24), side=side))
            continue
        asked, answer = (field.text for field in old.fields)
        change = draw.randrange(4)
        asked = (asked, f"{asked.upper()}!", f"{asked} {sentence(draw, 1)}", sentence(draw, 20) + asked[:60])[change]
        rows.append(chat(number, asked, answer, side=side))
    return rows


def by_content(rows: list[Row], found: list[Hit]) -> set[tuple[object, ...]]:
    """Findings without what depends on where a row stands. Of equal rows, which one is meant cannot matter."""
    of = {row.id: (row.side, bare(normal(row.prompt)), normal(row.answer)) for row in rows}
    return {(hit.rule, of[hit.row], of[hit.other], hit.score) for hit in found}


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000))
def test_neither_order_nor_chunks_change_what_is_found(tmp_path: Path, seed: int) -> None:
    rows = mixed(seed)
    found = hits(tmp_path, rows, duplicates.look)
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert by_content(rows, hits(tmp_path, shuffled, duplicates.look)) == by_content(rows, found)
    assert set(hits(tmp_path, rows, duplicates.look, chunk_rows=7)) == set(found)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.data())
def test_a_copy_adds_one_duplicate_and_nothing_else(tmp_path: Path, seed: int, data: st.DataObject) -> None:
    rows = mixed(seed)
    again = data.draw(st.sampled_from(rows))
    before = set(hits(tmp_path, rows, duplicates.look))
    after = set(hits(tmp_path, [*rows, replace(again, id="c:9999", line=9999)], duplicates.look))
    added = after - before
    assert before <= after
    assert [(hit.rule, hit.row) for hit in added] == [
        ("duplicate" if again.side == "train" else "repeated_in_test", "c:9999")
    ]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000))
def test_what_goes_is_like_something_that_stays(tmp_path: Path, seed: int) -> None:
    found = [h for h in hits(tmp_path, mixed(seed), duplicates.look) if h.rule in ("duplicate", "near_duplicate")]
    near = [hit for hit in found if hit.rule == "near_duplicate"]
    assert {hit.other for hit in near}.isdisjoint({hit.row for hit in found})
    assert len({hit.row for hit in found}) == len(found)


def test_copies_are_equal_but_for_case_and_spaces(tmp_path: Path) -> None:
    rows = [
        chat(1, "Where is my router?", "In the parcel."),
        chat(2, "where is  MY router?", "in the parcel."),
        chat(3, "Where is my router?", "In the office."),
        chat(4, "Where is my router?", "In the parcel.", side="test"),
        chat(5, "Where is my router", "In the parcel"),
    ]
    found = hits(tmp_path, rows, duplicates.look)
    assert rows_of(found, "duplicate") == {2}
    assert rows_of(found, "near_duplicate") == {5}


def test_labels_and_sides_keep_rows_apart(tmp_path: Path) -> None:
    rows = [labelled(1, "a b c", "x"), labelled(2, "a b c", "y"), labelled(3, "a b c", "x", side="validation")]
    assert hits(tmp_path, rows, duplicates.look) == []


def test_the_verified_row_stays_then_the_one_with_the_longest_answer(tmp_path: Path) -> None:
    draw = random.Random(0)
    asked, answer = sentence(draw, 30), sentence(draw, 30)
    rows = [chat(1, asked, answer), chat(2, asked, answer, verified=True), chat(3, asked, answer)]
    assert rows_of(hits(tmp_path, rows, duplicates.look), "duplicate") == {1, 3}
    rows = [chat(1, asked, answer), chat(2, asked, f"{answer} again"), chat(3, asked, f"{answer} again twice")]
    assert rows_of(hits(tmp_path, rows, duplicates.look), "near_duplicate") == {1, 2}
    rows[0] = replace(rows[0], columns={"verified": "yes"})
    assert rows_of(hits(tmp_path, rows, duplicates.look), "near_duplicate") == {2, 3}


def test_a_shared_policy_makes_no_two_rows_alike(tmp_path: Path) -> None:
    draw = random.Random(0)
    policy = sentence(draw, 900)
    rows = [chat(i, sentence(draw, 12), sentence(draw, 12), system=policy) for i in range(30)]
    assert hits(tmp_path, rows, duplicates.look) == []


def test_a_prompt_in_other_words_stands_beside_its_answer(tmp_path: Path) -> None:
    rows = [
        chat(
            1,
            "Since when has your left knee been hurting, and how badly?",
            "Left knee pain for two weeks, severe, and no fever.",
        ),
        chat(
            2,
            "How long does the left knee hurt you, and how badly is it?",
            "Left knee pain for two weeks, severe, and no fever.",
        ),
        chat(
            3,
            "Do you smoke or take any drugs at all these days?",
            "Left knee pain for two weeks, severe, and no fever.",
        ),
    ]
    found = hits(tmp_path, rows, duplicates.look)
    assert {hit.rule for hit in found} == {"paraphrase"}
    assert rows_of(found, "paraphrase") <= {1, 2}


def test_rows_from_one_mask(tmp_path: Path) -> None:
    def rows(count: int) -> list[Row]:
        return [chat(i, f"Where is my order {1000 + 7 * i}?", "It will be there soon.") for i in range(count)]

    few, many = hits(tmp_path, rows(5), duplicates.look), hits(tmp_path, rows(25), duplicates.look)
    assert rows_of(few, "near_duplicate") == {1, 2, 3, 4} or len(rows_of(few, "near_duplicate")) == 4
    assert rows_of(many, "template") == set(range(25))
    sums = [chat(i, f"{i} + {i + 1}?", str(2 * i + 1)) for i in range(5)]
    assert rows_of(hits(tmp_path, sums, duplicates.look), "near_duplicate") == set()


def test_crowded_buckets_are_told(tmp_path: Path) -> None:
    draw = random.Random(0)
    asked = sentence(draw, 20)
    rows = [chat(i, asked, sentence(draw, 12)) for i in range(MOST_IN_BUCKET + 50)]
    found = [hit for hit in hits(tmp_path, rows, duplicates.look) if hit.rule == "crowded"]
    assert [hit.score for hit in found] == [len(rows)]


def test_a_rule_that_is_off_finds_nothing(tmp_path: Path) -> None:
    policy = Policy.model_validate({"rules": dict.fromkeys(EVERY, "off")})
    found = hits(tmp_path, mixed(1), duplicates.look, policy=policy)
    assert {hit.rule for hit in found} <= {"crowded"}


@given(st.integers(1, 30), st.data())
def test_components_are_the_smallest_connected(count: int, data: st.DataObject) -> None:
    pairs = data.draw(st.lists(st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)), max_size=40))
    of = list(range(count))
    for _ in range(count):
        for a, b in pairs:
            of[a] = of[b] = min(of[a], of[b])
    assert components(count, pairs).tolist() == of


@pytest.mark.parametrize("rows", [[], [chat(1, "", "")], [chat(1, "?", "!")]])
def test_hardly_any_rows(tmp_path: Path, rows: list[Row]) -> None:
    assert hits(tmp_path, rows, duplicates.look) == []
