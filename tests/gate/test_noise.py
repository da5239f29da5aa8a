"""Contradictions, ratings and wrong labels."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from luthier.gate import noise
from luthier.gate.confident import out_of_fold, suspects
from luthier.gate.noise import token_f1
from luthier.gate.policy import Policy
from luthier.gate.rows import Row
from tests.gate.stored import chat, hits, labelled, rows_of, sentence, valued


def test_one_question_with_two_answers(tmp_path: Path) -> None:
    draw = random.Random(0)
    asked = [sentence(draw, 20) for _ in range(5)]
    rows = [
        chat(1, asked[0], "Yes, it is free of charge."),
        chat(2, asked[0].upper(), "No. You pay ten euros."),
        chat(3, asked[1], "Yes, it is free of charge."),
        chat(4, asked[1], "Yes, it is free of charge, always."),
        chat(5, f"{asked[2]} 10", "ten"),
        chat(6, f"{asked[2]} 20", "twenty"),
        chat(7, asked[3], "Oui.", system="Answer in French."),
        chat(8, asked[3], "Yes.", system="Answer in English."),
    ]
    found = hits(tmp_path, rows, noise.look)
    assert {(hit.row, hit.other) for hit in found} == {("c:1", "c:2"), ("c:2", "c:1")}


def test_one_text_with_two_labels(tmp_path: Path) -> None:
    draw = random.Random(0)
    text = sentence(draw, 20)
    rows = [
        labelled(1, text, "a"),
        labelled(2, f"{text}!", "b"),
        labelled(3, text, "a"),
        labelled(4, f"{text} again", "b"),
    ]
    found = hits(tmp_path, rows, noise.look)
    assert rows_of(found, "contradiction") == {1, 2, 3, 4}


def test_ratings_that_disagree(tmp_path: Path) -> None:
    rows = [
        chat(1, "Is it open?", "Yes.", reward=1.0),
        chat(2, "Is it open?", "Yes.", reward=0.0),
        chat(3, "Is it shut?", "No.", reward=0.0),
        chat(4, "Is it shut?", "No.", reward=0.0),
        chat(5, "Is it shut?", "No."),
        valued(6, "a fine film", 4.5),
        valued(7, "A fine film", 1.0),
        valued(8, "a fine film", 4.0),
        valued(9, "a dull film", 2.0),
        valued(10, "a dull film", 3.0),
        valued(11, "the worst", 0.0),
        valued(12, "the best", 5.0),
    ]
    found = [hit for hit in hits(tmp_path, rows, noise.look) if hit.rule == "contradictory_rating"]
    assert {(hit.row, hit.other) for hit in found} == {
        *(("c:1", "c:2"), ("c:2", "c:1")),
        *(("c:6", "c:7"), ("c:7", "c:6"), ("c:8", "c:7")),
    }


@given(st.text(max_size=60), st.text(max_size=60))
def test_token_f1(a: str, b: str) -> None:
    assert 0 <= token_f1(a, b) == token_f1(b, a) <= 1
    assert token_f1(a, a) == (1 if a.strip() else token_f1(a, a))


def easy(count: int, *, flipped: float, seed: int = 0) -> tuple[list[Row], set[int]]:
    """Three labels with words of their own, and some rows with a wrong one."""
    draw = random.Random(seed)
    own = {"cards": "visa plastic chip pin", "loans": "mortgage lender rate term", "bills": "invoice due overdue total"}
    rows, wrong = [], set()
    for number in range(count):
        label = draw.choice(list(own))
        text = " ".join(draw.choice(own[label].split()) for _ in range(3)) + " " + sentence(draw, 6)
        if draw.random() < flipped:
            wrong.add(number)
            label = draw.choice([name for name in own if name != label])
        rows.append(labelled(number, text, label))
    return rows, wrong


def test_flipped_labels_of_easy_texts_are_found(tmp_path: Path) -> None:
    rows, wrong = easy(600, flipped=0.05)
    found = [hit for hit in hits(tmp_path, rows, noise.look) if hit.rule == "label_noise"]
    seen = rows_of(found, "label_noise")
    assert len(seen & wrong) >= 0.95 * len(wrong)
    assert len(seen & wrong) >= 0.9 * len(seen)
    shuffled = random.Random(1).sample(rows, len(rows))
    again = [hit for hit in hits(tmp_path, shuffled, noise.look, chunk_rows=50) if hit.rule == "label_noise"]
    assert {(hit.row, hit.seen) for hit in again} == {(hit.row, hit.seen) for hit in found}


def test_rare_labels_are_named_and_left_out(tmp_path: Path) -> None:
    rows, _ = easy(200, flipped=0)
    rows += [labelled(1000 + i, f"something else {i}", "rare") for i in range(9)]
    found = hits(tmp_path, rows, noise.look)
    assert rows_of(found, "unjudged_label") == set(range(1000, 1009))
    assert rows_of(found, "label_noise").isdisjoint(range(1000, 1009))


def test_labels_in_doubt_are_those_that_lean_to_the_other_and_are_not_called_wrong(tmp_path: Path) -> None:
    """Texts of five words, of which each is of the own label with a chance of 0.6 and else of the other's."""
    draw = random.Random(0)
    words = (("visa", "plastic", "chip", "pin"), ("mortgage", "lender", "rate", "term"))
    rows, of_own = [], []
    for number in range(400):
        label = number % 2
        own = [draw.random() < 0.6 for _ in range(5)]
        text = " ".join(draw.choice(words[label if one else 1 - label]) for one in own)
        rows.append(labelled(number, f"{text} {sentence(draw, 6)}", ("cards", "loans")[label]))
        of_own.append(sum(own))
    found = hits(tmp_path, rows, noise.look)
    doubted = rows_of(found, "label_doubt")
    assert len(doubted) >= 30
    assert doubted.isdisjoint(rows_of(found, "label_noise"))
    assert np.mean([of_own[row] for row in doubted]) < np.mean(of_own) - 0.4
    off = Policy.model_validate({"rules": {"label_doubt": "off"}})
    assert rows_of(hits(tmp_path, rows, noise.look, policy=off), "label_doubt") == set()


