"""What is wrong with a row's form."""

import re
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.gate import form, hidden
from luthier.gate.form import REPAIRS
from luthier.gate.mojibake import garbled, ungarbled
from luthier.gate.policy import Policy
from luthier.gate.rows import Field, Row

POLICY = Policy()
ASKED = "What does it cost to send a parcel of three kilograms to Portugal?"


def chat(*turns: tuple[str, str]) -> Row:
    fields = tuple(Field(f"messages[{i}].content", role, text) for i, (role, text) in enumerate(turns))
    prompt = "\n".join(text for _, text in turns[:-1])
    return Row("a:1", "0", "a.jsonl", 1, "train", fields, prompt, turns[-1][1])


def rules(answer: str, asked: str = ASKED) -> set[str]:
    return {hit.rule for hit in form.look(chat(("user", asked), ("assistant", answer)), POLICY)}


@pytest.mark.parametrize(
    ("answer", "rule"),
    [
        ("...", "empty_answer"),
        ("N/A", "empty_answer"),
        ("[deleted]", "empty_answer"),
        ("It costs nine euros.<|im_end|>", "control_token"),
        ("It costs nine euros.</s>", "control_token"),
        ("Le cafÃ© est fermÃ©.", "mojibake"),
        ("I don\x92t know.", "mojibake"),
        ("I don?t know.", "lost_character"),
        ("Caf\ufffd", "lost_character"),
        ("\x1b[31mred\x1b[0m", "control_character"),
        ("It costs<br>nine&nbsp;euros.", "html"),
        ("It is **nine euros.", "markdown_debris"),
        ("Dear [Your Name], it is nine euros.", "placeholder"),
        ("As an AI language model, I would say nine.", "boilerplate"),
        ("Als KI-Sprachmodell sage ich neun.", "boilerplate"),
        ("作为一个人工智能语言模型，我说九。", "boilerplate"),
        ("I'm sorry, but I can't help with that.", "refusal"),
        ("Das kann ich leider nicht beantworten.", "refusal"),
        ("You can send it with the post, the courier, and", "cut_answer"),
        ("Run this in your own terminal:\n```sh\nsend parcel", "cut_answer"),
        ("The price that you see (which holds for the whole of", "cut_answer"),
        (f"{ASKED} Nine euros.", "repeats_prompt"),
        ("send it now and then " * 12, "repetition"),
    ],
)
def test_each_fault_is_found(answer: str, rule: str) -> None:
    assert rule in rules(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "None",
        "B",
        "👍",
        "Nine euros (with insurance).",
        "2**3 is 8, and **nine** is more.",
        "Use `<br>` for a break: `**`.",
        "I am a virtual assistant of the shop, and it costs nine euros.",
        "I can't find your order yet. Which number does it have?",
        "Fields such as artificial intelligence cost more.",
        "First:\n1) weigh it\n2) stamp it",
        "« DÉJÀ » … “CAFÉ”",
        "R&D costs 5 < 7 > 3.",
    ],
)
def test_honest_answers_give_nothing(answer: str) -> None:
    assert rules(answer) == set()


def test_the_tokenizers_own_tokens_are_found() -> None:
    row = chat(("user", "hi ◀end▶"), ("assistant", "yes"))
    assert list(form.look(row, POLICY)) == []
    own = POLICY.with_control_tokens(["◀end▶"])
    assert [hit.rule for hit in form.look(row, own)] == ["control_token"]


@given(st.lists(st.text("ab<>.*| ", min_size=1, max_size=6), min_size=1), st.text("ab<>.*| ", max_size=40))
def test_a_pattern_of_tokens_finds_what_the_tokens_would_one_by_one(tokens: list[str], text: str) -> None:
    longest_first = sorted(map(re.escape, tokens), key=len, reverse=True)
    spans = [match.span() for match in re.finditer("|".join(longest_first), text)]
    assert [match.span() for match in re.finditer(form._any_of(tokens), text)] == spans


