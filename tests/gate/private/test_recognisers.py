"""Recognisers are extras: what they find is merged, and where they are missing an error says so."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from luthier.errors import InputError
from luthier.gate.private import Span, find, gliner, presidio
from luthier.gate.private.names import known_names
from luthier.gate.private.replace import pseudonymise


def people(text: str) -> Iterator[Span]:
    for name in ("Ngozi Okafor", "4111 1111", "nobody"):
        if name in text:
            yield Span("person_name", text.index(name), text.index(name) + len(name), 0.85)


def test_what_a_recogniser_finds_is_added_and_never_replaces_a_validated_span() -> None:
    text = "Ngozi Okafor pays with card 4111 1111 1111 1111."
    assert [span.kind for span in find(text)] == ["card_number"]
    spans = find(text, recognisers=[people])
    assert [(span.kind, text[span.start : span.end]) for span in spans] == [
        ("person_name", "Ngozi Okafor"),
        ("card_number", "4111 1111 1111 1111"),
    ]


def test_a_recogniser_does_not_report_pseudonyms() -> None:
    text = "Ngozi Okafor was here."
    new = pseudonymise(text, find(text, recognisers=[people]), key=b"k" * 32)

    def capitals(text: str) -> Iterator[Span]:
        yield Span("person_name", 0, len(" ".join(text.split()[:2])), 0.9)

    assert find(new, recognisers=[capitals]) == []


def test_names_on_a_list_are_found_anywhere_in_any_case() -> None:
    known = known_names(["Ngozi Okafor", "Li"])
    text = "i told ngozi okafor and LI, not Lily"
    assert [text[span.start : span.end] for span in find(text, known=known)] == ["ngozi okafor", "LI"]
    assert known_names([]) is None


@pytest.mark.skipif(importlib.util.find_spec("presidio_analyzer") is not None, reason="Presidio is installed")
def test_presidio_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="presidio_analyzer is not installed"):
        presidio.recogniser()


@pytest.mark.skipif(importlib.util.find_spec("gliner") is not None, reason="GLiNER is installed")
def test_gliner_that_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="gliner is not installed"):
        gliner.recogniser("folder")


def test_presidio_finds_with_patterns_alone() -> None:
    pytest.importorskip("presidio_analyzer")
    (span,) = [span for span in presidio.recogniser()("Mail jo@mail.org") if span.kind == "email"]
    assert (span.start, span.end) == (5, 16)