def test_a_sample_is_said_to_be_one(tmp_path: Path) -> None:
    policy = Policy.model_validate({"rules": {"label_noise": {"sample": 100}}})
    rows, _ = easy(300, flipped=0.1)
    found = hits(tmp_path, rows, noise.look, policy=policy)
    said = [hit.seen for hit in found if hit.rule == "sampled_labels"]
    assert said == ["100 of 300 rows were checked"]


def test_near_duplicates_never_stand_in_two_folds(tmp_path: Path) -> None:
    """A wrong label that stands twice would otherwise be learnt from its copy."""
    rows, _ = easy(300, flipped=0)
    text = "visa chip pin plastic visa router melted yesterday evening"
    rows += [labelled(1000, text, "loans"), labelled(1001, f"{text}!", "loans")]
    assert rows_of(hits(tmp_path, rows, noise.look), "label_noise") >= {1000, 1001}


@settings(deadline=None)
@given(st.integers(2, 6), st.integers(20, 60), st.data())
def test_our_pruning_is_that_of_cleanlab(classes: int, count: int, data: st.DataObject) -> None:
    pruning = pytest.importorskip("cleanlab.filter", reason="the extra `quality` is not installed")
    raw = data.draw(arrays(np.float64, (count, classes), elements=st.floats(0.01, 1.0), unique=True))
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    labels = np.array(data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    labels[:classes] = np.arange(classes)
    theirs = pruning.find_label_issues(
        labels, probabilities, filter_by="confident_learning", return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    assert {found.row for found in suspects(probabilities, labels)} == set(theirs.tolist())


def test_folds_follow_what_must_stay_together() -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(200, 4))
    labels = (features[:, 0] > 0).astype(np.int64)
    together = np.repeat(np.arange(50), 4)
    first = out_of_fold(features, labels, together)
    assert np.allclose(first.sum(axis=1), 1)
    order = draw.permutation(200)
    assert np.allclose(out_of_fold(features[order], labels[order], together[order]), first[order], atol=0.02)
