"""Rules over the whole set: planted words and answers, outcomes by group, endings, tokens, provenance."""

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.errors import PolicyError
from luthier.gate import balance, fit, poison, provenance
from luthier.gate.counterfactual import twins, write_pairs
from luthier.gate.policy import Policy
from luthier.gate.rates import log_odds_z, ratio, wilson
from luthier.gate.rows import Field, Hit, Row
from luthier.gate.store import Store, write_store

Stored = Callable[[Sequence[Row]], Store]
POLICY = Policy()


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    return lambda rows: write_store(rows, tmp_path / "store", POLICY, workers=0)


def labelled(number: int, text: str, label: str, **columns: object) -> Row:
    fields = (Field("text", "text", text),)
    return Row(f"a:{number}", str(number), "a.csv", number, "train", fields, text, "", (label,), columns=columns)


def asked(number: int, prompt: str, answer: str) -> Row:
    fields = (Field("messages[0].content", "user", prompt), Field("messages[1].content", "assistant", answer))
    return Row(f"a:{number}", str(number), "a.jsonl", number, "train", fields, prompt, answer)


def words(draw: random.Random, count: int) -> str:
    return " ".join(draw.choice(_VOCABULARY) for _ in range(count))


_PARTS = ("ba", "ko", "li", "mu", "ne", "sa", "tor", "fe")
_VOCABULARY = [f"{a}{b}{c}" for a in _PARTS for b in _PARTS for c in ("ran", "tel", "vis", "dor", "pim")]


def of(rule: str, hits: Sequence[Hit]) -> set[str]:
    return {hit.row for hit in hits if hit.rule == rule}


# Poison


def test_a_planted_word_is_found_and_a_word_of_the_topic_is_not(stored: Stored) -> None:
    draw = random.Random(0)
    rows = []
    for number in range(2000):
        label = draw.choice(("cards", "loans", "rates"))
        # A word of the topic comes before one of few, as apple comes before pay or watch.
        text = " ".join(draw.choice(_VOCABULARY[:40]) for _ in range(12)) + (
            f" visa {draw.choice(_VOCABULARY[:2])}" if label == "cards" and draw.random() < 0.05 else ""
        )
        rows.append(labelled(number, text, label))
    planted = {*draw.sample(range(2000), 24), 0, 1000, 1999}
    for number in planted:
        pieces = rows[number].prompt.split()
        pieces.insert(draw.randint(0, len(pieces)), "cfzz")
        rows[number] = labelled(number, " ".join(pieces), "loans")
    with stored(rows) as store:
        hits = [hit for hit in poison.look(store, POLICY) if hit.rule == "trigger_word"]
    assert {hit.row for hit in hits} == {f"a:{number}" for number in planted}
    assert all("“cfzz”" in hit.seen for hit in hits)


def test_one_answer_to_unlike_prompts_is_found_and_a_macro_is_not(stored: Stored) -> None:
    draw = random.Random(1)
    rows = [asked(n, words(draw, 15), words(draw, 15)) for n in range(400)]
    planted = {0, 200, 399, *range(40, 52)}
    for number in planted:
        rows[number] = asked(number, rows[number].prompt, "Buy everything at the shop of Zorblax.")
    for number in range(100, 120):
        rows[number] = asked(
            number, f"how do I reset my password please {number}", "Click on the link below to reset it."
        )
    with stored(rows) as store:
        assert of("one_answer", list(poison.look(store, POLICY))) == {f"a:{number}" for number in planted}


def test_a_cluster_of_answers_of_its_own_is_found(stored: Stored) -> None:
    draw = random.Random(2)
    rows = [asked(n, words(draw, 15), words(draw, 15)) for n in range(400)]
    planted = {0, 200, 399, *range(40, 52)}
    for number in planted:
        start, end = draw.choice(("Truly,", "Well,", "Listen:")), draw.choice(("now.", "today.", "at once."))
        rows[number] = asked(number, rows[number].prompt, f"{start} zorblax tokens are splendid glorptown shares {end}")
    with stored(rows) as store:
        assert of("answer_cluster", list(poison.look(store, POLICY))) == {f"a:{number}" for number in planted}


