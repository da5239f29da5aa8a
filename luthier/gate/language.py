"""The language of a text, or None where it is too short or too mixed to tell.

Function words decide most texts; the others go to py3langid over the languages that people most often train on: among
all of its 97 a sentence of clinical English is taken for French.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

LANGUAGES = (
    *("ar", "bg", "bn", "cs", "da", "de", "el", "en", "es", "et", "fa", "fi", "fr", "he", "hi", "hr", "hu", "id", "it"),
    *("ja", "ko", "lt", "lv", "nl", "no", "pl", "pt", "ro", "ru", "sk", "sl", "sr", "sv", "ta", "th", "tr", "uk", "ur"),
    *("vi", "zh"),
)
_FUNCTION_WORDS = {
    "en": "the and of to is that it you for with this have from they which would there their what about been your "
    "will when please my our are could has not",
    "de": "der das und nicht ist ich ein eine mit sie auf dem auch bei wird sind haben wir noch nach wie oder aber "
    "wenn bitte mein ihre zum zur kann",
    "fr": "le les des est une dans que pour pas vous avec sur plus mais nous ce cette sont votre mon je ont aux ou",
    "es": "el los las que una por con para como pero más su está cuando muy hay mi sus este ser yo puede",
    "it": "il che di non una per sono della con anche alla nel gli questo più ho mio delle ma come",
    "nl": "het een van niet ik dat op te zijn met voor aan er maar om dan naar heb mijn deze ook",
    "pt": "os um uma não com para mais como mas foi ao ele das tem seu sua ou quando muito já eu também pelo",
}
"""The commonest words of a language; a word of two of these languages tells nothing and is left out below."""
FEWEST_LETTERS = 24
"""Below, "ok" and "no problem" have any language."""
LEAST_SURE = 0.9
LOOKED_AT = 240
"""Characters of a text that are looked at: more seldom changes the answer."""
FEWEST_WORDS, SHARE = 4, 0.2
"""Function words of one language that decide by themselves, and their share of all words; and no other has a fourth of
that. This spares the model most of its work."""


def _words() -> dict[str, str]:
    counts = Counter(word for text in _FUNCTION_WORDS.values() for word in text.split())
    return {word: code for code, text in _FUNCTION_WORDS.items() for word in text.split() if counts[word] == 1}


_WORDS = _words()


@cache
def teller(more: tuple[str, ...] = ()) -> Callable[[str], str | None]:
    """A function from a text to its ISO 639-1 code.

    Args:
        more: codes that may be found as well.
    """
    model: list[Any] = []

    def tell(text: str) -> str | None:
        seen = text[:LOOKED_AT]
        plain = by_words(seen)
        if plain is not None:
            return plain
        if sum(map(str.isalpha, seen)) < FEWEST_LETTERS:
            return None
        if not model:
            # Loaded for the first text that needs it: half a second that a small set in plain English does not spend.
            model.append(_identifier(more))
        code, _ = model[0].classify(seen)
        return None if code == "und" else str(code)

    return tell


def by_words(text: str) -> str | None:
    """The language that the function words of a text leave no doubt of."""
    words = text.lower().split()
    found = [code for word in words if (code := _WORDS.get(word))]
    if len(found) < max(FEWEST_WORDS, SHARE * len(words)):
        return None
    if found.count(found[0]) == len(found):
        return found[0]
    (code, most), (_, second) = Counter(found).most_common(2)
    return code if most >= FEWEST_WORDS and second * 4 <= most else None


def _identifier(more: tuple[str, ...]) -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=LEAST_SURE)
    identifier.set_languages(sorted({*LANGUAGES, *more} & set(identifier.labels)))
    return identifier
