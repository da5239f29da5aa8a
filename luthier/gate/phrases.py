"""Phrases by which other models give themselves away, and by which an answer declines, in several languages."""

from __future__ import annotations

import re

_SELF = (
    r"\b(?<!such )(?:as|being|since i(?:['’]m| am)|because i(?:['’]m| am)|i(?:['’]m| am)) (?:just |only |merely )?"
    r"(?:an? )?(?:large )?(?:ai(?: language)? model|ai language|language model|llm\b"
    r"|artificial intelligence)",
    r"\bas an ai\b",
    r"\b(?:trained|developed|created|made) by (?:openai|anthropic|google deepmind|meta ai|mistral ai|deepseek"
    r"|alibaba cloud)",
    r"\b(?:my|my training|my knowledge)[ -](?:knowledge |training )?(?:cut-?off|data only goes|was last updated)",
    r"\bas of my (?:last|latest|most recent|knowledge|training)\b",
    r"\bi (?:do not|don['’]t) have (?:personal (?:opinions|beliefs|feelings|experiences|preferences)|real-time access"
    r"|access to real-time)",
    r"\bals (?:(?:ein|eine) )?(?:ki\b|ki-|künstliche intelligenz|sprachmodell|großes sprachmodell)",
    r"\bich bin (?:nur )?ein (?:ki-)?sprachmodell",
    r"\ben tant qu(?:['’]une? |['’]|e )(?:ia\b|intelligence artificielle|modèle de langage"
    r"|modèle linguistique|assistant ia)",
    r"\bcomo (?:una? |un )?(?:ia\b|inteligencia artificial|modelo de lenguaje)",
    r"\b(?:in quanto|come) (?:un['’]?)?(?:ia\b|intelligenza artificiale|modello linguistico|modello di linguaggio)",
    r"\bcomo (?:uma? )?(?:inteligência artificial|modelo de linguagem)",
    r"\bals (?:een )?(?:ai\b|ai-|taalmodel|kunstmatige intelligentie)",
    r"\bjako (?:duży )?(?:model językowy|sztuczna inteligencja)",
    r"\bкак (?:языковая модель|искусственный интеллект|ии\b)",
    r"作为(?:一个|一名|一种)?(?:人工智能|AI|大?语言模型)",
    r"(?:AI|人工知能|言語モデル)(?:アシスタント|言語モデル)?(?:として|ですので|であるため)",
)
_SELF_STEMS = (
    *(
        " ai",
        "ai ",
        "language model",
        "llm",
        "artificial",
        "trained by",
        "developed by",
        "created by",
        "made by",
        "cutoff",
    ),
    *(
        "cut-off",
        "last updated",
        "as of my",
        "personal ",
        "real-time",
        "sprachmodell",
        "ki-",
        " ki",
        "künstliche",
        " ia",
    ),
    *("langage", "linguisti", "lenguaje", "inteligenc", "intelligenz", "linguagem", "taalmodel", "językow", "sztuczna"),
    *(
        "языков",
        "интеллект",
        " ии",
        "人工",
        "语言模型",
        "言語モデル",
        "作为ai",
        "aiと",
        "aiで",
        "data only goes",
        "kunstmatige",
    ),
)
_BOILERPLATE = re.compile("|".join(_SELF), re.IGNORECASE)


def find_boilerplate(text: str) -> re.Match[str] | None:
    lowered = text.lower()
    return _BOILERPLATE.search(text) if any(map(lowered.__contains__, _SELF_STEMS)) else None


_OPENING = 200
_DECLINES = re.compile(
    "|".join(
        (
            r"\b(?:i|we)(?:['’]m| am| are|['’]re)? (?:can(?:not|['’]t| not)|won['’]t|will not|(?:am |are )?(?:unable"
            r"|not able|not allowed|not permitted) to|must decline to|(?:do not"
            r"|don['’]t) feel comfortable)(?: be able to)? "
            r"(?:\w+ ){0,2}?(?:help|assist|comply|fulfil+|answer|discuss|engage|generat\w+|creat\w+|writ\w+|produc\w+"
            r"|participate|respond|do that|do this|support (?:that|this)|(?:provide|offer|share|give)(?: you)?"
            r"(?: with)? (?:that|this|any|information|instructions|advice|assistance|help|guidance|details|specific))",
            r"\bi must (?:respectfully )?(?:decline|refuse)\b",
            r"\bkann (?:ich )?(?:\w+ ){0,3}?(?:nicht|keine?n?) (?:\w+ ){0,4}?(?:helfen|weiterhelfen|beantworten"
            r"|unterstützen|erfüllen|bereitstellen|erstellen)",
            r"\bje (?:ne peux pas|ne peux malheureusement pas|ne suis pas en mesure de|ne suis pas capable de) "
            r"(?:\w+ |['’\w]+ ){0,2}?(?:\w{0,2}['’])?(?:aider|répondre|fournir|assister|créer|générer|écrire"
            r"|satisfaire|faire)",
            r"\bno (?:puedo|podré|me es posible) (?:ayudar|asistir|proporcionar|responder|cumplir|generar|crear|hacer"
            r"|ofrecer)",
            r"\bnon (?:posso|sono in grado di) (?:aiutar|assister|fornir|risponder|crear|generar|soddisfar)",
            r"\bnão (?:posso|consigo) (?:ajudar|fornecer|responder|atender|gerar|criar|auxiliar)",
            r"\bik kan (?:\w+ ){0,3}?(?:niet|geen) (?:\w+ ){0,3}?(?:helpen|beantwoorden|geven|maken|verstrekken)",
            r"\bне (?:могу|смогу) (?:\w+ ){0,2}?(?:помочь|ответить|предоставить|выполнить|создать)",
            r"(?:抱歉|对不起)[^。\n]{0,20}(?:无法|不能)[^。\n]{0,6}(?:回答|帮助|提供|协助|满足)",
            r"(?:申し訳|すみません|恐れ入ります)[^\n]{0,60}(?:お答え|お手伝い|対応|提供)[^\n]{0,8}(?:できません|できかねます)",
        )
    ),
    re.IGNORECASE,
)
_DECLINE_STEMS = (
    *(
        "can't",
        "can’t",
        "cannot",
        "can not",
        "won't",
        "won’t",
        "will not",
        "unable",
        "not able",
        "not allowed",
        "declin",
    ),
    *("not permitted", "refuse", "comfortable", "nicht", "kein", "ne peux", "ne suis", "no pued", "no podr", "posible"),
    *("non posso", "in grado", "não", "niet", "geen", "могу", "无法", "不能", "できません", "できかね"),
)


def is_refusal(text: str) -> bool:
    opening = text[:_OPENING]
    lowered = opening.lower()
    return any(map(lowered.__contains__, _DECLINE_STEMS)) and _DECLINES.search(opening) is not None