def test_thousands_of_tokens_cost_no_more_than_one() -> None:
    own = POLICY.with_control_tokens(f"<unused{n}>" for n in range(6000))
    row = chat(("user", "<unuse" * 50_000), ("assistant", "It is <unused5999>."))
    assert [hit.seen for hit in form.look(row, own) if hit.rule == "control_token"] == [
        "“<unused5999>” in assistant content"
    ]
    assert form.without_tokens("It is <unused5999> so", own.control_tokens) == "It is   so"


@pytest.mark.parametrize(
    "roles",
    [("user", "user", "assistant"), ("user", "assistant", "assistant"), ("user", "system", "assistant"), ("user",)],
)
def test_turns_out_of_order(roles: tuple[str, ...]) -> None:
    assert "turn_order" in {hit.rule for hit in form.look(chat(*((role, "so it is") for role in roles)), POLICY)}


def test_tool_calls_may_come_between_and_are_no_empty_answers() -> None:
    fields = (
        Field("messages[0].content", "system", "Be kind."),
        Field("messages[1].content", "user", "Where is it?"),
        Field("messages[2].content", "assistant", "I look."),
        Field("messages[3].tool_calls[0].arguments", "assistant", "{}"),
        Field("messages[4].content", "tool", "there"),
        Field("messages[5].tool_calls[0].arguments", "assistant", "{}"),
    )
    assert list(form.look(Row("a:1", "0", "a", 1, "train", fields, "Where is it?", "{}"), POLICY)) == []


LANGUAGES = (
    "Le café est fermé à l’été, déjà vu… “oui” – non",
    "Größe, Übung, Straße – „ja“",
    "Привет, как дела? Я и ты в доме. Україна і світ",
    "日本語のテキストです。",
    "Zażółć gęślą jaźń",
    "€ 5 £3 25°C ½ 😀 ❤️",
    "Ελληνικά, עולם, مرحبا",
)


@pytest.mark.parametrize("text", LANGUAGES)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("times", [1, 2])
def test_mojibake_is_turned_back_exactly(text: str, encoding: str, times: int) -> None:
    broken = text
    for _ in range(times):
        broken = "".join(bytes([b]).decode(encoding, "ignore") or chr(b) for b in broken.encode())
    assert garbled(broken)
    assert ungarbled(broken) == text
    assert garbled(text) == []


@given(
    st.text("Ãƒ‚Â©â€™œ\x9d\x92éРѕПрĂ©Å‚ðŸ˜€<b>&amp;lt; \x1b[0m" + "|im_end</s>", max_size=60) | st.text(max_size=100)
)
def test_mends_are_idempotent(text: str) -> None:
    for repair in (*REPAIRS.values(), partial(form.without_tokens, tokens=["m_e", "b> &", "0;a "])):
        assert repair(repair(text)) == repair(text)


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_looked_at(asked: str, answer: str) -> None:
    for hit in form.look(chat(("user", asked), ("assistant", answer)), POLICY):
        assert hit.rule in form.RULES


HOSTILE = (
    "<", "![", "](", "**", "`", "```", "&", "Ã", "â€", "(", "[[", "{{", "<|", "a ", "ignore ", "ignore all - ", "- ",
    "A", "A\n", "\u200d", "\u200b", "я", "aя", "<img ", "<a onx=", "I can't ", "as an ", "als ", "\U000e0101",
    "Ãƒ", "=", "<b",
)  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.timeout(30)
def test_hostile_text_takes_linear_time(piece: str) -> None:
    """Half a second or so; what is quadratic in 300,000 characters runs into the timeout."""
    text = (piece * 300_000)[:300_000]
    for role in ("assistant", "user"):
        row = chat(("user", "x"), (role, text))
        for hit in (*form.look(row, POLICY), *hidden.look(row, POLICY)):
            assert hit.row == row.id
    for repair in (*form.REPAIRS.values(), *hidden.REPAIRS.values()):
        repair(text)


def test_rules_say_why_and_what_to_do() -> None:
    for rules_ in (form.RULES, hidden.RULES):
        for rule in rules_.values():
            assert rule.why.endswith(".")
            assert rule.remedy.endswith(".")
            assert rule.about
            assert all(f"`{name}`" in rule.about for name in rule.thresholds)
