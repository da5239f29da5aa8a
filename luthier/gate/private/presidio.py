"""Microsoft's Presidio as a recogniser, where `presidio-analyzer` is installed (extra `pii`).

Its spans are merged with ours and never replace them. Names need a spaCy model: without one it knows patterns only. It
would fetch the list of public suffixes when it first sees an e-mail address, so the copy that is installed is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from luthier.errors import InputError
from luthier.gate.private.spans import Span

KINDS = {
    "PERSON": "person_name",
    "EMAIL_ADDRESS": "email",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "card_number",
    "IBAN_CODE": "iban",
    "IP_ADDRESS": "ip_address",
    "MAC_ADDRESS": "mac_address",
    "URL": "url",
    "CRYPTO": "crypto_address",
    "DATE_TIME": "date",
    "LOCATION": "postal_address",
    "US_SSN": "us_ssn",
    "US_ITIN": "us_itin",
    "US_NPI": "us_npi",
    "US_PASSPORT": "passport",
    "US_DRIVER_LICENSE": "driving_licence",
    "US_BANK_NUMBER": "bank_account",
    "UK_NHS": "uk_nhs",
    "UK_NINO": "uk_nino",
    "MEDICAL_LICENSE": "us_dea",
}
"""Presidio's kind -> ours; what is not here is left out."""


def recogniser(model: str | None = None, *, language: str = "en") -> Callable[[str], Iterator[Span]]:
    """A function that finds what Presidio finds. `model`: a spaCy model's name or folder; None: patterns alone.

    Raises:
        InputError: Presidio, spaCy or the model is not installed.
    """
    engine = analyzer(model, language=language)

    def recognise(text: str) -> Iterator[Span]:
        for result in engine.analyze(text=text, language=language):
            kind = KINDS.get(result.entity_type)
            # A country is no address; a place with a number may be.
            if kind and (kind != "postal_address" or any(map(str.isdigit, text[result.start : result.end]))):
                yield Span(kind, result.start, result.end, result.score)

    return recognise


def analyzer(model: str | None = None, *, language: str = "en") -> Any:
    """Presidio's own analyzer, with all of its recognisers for the language."""
    try:
        presidio: Any = importlib.import_module("presidio_analyzer")
        engines: Any = importlib.import_module("presidio_analyzer.nlp_engine")
        suffixes: Any = importlib.import_module("tldextract")
        spacy: Any = importlib.import_module("spacy")
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed", do="pip install 'luthier[pii]'") from None
    suffixes.extract = suffixes.TLDExtract(suffix_list_urls=())
    if model is None:
        nlp = spacy.blank(language)
    elif spacy.util.is_package(model) or Path(model).is_dir():
        nlp = spacy.load(model)
    else:
        raise InputError("this spaCy model is not installed", got=model, do="install it, or give its folder")
    engine = engines.SpacyNlpEngine(models=[{"lang_code": language, "model_name": model or "blank"}])
    engine.nlp = {language: nlp}
    registry = presidio.RecognizerRegistry(supported_languages=[language])
    registry.load_predefined_recognizers(languages=[language], nlp_engine=engine)
    return presidio.AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=[language])