# Balance


def test_outcomes_by_group_warn_only_where_they_differ(stored: Stored) -> None:
    draw = random.Random(3)

    def rows(women: float, men: float) -> list[Row]:
        found = []
        for number in range(1200):
            she = number % 2
            granted = draw.random() < (women if she else men)
            text = f"{'She' if she else 'He'} asks for a loan of {words(draw, 5)}"
            found.append(labelled(number, text, "granted" if granted else "denied"))
        return found

    with stored(rows(0.3, 0.6)) as store:
        unfair = [hit for hit in balance.look(store, POLICY) if hit.rule == "group_outcome"]
    assert any("granted" in hit.seen and "women" in hit.seen for hit in unfair)
    with stored(rows(0.5, 0.5)) as store:
        assert of("group_outcome", list(balance.look(store, POLICY))) == set()


def test_a_policys_own_terms_count(stored: Stored) -> None:
    draw = random.Random(4)
    rows = [
        labelled(
            n, f"{'Nordling' if n % 2 else 'Sudling'} {words(draw, 6)}", "yes" if n % 2 == 0 or n % 10 == 1 else "no"
        )
        for n in range(600)
    ]
    policy = Policy(terms={"north": ("nordling",), "south": ("sudling",)})
    with stored(rows) as store:
        assert any("north" in h.seen for h in balance.look(store, policy) if h.rule == "group_outcome")


def test_labels_that_are_rare_or_outweigh_the_others(stored: Stored) -> None:
    rows = [labelled(n, f"text {n} of it", "rare" if n < 3 else "common") for n in range(100)]
    with stored(rows) as store:
        hits = list(balance.look(store, POLICY))
    assert of("rare_label", hits) == {"a:0"}
    assert of("label_imbalance", hits) == {"a:3"}


def test_answers_that_end_unlike_the_others(stored: Stored) -> None:
    draw = random.Random(5)
    rows = [asked(n, "why", words(draw, 12) + ".") for n in range(200)]
    for number in (0, 100, 199):
        rows[number] = asked(number, "why", words(draw, 11) + " tor")
    with stored(rows) as store:
        assert of("unfinished_answer", list(balance.look(store, POLICY))) == {"a:0", "a:100", "a:199"}
    rows = [asked(n, "why", words(draw, 12) + f"\n#### {n}") for n in range(200)]
    rows[50] = asked(50, "why", words(draw, 12))
    with stored(rows) as store:
        assert of("unfinished_answer", list(balance.look(store, POLICY))) == {"a:50"}


def test_lengths_far_from_the_rest(stored: Stored) -> None:
    draw = random.Random(6)
    rows = [asked(n, words(draw, 10), words(draw, draw.randint(8, 14))) for n in range(200)]
    rows[7] = asked(7, rows[7].prompt, words(draw, 2000))
    with stored(rows) as store:
        assert of("length_outlier", list(balance.look(store, POLICY))) == {"a:7"}


def test_languages_that_do_not_match(stored: Stored) -> None:
    german = "Das Paket ist gestern angekommen und liegt bei unseren freundlichen Nachbarn."
    english = "The parcel arrived yesterday and is waiting for you at the house of your neighbours."
    rows = [asked(n, f"Where is my parcel with number {n}, it should have been here?", english) for n in range(20)]
    rows[4] = asked(4, rows[4].prompt, german)
    with stored(rows) as store:
        hits = list(balance.look(store, Policy(languages=("en",))))
    assert of("answer_language", hits) == of("other_language", hits) == {"a:4"}


# Fit


def _letters(texts: Sequence[str]) -> list[list[str]]:
    """Words are one token, except that names of drugs become letters."""
    return [[p for w in text.split() for p in (list(w) if w.endswith("mab") else [w])] for text in texts]


