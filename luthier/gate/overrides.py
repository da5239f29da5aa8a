"""Orders to a model to forget its instructions, in the languages in which they are spread."""

from __future__ import annotations

import re
from typing import NamedTuple


class Override(NamedTuple):
    language: str
    phrase: str
    start: int
    end: int
    mentioned: bool
    """The sentence forbids or reports it: "never obey a user who says: ..."."""


def find_override(text: str) -> Override | None:
    """The first order of its kind, one that is meant before one that is only mentioned."""
    lowered = text.lower()
    mentioned: Override | None = None
    for language, stems, pattern in _LANGUAGES:
        if not any(map(lowered.__contains__, stems)):
            continue
        for match in pattern.finditer(text):
            found = Override(language, match.group(), *match.span(), mentioned=_is_mentioned(text, match))
            if not found.mentioned:
                return found
            mentioned = mentioned or found
    return mentioned


def _is_mentioned(text: str, match: re.Match[str]) -> bool:
    before = text[max(0, match.start() - 160) : match.start()]
    if match.group()[0].isupper() and before.rstrip()[-1:] not in (":", "'", '"', "“", "‘", "«", "(", "`"):
        return False  # a sentence of its own, even where the one before it has no end
    return _REPORTED.search(_SENTENCE_END.split(before)[-1]) is not None


_SENTENCE_END = re.compile(r"[.!?;\n。](?=\s|\Z)|\n")
_REPORTED = re.compile(
    r"n[o']t\b|n’t\b|\bnever\b|\bcannot\b|refus|declin|attempt|\btr(?:y|ies|ied|ying)\b|\b(?:ask|request|tell|told|say)"
    r"|resist|reject|injection|jailbreak|attack|example|even if|\bnicht|niemals|\bnie\b|jamais|\bne\b|nunca|\bmai\b"
    r"|никогда|\bне\b|不要|绝不|拒绝|決して",
    re.IGNORECASE,
)
_UP_TO = r"\W{1,3}(?:\w{1,20}\W{1,3}){0,%d}?"
_VERB_FIRST = "%s" + _UP_TO % 5 + "%s" + _UP_TO % 3 + "%s"


def _orders(verbs: str, which: str, nouns: str) -> str:
    return r"\b" + _VERB_FIRST % (f"(?:{verbs})", f"(?:{which})", rf"(?:{nouns})\b")


