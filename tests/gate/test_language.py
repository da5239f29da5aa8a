"""Which language a text is in, and texts of which that cannot be told."""

import pytest

from luthier.gate.language import by_words, teller

TEXTS = {
    "en": "I would like to know when my order will be here, it was sent two weeks ago.",
    "de": "Ich möchte gerne wissen, wann meine Bestellung kommt, sie wurde vor zwei Wochen verschickt.",
    "fr": "Je voudrais savoir quand ma commande arrivera, elle a été envoyée il y a deux semaines.",
    "es": "Quisiera saber cuándo llegará mi pedido, que fue enviado hace dos semanas por la tienda.",
    "it": "Vorrei sapere quando arriverà il mio ordine, che è stato spedito due settimane fa.",
    "nl": "Ik zou graag willen weten wanneer mijn bestelling komt, het is twee weken geleden verzonden.",
    "pt": "Gostaria de saber quando chega a minha encomenda, que foi enviada há duas semanas.",
    "pl": "Chciałbym wiedzieć, kiedy dotrze moje zamówienie, zostało wysłane dwa tygodnie temu.",
    "ru": "Я хотел бы узнать, когда придёт мой заказ, его отправили две недели назад.",
    "ja": "注文した商品がいつ届くのか教えていただけますか。二週間前に発送されたはずです。",
}


@pytest.mark.parametrize("code", TEXTS)
def test_a_sentence_is_told(code: str) -> None:
    assert teller()(TEXTS[code]) == code


@pytest.mark.parametrize("code", TEXTS)
def test_function_words_alone_never_say_another_language(code: str) -> None:
    assert by_words(TEXTS[code].lower()) in (code, None)


@pytest.mark.parametrize(
    "text", ["ok", "no problem", "123 456 789", "", "A7-99 / B2", "👍 👍 👍", "the of and to " + "xyz " * 40]
)
def test_what_says_too_little_is_not_told(text: str) -> None:
    assert teller()(text) in (None, "en" if "the" in text else None)
    assert by_words(text) is None


def test_two_languages_in_one_text_are_not_decided_by_words() -> None:
    assert by_words("the order of the day and der Auftrag und das ist nicht für to me") is None