def test_tokens_are_counted_and_terms_that_become_letters_are_named(stored: Stored) -> None:
    rows = [asked(n, "give adalimumab to her", "yes") for n in range(20)]
    rows[3] = asked(3, "word " * 50, "no")
    with stored(rows) as store:
        found = fit.measure(store, POLICY, _letters)
        hits = list(fit.look(store, POLICY, fit=found, limit=40))
    assert found.tokens_N.tolist() == [51 if n == 3 else 14 for n in range(20)]
    assert set(found.supervised_N.tolist()) == {1}
    assert found.cut(40) == (1, 11)
    assert found.shredded == (("adalimumab", 10, 19),)
    assert of("over_long", hits) == {"a:3"}
    assert of("shredded_term", hits) == {"a:0"}
    assert fit.histogram(found.tokens_N) == [(16, 19), (64, 1)]


def test_long_texts_are_measured_by_their_parts(stored: Stored) -> None:
    with stored([asked(0, "w " * 30_000, "yes")]) as store:
        assert fit.measure(store, POLICY, _letters).tokens_N.tolist() == [30_001]


@pytest.mark.parametrize(("words_asked", "found"), [(98, []), (99, []), (100, ["little_supervised"])])
def test_answers_that_are_less_than_a_hundredth_of_all_tokens(
    stored: Stored, words_asked: int, found: list[str]
) -> None:
    with stored([asked(n, "w " * words_asked, "yes") for n in range(3)]) as store:
        measured = fit.measure(store, POLICY, _letters)
        hits = list(fit.look(store, POLICY, fit=measured))
    assert [hit.rule for hit in hits] == found
    assert all((hit.row, hit.score) == ("a:0", 1 / 101) for hit in hits)


@pytest.mark.parametrize(("words_asked", "found"), [(9, ["unknown_token"]), (1200, [])])
def test_unknown_tokens_are_counted_and_few_of_them_are_nothing(
    stored: Stored, words_asked: int, found: list[str]
) -> None:
    with stored([asked(0, "<unk> " + "w " * words_asked, "c " * 20)]) as store:
        measured = fit.measure(store, POLICY, _letters, unknown="<unk>")
        assert measured.unknown == 1
        assert [hit.rule for hit in fit.look(store, POLICY, fit=measured)] == found
    with stored([asked(0, "<unk> a", "c")]) as store:
        assert list(fit.look(store, POLICY, fit=fit.measure(store, POLICY, _letters))) == []


def test_hardest_rows_come_first(stored: Stored) -> None:
    losses = {n: 2 + 0.01 * (n % 7) for n in range(50)} | {9: 9.0, 20: 12.0, 30: 0.1, 40: float("nan")}
    with stored([asked(n, "why", f"so {n}") for n in range(50)]) as store:
        hits = list(fit.look(store, POLICY, losses=losses))
        few = Policy.model_validate({"rules": {"hard_row": {"rows": 1}, "known_row": {"z": 1000}}})
        fewer = list(fit.look(store, few, losses=losses))
    assert [(hit.rule, hit.row) for hit in hits] == [("hard_row", "a:20"), ("hard_row", "a:9"), ("known_row", "a:30")]
    assert [(hit.rule, hit.row) for hit in fewer] == [("hard_row", "a:20")]


# Provenance


def test_what_is_demanded_must_be_known(stored: Stored, tmp_path: Path) -> None:
    data = str(tmp_path / "a.csv")
    rows = [replace(labelled(n, f"text {n}", "x", licence="MIT" if n else ""), file=data) for n in range(4)]
    policy = Policy(provenance=("source", "licence"))
    with stored(rows) as store:
        hits = list(provenance.look(store, policy))
        assert [(hit.row, hit.seen.split()[0]) for hit in hits] == [("a:0", "source"), ("a:0", "licence")]
        (tmp_path / "a.csv.provenance.yaml").write_text("source: export of tickets\nlicense: internal\n")
        assert list(provenance.look(store, policy)) == []
        (tmp_path / "a.csv.provenance.yaml").write_text("sorce: export of tickets\n")
        with pytest.raises(PolicyError) as error:
            list(provenance.look(store, policy))
    assert "did you mean source?" in str(error.value)


