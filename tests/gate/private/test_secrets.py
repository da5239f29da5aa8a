"""Keys, tokens and passwords are found in prose and in code; placeholders and words are not."""

from __future__ import annotations

import random
import string

import pytest

from luthier.gate.private import RULES, find
from luthier.gate.private.secrets import entropy, looks_random

KEY = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc=\n-----END RSA PRIVATE KEY-----"
ALPHABETS = {
    "AKIA{}": (string.ascii_uppercase + string.digits, 16),
    "ghp_{}": (string.ascii_letters + string.digits, 36),
    "sk-proj-{}": (string.ascii_letters + string.digits, 40),
    "glpat-{}": (string.ascii_letters + string.digits, 20),
    "hf_{}": (string.ascii_letters + string.digits, 34),
    "xoxb-{}": (string.digits, 24),
    "AIza{}": (string.ascii_letters + string.digits + "-_", 35),
    "GOCSPX-{}": (string.ascii_letters + string.digits, 28),
    "dapi{}": ("0123456789abcdef", 32),
    "https://hooks.slack.com/services/T0ABCDEFG/B0ABCDEFG/{}": (string.ascii_letters + string.digits, 24),
    "npm_{}": (string.ascii_letters + string.digits, 36),
    "Authorization: Bearer {}": (string.ascii_letters + string.digits, 40),
    "secret key {}": (string.ascii_letters + string.digits, 44),
    "api token {}": ("0123456789abcdef", 40),
    "password={}": (string.ascii_letters + string.digits, 12),
    '{{"db_password": "{}"}}': (string.ascii_letters + string.digits, 12),
    "postgres://app:{}@db.acme.org/orders": (string.ascii_letters + string.digits, 12),
    "Server=db;User Id=app;Password={};": (string.ascii_letters + string.digits, 14),
    "Your password is {} from now on.": (string.ascii_letters + string.digits, 10),
    "Mein Passwort lautet {}": (string.ascii_letters + string.digits, 10),
    "Mi contraseña es {}": (string.ascii_letters + string.digits, 10),
    'PASSWORD="J7(n9{}"': (string.ascii_letters + string.digits, 6),
    "The pwd is (2g7&%{}": (string.ascii_letters + string.digits, 6),
}


@pytest.mark.parametrize("form", ALPHABETS)
def test_planted_secrets_are_found(form: str) -> None:
    rng = random.Random(0)
    alphabet, length = ALPHABETS[form]
    found = 0
    for _ in range(100):
        value = "".join(rng.choices(alphabet, k=length - 1)) + rng.choice(string.digits)
        text = f"Here it is:\n{form.format(value)}\nas we said."
        found += any(span.kind == "secret" and value in text[span.start : span.end] for span in find(text))
    assert found >= 99  # a string drawn at random may look less so than 4.5 bits per character


def test_a_private_key_is_found_whole_also_in_json_and_cut_off() -> None:
    for text, key in (
        (f"Use {KEY} for it", KEY),
        ('{"key": "' + KEY.replace("\n", "\\n") + '"}', KEY.replace("\n", "\\n")),
        ('{"key": "-----BEGIN PRIVATE KEY-----\\nMII"}', "-----BEGIN PRIVATE KEY-----\\nMII"),
    ):
        (span,) = find(text)
        assert (span.kind, text[span.start : span.end]) == ("private_key", key)


def test_an_address_with_a_password_is_a_secret_and_no_mere_address() -> None:
    assert [span.kind for span in find("https://jo:hunter2@db.acme.org/orders")] == ["secret"]


@pytest.mark.parametrize(
    "text",
    [
        "password: ******** and token = ${TOKEN} and api_key: <your key>",
        "const apiKey = 'API_KEY'; password = os.environ['PASSWORD']",
        "The password is required, the token is passed on, the secret: patience.",
        "Forgot your password? Password: please choose one.",
        "sk-learn-compatible-estimator-api and this-is-a-long-url-path-with-words-2024",
        "password: {db_password1}, token = {{secrets.TOKEN_1}}, pwd = %(pw1)s, secret = [token-1] (key: (see below)",
        "password = get_password(name1), token = make_token2() and api_key = vault.read('k1')",
        "monkey: 123456, keyboard: 8Xk2m1",
        "0123456789012345678901234567890123456789",
    ],
)
def test_placeholders_and_words_are_no_secrets(text: str) -> None:
    assert not [span for span in find(text) if span.kind in ("secret", "private_key")]


def test_random_strings_without_a_word_beside_them_stay_below_the_threshold() -> None:
    text = "The object is dQw4w9WgXcQ7fKz0bN5vRj2hTy8LmPe1UsAo in the bucket."
    assert not find(text)
    (span,) = find(text, least={"secret": 0.3})
    assert span.kind == "secret"


def test_entropy_is_that_of_shannon() -> None:
    assert entropy("aaaa") == 0
    assert entropy("abcd") == 2
    assert not looks_random("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
    assert looks_random("9f86d081884c7d659a2feaa0c55ad015")


def test_secrets_block_and_the_rest_does_not() -> None:
    blocking = {kind for kind, rule in RULES.items() if rule.severity == "block"}
    assert blocking == {"secret", "private_key"}
