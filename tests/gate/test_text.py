"""Forms, shingles and MinHash bands."""

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.gate.minhash import BANDS, ROWS, bands
from luthier.gate.rows import Field, Row
from luthier.gate.text import bare, forms, key, lead, normal, runs, shingles, similarities, template
from tests.gate.stored import chat, sentence

texts = st.text(max_size=200)
typical = st.text(alphabet="ab é,.'-3 5\n", max_size=400)


@given(texts)
def test_the_normal_form_is_its_own_normal_form(text: str) -> None:
    assert normal(normal(text)) == normal(text)


@given(texts | typical)
def test_case_and_white_space_do_not_count(text: str) -> None:
    assert normal(f"  {text.swapcase().swapcase()}\n") == normal(text.swapcase().swapcase())
    assert bare(normal(text)) == "" if not normal(text) else bare(normal(text)) != ""


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('Don’t   ask:  "ÉTÉ", now!', "dont ask été now"),
        ("3.5 mg, not 35 (or -5)", "3.5 mg not 35 or -5"),
        ("at 12:30... see #5", "at 12:30 see 5"),
        ("£1 or €1", "1 or 1"),
        ("👍!", "👍"),
        ("?!", "?!"),
        ("हिन्दी में?", "हिन्दी में"),
        ("ｆｕｌｌ ｗｉｄｔｈ", "full width"),
    ],
)
def test_bare_forms(text: str, form: str) -> None:
    assert bare(normal(text)) == form


def test_a_mask_is_the_text_without_its_numbers() -> None:
    assert template(bare(normal("Order 1234 of 3.5 kg"))) == template(bare(normal("order 7 of 10.25 kg!")))


def test_what_is_asked_begins_after_the_system_turns() -> None:
    row = chat(1, "Where is it?", "There.", system="A long policy.")
    assert row.prompt[lead(row) :] == "Where is it?"
    assert forms(row).asked == "where is it"
    alone = Row("a:1", "", "a", 1, "train", (Field("m", "system", "Only this."),), "Only this.", "Yes.")
    assert lead(alone) == 0


def _sets(a: str, b: str) -> tuple[set[object], set[object]]:
    """Shingles written down in the plainest way."""
    words = min(len(a.split(" ")), len(b.split(" ")))
    if words < 8:
        return ({t[i : i + 4] for i in range(max(len(t) - 3, 1))} for t in (a, b))  # type: ignore[return-value]
    width = 2 if words < 48 else 3
    return ({tuple(t.split(" ")[i : i + width]) for i in range(len(t.split(" ")) - width + 1)} for t in (a, b))  # type: ignore[return-value]


def test_similarities_are_jaccards_of_the_shingles() -> None:
    draw = random.Random(0)
    made = []
    for words in (1, 3, 7, 8, 9, 11, 12, 30, 47, 48, 60, 69, 90):
        text = sentence(draw, words)
        made += [text, text.replace("a", "o", 2), f"{text} {sentence(draw, 1)}", sentence(draw, words)]
    pairs = np.array([(i, j) for i in range(len(made)) for j in range(i) if i // 4 == j // 4])
    for (i, j), value in zip(pairs.tolist(), similarities(made, pairs), strict=True):
        a, b = _sets(made[i], made[j])
        assert value == pytest.approx(len(a & b) / len(a | b)), (made[i], made[j])


def test_texts_in_scripts_without_spaces_are_compared_by_characters() -> None:
    a = bare(normal("请问我的银行卡什么时候能够寄到家里，我已经等了两个星期了"))
    b = a.replace("两", "三")
    assert similarities([a, b], np.array([[0, 1]]))[0] > 0.75
    assert [s.kind for s in shingles([a])] == ["characters"]


@given(st.lists(typical, max_size=12), st.randoms(use_true_random=False))
def test_a_text_has_the_same_bands_in_any_batch(texts: list[str], draw: random.Random) -> None:
    made = [bare(normal(text)) for text in texts]
    together = bands(made)
    order = draw.sample(range(len(made)), len(made))
    mixed = bands([made[i] for i in order])
    for at, i in enumerate(order):
        own = set(mixed.hash_B[mixed.text_B == at].tolist())
        assert own == set(together.hash_B[together.text_B == i].tolist())
        assert len(own) in ({0} if not made[i] else {BANDS, 2 * BANDS})


def test_bands_stay_what_they_were_in_another_process() -> None:
    code = "from luthier.gate.minhash import bands; print(*bands(['where is my card', 'one two three ' * 9]).hash_B)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [int(x) for x in seen] == bands(["where is my card", "one two three " * 9]).hash_B.tolist()


def test_bands_find_near_texts_as_often_as_theory_says() -> None:
    draw = random.Random(1)
    pairs = []
    for _ in range(600):
        words = sentence(draw, 40).split()
        other = [draw.choice(sentence(draw, 5).split()) if draw.random() < 0.04 else word for word in words]
        pairs.append((" ".join(words), " ".join(other)))
    made = [text for pair in pairs for text in pair]
    found = bands(made)
    of = [set(found.hash_B[found.text_B == i].tolist()) for i in range(len(made))]
    similarity = similarities(made, np.arange(len(made)).reshape(-1, 2))
    near = [i for i, value in enumerate(similarity) if value >= 0.7]
    assert len(near) > 300
    assert np.mean([bool(of[2 * i] & of[2 * i + 1]) for i in near]) >= 0.99
    expected = [1 - (1 - value**ROWS) ** BANDS for value in similarity]
    shared = [bool(of[2 * i] & of[2 * i + 1]) for i in range(len(pairs))]
    assert abs(np.mean(shared) - np.mean(expected)) < 0.02


@given(st.lists(st.text(alphabet="ab ", min_size=1, max_size=30), max_size=6), st.integers(1, 14))
def test_runs_are_equal_where_the_words_are(texts: list[str], width: int) -> None:
    made = [bare(normal(text)) or "x" for text in texts]
    start, hashed = runs(made, width)
    plain = [tuple(t.split(" ")[i : i + width]) for t in made for i in range(len(t.split(" ")) - width + 1)]
    assert len(plain) == len(hashed) == start[-1]
    assert len(set(plain)) == len(set(hashed.tolist()))


def test_keys_are_stable() -> None:
    assert key("where is my card") == 5592922768451558456
