"""The language of a text, or None where it is too short or too mixed to tell.

py3langid over the languages that people most often train on: among all of its 97 a sentence of clinical English is
taken for French.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

LANGUAGES = (
    *("ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it"),
    *("ja", "ko", "lt", "lv", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "ta", "th", "tr", "uk", "ur"),
    *("vi", "zh"),
)
FEWEST_LETTERS = 24
"""Below, "ok" and "no problem" have any language."""
LEAST_SURE = 0.9
LOOKED_AT = 240
"""Characters of a text that are looked at: more seldom changes the answer."""


@cache
def teller(more: tuple[str, ...] = ()) -> Callable[[str], str | None]:
    """A function from a text to its ISO 639-1 code.

    Args:
        more: codes that may be found as well.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=LEAST_SURE)
    identifier.set_languages(sorted({*LANGUAGES, *more} & set(identifier.labels)))

    def tell(text: str) -> str | None:
        seen = text[:LOOKED_AT]
        if sum(map(str.isalpha, seen)) < FEWEST_LETTERS:
            return None
        code, _ = identifier.classify(seen)
        return None if code == "und" else str(code)

    return tell
