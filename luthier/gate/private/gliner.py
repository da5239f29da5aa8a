"""GLiNER as a recogniser of names and places, where `gliner` is installed: a small model that takes any labels."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

from luthier.errors import InputError
from luthier.gate.private.spans import Span

LABELS = {"person": "person_name", "street address": "postal_address"}
_WINDOW = 1200
"""Characters that are read at once: about 300 words, what its models were trained on."""
_OVERLAP = 100


def recogniser(model: str, *, least: float = 0.5) -> Callable[[str], Iterator[Span]]:
    """A function that finds people and addresses with a model in a folder; nothing is fetched.

    Raises:
        InputError: `gliner` is not installed.
    """
    try:
        library = importlib.import_module("gliner")
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed", do="pip install gliner") from None
    tagger = library.GLiNER.from_pretrained(model, local_files_only=True)

    def recognise(text: str) -> Iterator[Span]:
        for at in range(0, max(len(text) - _OVERLAP, 1), _WINDOW - _OVERLAP):
            for found in tagger.predict_entities(text[at : at + _WINDOW], list(LABELS), threshold=least):
                yield Span(LABELS[found["label"]], at + found["start"], at + found["end"], found["score"])

    return recognise
