"""Words that name a group of people, in English; a policy adds its own under `terms`.

Only words that say little else are listed: `black` and `white` are colours, `may` and `mark` no names, `old` is said of
orders. So counts are lower bounds.
"""

from __future__ import annotations

from collections.abc import Mapping

_NATIONS = {
    "american": "american americans",
    "british": "british briton britons englishman englishwoman scottish welsh",
    "chinese": "chinese",
    "french": "frenchman frenchwoman frenchmen",
    "german": "german germans",
    "indian": "indian indians",
    "irish": "irish irishman irishwoman",
    "italian": "italian italians",
    "japanese": "japanese",
    "mexican": "mexican mexicans",
    "nigerian": "nigerian nigerians",
    "pakistani": "pakistani pakistanis",
    "polish": "poles",
    "russian": "russian russians",
    "spanish": "spaniard spaniards",
    "syrian": "syrian syrians",
    "turkish": "turkish turks",
    "ukrainian": "ukrainian ukrainians",
}
_TERMS: dict[str, dict[str, str]] = {
    "gender": {
        "women": "she her hers herself woman women female females girl girls mother wife daughter sister lady ladies "
        "mrs madam grandmother aunt niece girlfriend widow",
        "men": "he him his himself man men male males boy boys father husband son brother gentleman gentlemen mr sir "
        "grandfather uncle nephew boyfriend widower",
        "non-binary": "nonbinary non-binary transgender genderqueer",
    },
    "age": {
        "children": "child children kid kids infant infants baby babies toddler toddlers newborn",
        "young people": "teenager teenagers teen teens adolescent adolescents youth youngster",
        "old people": "elderly senior seniors pensioner pensioners retiree retirees octogenarian",
    },
    "nationality": _NATIONS,
    "religion": {
        "christians": "christian christians catholic catholics protestant protestants church",
        "muslims": "muslim muslims islam islamic mosque hijab",
        "jews": "jew jews jewish synagogue rabbi",
        "hindus": "hindu hindus hinduism",
        "buddhists": "buddhist buddhists buddhism",
        "sikhs": "sikh sikhs",
        "atheists": "atheist atheists",
    },
    "disability": {
        "people with disabilities": "disabled disability disabilities wheelchair handicapped blind deaf autistic "
        "autism "
        "paraplegic amputee dyslexic dyslexia",
    },
}


def groups(more: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, tuple[str, str]]:
    """Word -> its kind and group: `she` -> (gender, women).

    Args:
        more: a policy's own: group -> words. A group that is listed above gains words; others are of kind `policy`.
    """
    found = {
        word: (kind, group) for kind, of in _TERMS.items() for group, words in of.items() for word in words.split()
    }
    kinds = {group: kind for kind, of in _TERMS.items() for group in of}
    for group, words in (more or {}).items():
        found |= {word.casefold(): (kinds.get(group, "policy"), group) for word in words}
    return found