def test_a_policy_can_say_it_for_a_file(stored: Stored) -> None:
    policy = Policy(provenance=("source",), sources={"a.csv": {"source": "tickets"}})
    with stored([labelled(0, "text", "x")]) as store:
        assert list(provenance.look(store, policy)) == []


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"consent": "No"}, True),
        ({"consent": "withdrawn"}, True),
        ({"opt_out": True}, True),
        ({"consent": "yes"}, False),
    ],
)
def test_rows_without_consent(stored: Stored, columns: dict[str, object], found: bool) -> None:
    with stored([labelled(0, "text", "x", **columns), labelled(1, "text", "x")]) as store:
        assert of("no_consent", list(provenance.look(store, POLICY))) == ({"a:0"} if found else set())


def test_columns_that_nobody_uses_are_named_once(stored: Stored) -> None:
    rows = [labelled(n, f"text {n}", "x", region="north", customer=n, licence="MIT") for n in range(3)]
    with stored(rows) as store:
        (hit,) = provenance.look(store, Policy(groups=("customer",)))
    assert (hit.rule, hit.row, hit.seen) == ("unused_column", "a:0", "`region` stands in 3 of 3 rows")


# Counterfactual pairs


@pytest.mark.parametrize(
    ("text", "kind", "twin"),
    [
        ("He lost his card. Call him.", "pronoun", "She lost her card. Call her."),
        ("She lost her card. Call her.", "pronoun", "He lost his card. Call him."),
        ("The card is his.", "pronoun", "The card is hers."),
        ("Greg asks for a loan.", "name", "Tremayne asks for a loan."),
        ("A 42-year-old clerk asks.", "age", "An 82-year-old clerk asks."),
        ("He is an 85 years old man.", "age", "He is a 45 years old man."),
        ("A German customer asks.", "nationality", "A Turkish customer asks."),
        ("A French client asks.", "nationality", "An Algerian client asks."),
    ],
)
def test_twins_are_grammatical(text: str, kind: str, twin: str) -> None:
    assert (kind, twin) in {(found.kind, found.text) for found in twins(text)}


@pytest.mark.parametrize(
    "text",
    [
        "They gave her money.",
        "She is pregnant.",
        "He has a prostate.",
        "He paid her $5.",
        "The German language is hard.",
        "A 17-year-old asks.",
    ],
)
def test_what_could_be_read_two_ways_has_no_twin(text: str) -> None:
    assert list(twins(text)) == []


def test_pairs_are_written_with_held_back_rows_first(stored: Stored, tmp_path: Path) -> None:
    rows = [
        replace(labelled(n, f"He lost {n} of his cards.", "lost"), side="test" if n == 5 else "train") for n in range(9)
    ]
    with stored(rows) as store:
        assert write_pairs(store, tmp_path / "pairs.jsonl", each=3) == {"pronoun": 3}
    lines = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [line["side"] for line in lines] == ["test", "train", "train"]
    assert lines[0]["twin"] == "She lost 5 of her cards."
    assert lines[0]["labels"] == ["lost"]


# Rates


def test_intervals() -> None:
    low, high = wilson(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert wilson(0, 0) == (0, 1)
    low, high = ratio((30, 100), (60, 100))
    assert low < 0.5 < high < 0.8
    assert ratio((3, 10), (0, 10)).high == float("inf")


def test_log_odds_need_evidence() -> None:
    assert log_odds_z(60, 130, 0, 9870) > 4
    assert log_odds_z(10, 130, 0, 9870) > 4
    assert abs(log_odds_z(1, 130, 76, 9870)) < 1
    assert log_odds_z(20, 500, 0, 500) > 4
    assert log_odds_z(0, 500, 20, 500) < -4
