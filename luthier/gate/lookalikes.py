"""Words that mix scripts by letters that look alike: a Cyrillic а in a Latin word.

From Unicode's confusables (UTS 39) only the letters that are told apart by nobody in common fonts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_CYRILLIC_TO_LATIN = dict(zip("аеорсухіјѕԁӏһԛԝѵкАВЕКМНОРСТУХІЈЅԌҮ", "aeopcyxijsdlhqwvkABEKMHOPCTYXIJSGY", strict=True))
_GREEK_TO_LATIN = dict(zip("οΑΒΕΖΗΙΚΜΝΟΡΤΥΧ", "oABEZHIKMNOPTYX", strict=True))
_SMALL_GREEK_TO_LATIN = dict(zip("αιλνρυκ", "ailvpuk", strict=True))
"""Also signs of science (TNFα, λmax): twins only between two small Latin letters."""
_LATIN_TO_CYRILLIC = {
    latin: cyrillic for cyrillic, latin in _CYRILLIC_TO_LATIN.items() if latin in "aeopcyxABEKMHOPCTX"
}
_LATIN_TO_GREEK = {latin: greek for greek, latin in _GREEK_TO_LATIN.items()} | {"v": "ν"}

_LATIN, _OTHER = "A-Za-z\u00c0-\u024f", "\u0370-\u03ff\u0400-\u052f"
_MEETING = re.compile(f"[{_LATIN}](?=[{_OTHER}])|[{_OTHER}](?=[{_LATIN}])")
_WORD = re.compile(r"[^\W\d_]+")
_IS_LATIN = re.compile(f"[{_LATIN}]")
_RUSSIAN = re.compile("[бгджзийлнпфцчшщъыьэюяБГДЖЗИЙЛПФЦЧШЩЪЫЬЭЮЯ]")
_TAIL = re.compile(f"[{_LATIN}]{{2,}}[\u0400-\u052f]{{1,3}}")
_ACRONYM = re.compile("[A-Z]{2,}[а-яё]+")


def mixed_words(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end, and the word in one script, of each word that poses as one."""
    if text.isascii() or not _MEETING.search(text):
        return
    russian = _RUSSIAN.search(text) is not None
    for match in _WORD.finditer(text):
        word = match.group()
        if len(word) > 2 and not word.isascii() and _MEETING.search(word):
            plain = _plain(word, russian=russian)
            if plain != word:
                yield match.start(), match.end(), plain


def _plain(word: str, *, russian: bool) -> str:
    """The word in one script; as it is where it is no disguise."""
    latin = [c for c in word if _IS_LATIN.match(c)]
    other = [c for c in word if re.match(f"[{_OTHER}]", c)]
    as_latin = "".join(_latin_twin(word, index) for index in range(len(word)))
    twins = _LATIN_TO_GREEK if "\u0370" <= other[0] <= "\u03ff" else _LATIN_TO_CYRILLIC
    as_other = "".join(twins.get(c, c) for c in word)
    to_latin, to_other = not _MEETING.search(as_latin), not _MEETING.search(as_other)
    if to_latin and russian and _TAIL.fullmatch(word):
        to_latin = False
    if to_other and (_ACRONYM.fullmatch(word) or len(other) < 2):
        to_other = False
    if to_latin and (len(latin) >= len(other) or not to_other):
        return as_latin
    return as_other if to_other else word


def _latin_twin(word: str, index: int) -> str:
    """The Latin letter that one of another script poses as; itself where it does not."""
    letter, before = word[index], word[index - 1 : index] if index else ""
    if letter in _SMALL_GREEK_TO_LATIN:
        around = before + word[index + 1 : index + 2]
        return _SMALL_GREEK_TO_LATIN[letter] if len(around) == 2 and around.isascii() and around.islower() else letter
    if letter.isupper() and before.isascii() and before.islower():
        return letter  # "deriveΑ": two words that lost the space between them
    return _CYRILLIC_TO_LATIN.get(letter) or _GREEK_TO_LATIN.get(letter) or letter