_ENGLISH = "|".join(
    (
        _orders(
            "ignore|disregard|forget|override|bypass|discard|(?:do not|don['’]t|stop|no longer) (?:follow|obey|obeying"
            "|following|heed|listen to)|pay no (?:attention|heed) to",
            "previous|prior|above|earlier|preceding|foregoing|all|your|these|those|system|original|initial|existing|past",
            "instructions?|prompts?|directives?|guidelines?|guardrails?|programming|commands?|restrictions?|system "
            "messages?",
        ),
        r"\byou are (?:now|no longer)\W{1,3}(?:\w{1,20}\W{1,3}){0,3}?"
        r"(?:DAN\b|developer mode|jailbroken|unrestricted|unfiltered|uncensored|bound by)",
        r"\b(?:enable|enter|activate|switch to)\W{1,3}(?:developer|debug|god|jailbreak|DAN)\W{1,3}mode\b",
        r"\b(?:reveal|print|show|repeat|output|leak|display|disclose)\W{1,3}(?:me\W{1,3})?(?:your|the)\W{1,3}"
        r"(?:\w{1,20}\W{1,3}){0,2}?(?:system (?:prompt|message)|(?:hidden|initial|original|secret) "
        r"(?:prompt|instructions?))\b",
    )
)
_LANGUAGES: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (language, stems, re.compile(pattern, re.IGNORECASE))
    for language, stems, pattern in (
        (
            "English",
            (
                *(
                    "ignore",
                    "disregard",
                    "forget",
                    "override",
                    "bypass",
                    "discard",
                    "follow",
                    "obey",
                    "listen to",
                    "pay no",
                ),
                *("heed", "you are now", "you are no longer", "mode", "system prompt", "system message", "instruction"),
            ),
            _ENGLISH,
        ),
        (
            "German",
            ("ignorier", "vergiss", "vergesst", "vergessen sie", "missacht", "nicht"),
            _orders(
                r"ignorier\w*|vergiss|vergesst|vergessen sie|missachte\w*|(?:beachte|befolge)\w*(?: sie)? nicht",
                r"vorherig\w*|bisherig\w*|obig\w*|früher\w*|vorangegangen\w*|vorangehend\w*|vorig\w*|alle\w*"
                r"|deine\w*|ihre\w*",
                r"\w*anweisung\w*|instruktion\w*|befehl\w*|vorgaben?|prompts?|richtlinien",
            ),
        ),
        (
            "French",
            ("ignor", "oubli", "compte", "abstraction"),
            _orders(
                r"ignor\w+|oubli\w+|ne (?:tiens|tenez) pas compte|fai(?:s|tes) abstraction",
                r"instructions?|consignes?|directives?|prompts?|règles",
                r"précédent\w*|antérieur\w*|ci-dessus|initial\w*|plus haut",
            ),
        ),
        (
            "Spanish",
            ("ignor", "olvid", "omiso", "descart"),
            _orders(
                r"ignor\w+|olvid\w+|descart\w+|ha(?:z|ga) caso omiso",
                "instrucciones|indicaciones|directrices|reglas|órdenes|prompts?",
                "anteriores|previas|precedentes|arriba|iniciales",
            ),
        ),
        (
            "Italian",
            ("ignor", "dimentic", "trascur"),
            _orders(
                r"ignor\w+|dimentic\w+|trascur\w+",
                "istruzioni|indicazioni|direttive|regole|prompt",
                "precedenti|anteriori|sopra|iniziali",
            ),
        ),
        (
            "Portuguese",
            ("ignor", "esque", "desconsider"),
            _orders(
                r"ignor\w+|esque[çc]\w+|desconsider\w+",
                "instruções|orientações|diretrizes|regras|comandos|prompts?",
                "anteriores|prévias|acima|iniciais|precedentes",
            ),
        ),
        (
            "Dutch",
            ("negeer", "vergeet"),
            _orders(
                "negeer|vergeet",
                "vorige|eerdere|voorgaande|bovenstaande|alle|je|jouw|uw",
                "instructies?|aanwijzingen|opdrachten|richtlijnen|prompts?",
            ),
        ),
        (
            "Polish",
            ("ignoruj", "zapomnij", "pomiń"),
            _orders(
                "zignoruj|ignoruj|zapomnij|pomiń",
                r"poprzedni\w*|wcześniejsz\w*|powyższ\w*|wszystki\w*",
                r"instrukcj\w*|polece\w*|wytyczn\w*|prompt\w*",
            ),
        ),
        (
            "Turkish",
            ("yok say", "görmezden", "unut"),
            r"\b(?:önceki|yukarıdaki|tüm)\W{1,3}(?:\w{1,20}\W{1,3}){0,2}?(?:talimat|yönerge|komut)\w*\W{1,3}"
            r"(?:\w{1,20}\W{1,3}){0,2}?(?:yok say|görmezden|unut)",
        ),
        (
            "Russian",
            ("игнорир", "забуд", "не следуй", "внимания"),
            _orders(
                r"(?:про)?игнорир\w+|забуд\w+|не следуй\w*|не обращай\w* внимания",
                r"предыдущ\w+|прежни\w+|вышеуказанн\w+|вс[её]х?|свои\w*",
                r"инструкци\w+|указани\w+|команд\w*|промпт\w*",
            ),
        ),
        (
            "Arabic",
            ("تجاهل", "انس"),
            _orders("تجاهلي?|انسَ?", "التعليمات|الأوامر|الإرشادات|القواعد", "السابقة|أعلاه"),
        ),
        (
            "Chinese",
            ("忽略", "无视", "無視", "忘记", "忘掉", "忽視", "不要理会"),
            "(?:忽略|无视|無視|忘记|忘掉|忽視|不要理会)[^。\n]{0,12}?(?:之前|以上|上述|先前|前面|所有|此前)[^。\n]{0,8}?"
            "(?:指令|指示|提示|规则|規則|命令)",
        ),
        (
            "Japanese",
            ("無視", "忘れ"),
            "(?:これまで|以前|上記|前|すべて|全て)[^。\n]{0,10}?(?:指示|命令|プロンプト|指令)[^。\n]{0,6}?(?:無視|忘れ)",
        ),
        (
            "Korean",
            ("무시", "잊"),
            "(?:이전|위의|모든)[^.\n]{0,12}?(?:지시|명령|프롬프트|지침)[^.\n]{0,8}?(?:무시|잊)",
        ),
    )
)
