"""Plants private data and secrets into rows: e-mail, phone, cards, national numbers, keys. Rule -> planter.

Values are Faker's (`pip install faker`), so that those who wrote the rules did not choose them; what Faker lacks, or
gives without its check digit, follows the issuer's published algorithm here, and never the rules' own code. Sentences
say what the value is; in a kind named `no word` they do not. As many other rows get what looks alike and is not
private: an order number, a version, a number with a wrong check digit. What is found there counts against precision.
"""

from __future__ import annotations

import base64
import json
import random
import string
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.gate_faults_form import Planted, Planter, chosen, with_field
from luthier.gate.rows import Row

if TYPE_CHECKING:
    from faker import Faker

LOCALES = ("en_US", "en_GB", "de_DE", "fr_FR", "es_ES", "it_IT", "nl_NL")
NO_WORD = "no word"
UPPER, ALNUM = string.ascii_uppercase, string.ascii_letters + string.digits


class Fakes:
    """Faker in several countries and a source of chance, all from one seed."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.by = {name: _faker(name) for name in LOCALES}
        for faker in self.by.values():
            faker.seed_instance(seed)

    @property
    def us(self) -> Faker:
        return self.by["en_US"]

    def any(self) -> Faker:
        return self.by[self.draw.choice(LOCALES)]

    def digits(self, count: int) -> str:
        return "".join(self.draw.choices(string.digits, k=count))

    def letters(self, count: int, of: str = ALNUM) -> str:
        return "".join(self.draw.choices(of, k=count))


@cache
def _faker(locale: str) -> Faker:
    try:
        from faker import Faker
    except ImportError:
        raise SystemExit("values of private data come from Faker: pip install faker") from None
    return Faker(locale)


Value = Callable[[Fakes], str]


class Kind(NamedTuple):
    value: Value
    named: tuple[str, ...]
    """Sentences that say what {} is."""
    bare: tuple[str, ...] = ()
    """Sentences that do not; empty where nobody could tell."""
    alike: Value | None = None
    """A sentence with what is not private; left out: an order or the like with one digit of a value changed."""
    bare_value: Value | None = None
    """What stands in bare sentences, where it is not `value`."""


def planter(kind: Kind, value: Value, sentences: Sequence[str], name: str) -> Planter:
    def plant(rows: Sequence[Row], rate: float, seed: int) -> Planted:
        draw = random.Random(f"{seed} {name}")
        fakes = Fakes(draw.randrange(2**32))
        at_all = chosen(range(len(rows)), rate, draw, len(rows))
        rest = sorted(set(range(len(rows))) - set(at_all))
        made = list(rows)
        for index in at_all:
            made[index] = _said(rows[index], draw.choice(sentences).format(value(fakes)), draw)
        for index in draw.sample(rest, min(len(at_all), len(rest))):
            made[index] = _said(rows[index], (kind.alike or _mistyped(kind.value))(fakes), draw)
        return Planted(made, {rows[index].id for index in at_all})

    return plant


def _said(row: Row, sentence: str, draw: random.Random) -> Row:
    """The row with a sentence more: in front, at the end or between two, in what is asked or in the answer."""
    able = [next(n for n, field in enumerate(row.fields) if field.role in ("user", "text"))]
    if row.answer and ".tool_calls[" not in row.fields[-1].path:
        able.append(len(row.fields) - 1)
    at = draw.choice(able)
    parts = row.fields[at].text.split(". ")
    place = draw.randint(0, len(parts))
    joined = ". ".join([*parts[:place], sentence.rstrip("."), *parts[place:]])
    return with_field(row, at, joined + ("." if place == len(parts) else ""))


_ORDERS = (
    "My order number is {}.",
    "The tracking code {} does not work.",
    "Please quote ticket {} when you write.",
    "Part {} is out of stock.",
    "Invoice {} has been settled.",
)


def _mistyped(value: Value) -> Value:
    """One digit changed, which every check digit here notices, under another name."""

    def sentence(fakes: Fakes) -> str:
        text = value(fakes)
        at = fakes.draw.choice([at for at, character in enumerate(text) if character.isdigit()])
        digit = str((int(text[at]) + fakes.draw.randrange(1, 9)) % 10)
        return fakes.draw.choice(_ORDERS).format(text[:at] + digit + text[at + 1 :])

    return sentence


def _one_of(*sentences: str, with_: Value = lambda fakes: "") -> Value:
    return lambda fakes: fakes.draw.choice(sentences).format(with_(fakes))


def _grouped(text: str, sizes: Sequence[int], separator: str) -> str:
    ends = [sum(sizes[: n + 1]) for n in range(len(sizes))]
    return separator.join(text[end - size : end] for size, end in zip(sizes, ends, strict=True))


def _email(fakes: Fakes) -> str:
    return str(fakes.any().email(safe=fakes.draw.random() < 0.2))


def _phone(fakes: Fakes) -> str:
    return str(fakes.any().phone_number())


def _iban(fakes: Fakes) -> str:
    text = str(fakes.any().iban())
    return text if fakes.draw.random() < 0.5 else " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def _card(fakes: Fakes) -> str:
    kind = fakes.draw.choice(("visa16", "mastercard", "amex", "discover", "diners", "visa19", "maestro"))
    return _written(str(fakes.us.credit_card_number(card_type=kind)), fakes)


def _long_card(fakes: Fakes) -> str:
    """Without the twelve digits of Maestro, which are most often something else. (Faker's JCB leaves JCB's range.)"""
    kind = fakes.draw.choice(("visa16", "mastercard", "amex", "discover", "diners", "visa19"))
    return _written(str(fakes.us.credit_card_number(card_type=kind)), fakes)


def _written(text: str, fakes: Fakes) -> str:
    if len(text) != 16 or fakes.draw.random() < 0.5:
        return text
    return _grouped(text, (4, 4, 4, 4), fakes.draw.choice(" -"))


def _ip(fakes: Fakes) -> str:
    return str(fakes.us.ipv4_public() if fakes.draw.random() < 0.7 else fakes.us.ipv6())


def _ssn(fakes: Fakes) -> str:
    return str(fakes.us.ssn())


def _no_ssn(fakes: Fakes) -> str:
    """Areas 000, 666 and from 900, group 00, serial 0000 are never issued."""
    area = fakes.draw.choice(("000", "666", f"9{fakes.digits(2)}"))
    wrong = (f"{area}-{fakes.digits(2)}-{fakes.digits(4)}", f"{fakes.digits(3)}-00-{fakes.digits(4)}")
    return fakes.draw.choice(_ORDERS).format(fakes.draw.choice(wrong))


def _nino(fakes: Fakes) -> str:
    """HMRC, NIM39110: prefixes without D, F, I, Q, U, V (and O second), and without seven pairs. Faker's ZZ is none."""
    first = fakes.draw.choice("ABCEGHJKLMNOPRSTWXYZ")
    pairs = [first + second for second in "ABCEGHJKLMNPRSTWXYZ"]
    prefix = fakes.draw.choice([p for p in pairs if p not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")])
    number = f"{prefix}{fakes.digits(6)}{fakes.draw.choice('ABCD')}"
    return number if fakes.draw.random() < 0.5 else _grouped(number, (2, 2, 2, 2, 1), " ")


def _no_nino(fakes: Fakes) -> str:
    """A letter that no prefix begins with."""
    return fakes.draw.choice(_ORDERS).format(f"{fakes.draw.choice('DFIQUV')}A{fakes.digits(6)}C")


def _nhs(fakes: Fakes) -> str:
    """NHS Data Dictionary: weights 10 to 2, eleven less the remainder; ten is not given out."""
    while True:
        first = fakes.draw.choice("4679") + fakes.digits(8)
        check = -sum(int(digit) * weight for digit, weight in zip(first, range(10, 1, -1), strict=True)) % 11
        if check != 10:
            number = f"{first}{check}"
            return number if fakes.draw.random() < 0.5 else _grouped(number, (3, 3, 4), " ")


def _steuer_id(fakes: Fakes) -> str:
    """Paragraph 139b AO: of the first ten digits one stands there twice or three times, the others once at most; no
    0 in front; ISO 7064 mod 11, 10."""
    while True:
        digits = fakes.draw.sample(string.digits, 9 - fakes.draw.randrange(2))
        digits += [digits[0]] * (10 - len(digits))
        fakes.draw.shuffle(digits)
        run = "".join(digits)
        if run[0] != "0" and not any(digit * 3 in run for digit in run):
            break
    rest = 10
    for digit in digits:
        rest = 2 * ((rest + int(digit)) % 10 or 10) % 11
    number = f"{run}{(11 - rest) % 10}"
    return number if fakes.draw.random() < 0.5 else _grouped(number, (2, 3, 3, 3), " ")


def _nir(fakes: Fakes) -> str:
    number = str(fakes.by["fr_FR"].ssn())
    return number if fakes.draw.random() < 0.5 else _grouped(number, (1, 2, 2, 2, 3, 3, 2), " ")


def _dni(fakes: Fakes) -> str:
    spain = fakes.by["es_ES"]
    return str(spain.nif() if fakes.draw.random() < 0.5 else spain.nie())


def _birth(fakes: Fakes) -> str:
    day = fakes.us.date_of_birth(minimum_age=1, maximum_age=99)
    form = fakes.draw.choice(("%d/%m/%Y", "%m/%d/%Y", "%Y-%m-%d", "%d.%m.%Y", "%d %B %Y", "%B %d, %Y", "%d %b %Y"))
    return str(day.strftime(form))


def _record(fakes: Fakes) -> str:
    return str(
        fakes.us.bothify(fakes.draw.choice(("#######", "########", "MR######", "??######", "###-##-##", "#####")))
    )


def _address(fakes: Fakes) -> str:
    return str(fakes.any().address()).replace(" \n", "\n").replace("\n", fakes.draw.choice((", ", "\n")))


def _service_key(fakes: Fakes) -> str:
    """The forms that the services publish, and that scanners of repositories look for."""
    d, lower_hex = fakes.draw, "0123456789abcdef"
    forms: tuple[Callable[[], str], ...] = (
        lambda: "AKIA" + fakes.letters(16, UPPER + "234567"),  # AWS
        lambda: "ghp_" + fakes.letters(36),  # GitHub
        lambda: f"github_pat_{fakes.letters(22)}_{fakes.letters(59)}",
        lambda: f"sk_{d.choice(('live', 'test'))}_{fakes.letters(24)}",  # Stripe
        lambda: "rk_live_" + fakes.letters(24),
        lambda: f"xoxb-{fakes.digits(12)}-{fakes.digits(13)}-{fakes.letters(24)}",  # Slack
        lambda: (
            f"https://hooks.slack.com/services/T{fakes.letters(8, UPPER)}/B{fakes.letters(8, UPPER)}/"
            + fakes.letters(24)
        ),
        lambda: "AIza" + fakes.letters(35, ALNUM + "-_"),  # Google
        lambda: "GOCSPX-" + fakes.letters(28, ALNUM + "-_"),
        lambda: f"sk-proj-{fakes.letters(74, ALNUM + '-_')}T3BlbkFJ{fakes.letters(74, ALNUM)}",  # OpenAI
        lambda: f"sk-ant-api03-{fakes.letters(93, ALNUM + '-_')}AA",  # Anthropic
        lambda: "hf_" + fakes.letters(34, string.ascii_letters),  # Hugging Face
        lambda: "glpat-" + fakes.letters(20),  # GitLab
        lambda: "npm_" + fakes.letters(36),
        lambda: "dop_v1_" + fakes.letters(64, lower_hex),  # DigitalOcean
        lambda: "shpat_" + fakes.letters(32, lower_hex),  # Shopify
        lambda: f"SG.{fakes.letters(22)}.{fakes.letters(43)}",  # SendGrid
        lambda: "dapi" + fakes.letters(32, lower_hex),  # Databricks
        lambda: "PMAK-" + fakes.letters(24, lower_hex) + "-" + fakes.letters(34, lower_hex),  # Postman
        lambda: ".".join((_json(alg="HS256", typ="JWT"), _json(sub=fakes.digits(10)), fakes.letters(43, ALNUM + "-_"))),
    )
    return d.choice(forms)()


def _json(**claims: str) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


def _aws_secret(fakes: Fakes) -> str:
    return fakes.letters(40, ALNUM + "/+")


def _password(fakes: Fakes) -> str:
    return str(fakes.us.password(length=fakes.draw.randint(8, 14), special_chars=fakes.draw.random() < 0.7))


def _connection(fakes: Fakes) -> str:
    scheme = fakes.draw.choice(("postgres", "postgresql", "mysql", "mongodb+srv", "redis", "amqp", "https", "ftp"))
    word = fakes.us.password(length=12, special_chars=False)
    who, host = fakes.us.user_name(), fakes.us.hostname()
    forms = (
        f"{scheme}://{who}:{word}@{host}/{fakes.us.word()}",
        f"{scheme}://{who}:{word}@{fakes.us.ipv4_public()}:{fakes.digits(4)}/db",
        f"Server={host};Database={fakes.us.word()};User Id={who};Password={word};",
        f"DefaultEndpointsProtocol=https;AccountName={who};"
        f"AccountKey={base64.b64encode(fakes.draw.randbytes(64)).decode()};EndpointSuffix=core.windows.net",
    )
    return fakes.draw.choice((*forms[:2], *forms))


def _pem(fakes: Fakes) -> str:
    kind = fakes.draw.choice(("RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"))
    return _block(kind, fakes)


def _block(kind: str, fakes: Fakes) -> str:
    body = base64.b64encode(fakes.draw.randbytes(fakes.draw.choice((120, 600)))).decode()
    lines = "\n".join(body[at : at + 64] for at in range(0, len(body), 64))
    return f"-----BEGIN {kind}-----\n{lines}\n-----END {kind}-----"


_IT_IS = ("It is {}.", "Use {} from now on.", "{} is the one that I gave you.", "Here you are: {}")
KINDS: Mapping[str, Kind] = {
    "email": Kind(
        _email,
        ("My e-mail is {}.", "Please write to {} about it.", "You can reach me under {}.", "Meine Mailadresse ist {}."),
        _IT_IS,
        _one_of(
            "Follow @{} for more.",
            "We paid 3 @ 5 each, says {}.",
            "The package is called @{}/tools@2.1.0.",
            with_=lambda fakes: str(fakes.us.user_name()),
        ),
    ),
    "phone": Kind(
        _phone,
        (
            "My phone number is {}.",
            "Call me at {} after six.",
            "You can reach her on her mobile, {}.",
            "Fax: {}",
            "Meine Telefonnummer ist {}.",
            "Mon numéro de téléphone est le {}.",
            "Mi número de teléfono es {}.",
            "Il mio numero di telefono è {}.",
            "Mijn telefoonnummer is {}.",
        ),
        _IT_IS,
        lambda fakes: fakes.draw.choice(
            (
                f"The order {fakes.digits(fakes.draw.randint(8, 12))} has shipped.",
                f"The book is ISBN {fakes.us.isbn13()}.",
                f"They sold {fakes.draw.randrange(10**6, 10**8):,} of them.",
                f"The bill is for {fakes.draw.randrange(10**4, 10**6)}.{fakes.digits(2)} in all.",
                f"It was due on {fakes.us.date()}.",
                f"Invoice {fakes.us.year()}-{fakes.digits(4)}-{fakes.digits(2)} is open.",
            )
        ),
    ),
    "iban": Kind(
        _iban,
        ("My IBAN is {}.", "Please pay into the account {}.", "Überweisen Sie bitte auf das Konto {}."),
        _IT_IS,
    ),
    "card_number": Kind(
        _card,
        ("My card number is {}.", "I paid with my credit card, {}.", "Charge the Visa {} please.", "Karte: {}"),
        _IT_IS,
        bare_value=_long_card,
    ),
    "ip_address": Kind(
        _ip,
        ("My IP address is {}.", "The server at {} does not answer.", "Somebody logged in from {}."),
        _IT_IS,
        lambda fakes: fakes.draw.choice(
            (
                "Please update to version {}.",
                "The firmware {} fixes that.",
                "Section {} of the contract says so.",
                "See chapter {} of the manual.",
                "We are on v{} now.",
            )
        ).format(".".join(str(fakes.draw.randint(1, 30)) for _ in range(4))),
    ),
    "mac_address": Kind(
        lambda fakes: str(fakes.us.mac_address()),
        ("The MAC address is {}.", "The router's hardware address reads {}."),
        _IT_IS,
        _one_of("The commit is {}.", "It began at 12:30:45, says {}.", with_=lambda fakes: str(fakes.us.uuid4())),
    ),
    "us_ssn": Kind(
        _ssn,
        ("My social security number is {}.", "SSN: {}", "His social is {}.", "The patient's SSN is {}."),
        _IT_IS,
        _no_ssn,
    ),
    "us_itin": Kind(
        lambda fakes: str(fakes.us.itin()),
        ("My ITIN is {}.", "My individual taxpayer number is {}.", "Tax ID: {}"),
        (),
        lambda fakes: fakes.draw.choice(_ORDERS).format(fakes.us.itin()),
    ),
    "uk_nino": Kind(
        _nino,
        ("My national insurance number is {}.", "NI number: {}", "Her NINO is {}."),
        _IT_IS,
        _no_nino,
    ),
    "uk_nhs": Kind(
        _nhs,
        ("My NHS number is {}.", "NHS no. {}", "The patient, NHS {}, was seen today.", "{} is his NHS number."),
        _IT_IS,
    ),
    "de_tax_id": Kind(
        _steuer_id,
        (
            "Meine Steuer-ID ist {}.",
            "Steueridentifikationsnummer: {}",
            "Die IdNr. lautet {}.",
            "My German tax ID is {}.",
        ),
        _IT_IS,
    ),
    "fr_nir": Kind(
        _nir,
        ("Mon numéro de sécurité sociale est le {}.", "NIR : {}", "My French social security number is {}."),
        _IT_IS,
    ),
    "es_dni": Kind(
        _dni,
        ("Mi DNI es {}.", "NIE: {}", "Con NIF {} y domicilio en Madrid.", "My Spanish identity number is {}."),
        _IT_IS,
    ),
    "it_fiscal_code": Kind(
        lambda fakes: str(fakes.by["it_IT"].ssn()),
        ("Il mio codice fiscale è {}.", "C.F. {}", "My Italian tax code is {}."),
        _IT_IS,
    ),
    "nl_bsn": Kind(
        lambda fakes: str(fakes.by["nl_NL"].ssn()),
        ("Mijn BSN is {}.", "Burgerservicenummer: {}", "My Dutch BSN is {}.", "Sofinummer {}."),
        _IT_IS,
    ),
    "date_of_birth": Kind(
        _birth,
        (
            "I was born on {}.",
            "Date of birth: {}",
            "DOB {}.",
            "My birthday is {}.",
            "Geboren am {}.",
            "Né le {}.",
            "Fecha de nacimiento: {}",
            "Data di nascita: {}",
            "Geboortedatum: {}",
        ),
        (),
        _one_of(
            "The appointment is on {}.",
            "It was delivered on {}.",
            "The contract ends on {}.",
            "The last review was on {}.",
            with_=_birth,
        ),
    ),
    "medical_record": Kind(
        _record,
        (
            "MRN: {}",
            "My medical record number is {}.",
            "The patient ID is {}.",
            "Hospital number {}.",
            "Patientennummer {}.",
        ),
        (),
        lambda fakes: fakes.draw.choice(_ORDERS).format(_record(fakes)),
    ),
    "passport": Kind(
        lambda fakes: str(fakes.us.passport_number()),
        ("My passport number is {}.", "Passport: {}", "Reisepass Nr. {}.", "Mon passeport porte le numéro {}."),
        (),
        lambda fakes: fakes.draw.choice(_ORDERS).format(fakes.us.passport_number()),
    ),
    "postal_address": Kind(
        _address,
        (
            "My address is {}.",
            "I live at {}.",
            "Please send it to {}.",
            "Meine Anschrift ist {}.",
            "Mon adresse : {}",
            "Mi dirección es {}.",
            "Il mio indirizzo è {}.",
            "Mijn adres is {}.",
        ),
        _IT_IS,
        _one_of(
            "We have table 12 by the window.",
            "On 14 March 2019 Main Hall was closed.",
            "I have an iPhone 14 Pro and a Galaxy 22.",
            "Windows 11 came after Windows 10.",
            "Chapter 7 is about the Silk Road.",
            "She ran 5 Miles in 40 Minutes.",
            "Gate 22 is next to Platform 9.",
        ),
    ),
    "private_key": Kind(
        _pem,
        ("This is the private key: {}", "The key is\n{}"),
        _IT_IS,
        lambda fakes: _block(fakes.draw.choice(("PUBLIC KEY", "CERTIFICATE")), fakes),
    ),
    "secret/service key": Kind(
        _service_key,
        ("The API key is {}.", "My token is {}.", 'api_key = "{}"', "Authorization: Bearer {}"),
        _IT_IS,
        lambda fakes: fakes.draw.choice(
            (
                f"The commit is {fakes.us.sha1()}.",
                f"Its id is {fakes.us.uuid4()}.",
                f"Use sk-learn-compatible-{fakes.us.word()}-estimator.",
                f"The key word is {fakes.us.word()}.",
                f"Checksum: {fakes.us.sha256()}",
            )
        ),
    ),
    "secret/key without a prefix": Kind(
        _aws_secret,
        ("The secret access key is {}.", 'aws_secret_access_key = "{}"', "My token: {}"),
        (),
        lambda fakes: f"The path is {'/'.join(fakes.us.words(6))}/{fakes.us.year()}.",
    ),
    "secret/password": Kind(
        _password,
        ("My password is {}", "password: {}", 'PASSWORD="{}"', "Mein Passwort lautet {}", "The pwd is {}"),
        (),
        _one_of(
            "My password is wrong.",
            "The password is longer than 12 characters.",
            "password: required",
            "The password: it is on the card.",
            "I forgot my password, token and PIN, {}.",
            with_=lambda fakes: str(fakes.us.first_name()),
        ),
    ),
    "secret/connection string": Kind(
        _connection,
        ("The connection string is {}", "DATABASE_URL={}", "We connect with {}"),
        _IT_IS,
        _one_of(
            "It listens on postgres://{}:5432/main.",
            "See https://{}:8443/docs/index.html.",
            "Server={};Database=main;Integrated Security=true;",
            with_=lambda fakes: str(fakes.us.hostname()),
        ),
    ),
}
RULES = frozenset(name.split("/")[0] for name in KINDS)


def _faults() -> Mapping[str, Planter]:
    made: dict[str, Planter] = {}
    for name, kind in KINDS.items():
        made[name] = planter(kind, kind.value, kind.named, name)
        if kind.bare:
            more = f"{name}, {NO_WORD}" if "/" in name else f"{name}/{NO_WORD}"
            made[more] = planter(kind, kind.bare_value or kind.value, kind.bare, more)
    return made


FAULTS: Mapping[str, Planter] = _faults()
NEED_A_WORD = ("uk_nhs", "de_tax_id", "nl_bsn", "phone")
"""Nine to eleven bare digits are most often something else, whatever their check digit says: rules ask for a word.
A phone number needs one where it has neither a country's prefix nor its spaces."""
AIMED = tuple(name for name in FAULTS if name not in {f"{rule}/{NO_WORD}" for rule in NEED_A_WORD})
"""What at least 0.95 of should be found at a precision of 0.9."""
