"""A recipe as YAML for people: every key with its meaning, its bounds and, where a value was derived, the reason.

It loads back to the same recipe.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from pydantic import BaseModel
from ruamel.yaml import YAML

from luthier.recipe import Recipe
from luthier.recipe.schema import Field, fields, meaning

WIDTH = 110
HEAD = """\
# A complete recipe. Run it with `luthier tune recipe.yaml`; change one value with `-o training.epochs=3`.
# Keys that are left out are derived from the model and the data, and every run says how."""


class Reasoned(Protocol):
    """A derived value, as `luthier.workflow.plan` gives it."""

    @property
    def key(self) -> str: ...

    @property
    def why(self) -> str: ...


def commented(recipe: Recipe, derived: Iterable[Reasoned] = ()) -> str:
    """The recipe as YAML with a comment on every key.

    Args:
        derived: values that the recipe had left out; each says its reason beside the value.
    """
    why = {item.key: item.why for item in derived}
    return "\n".join([HEAD, *_section(recipe, "", why)]) + "\n"


def _section(part: BaseModel, path: str, why: dict[str, str]) -> Iterator[str]:
    depth = path.count(".") + 1 if path else 0
    indent = "  " * depth
    for field in fields(type(part)):
        key = f"{path}.{field.name}".lstrip(".")
        value = getattr(part, field.name)
        if depth == 0:
            yield ""
        inner = isinstance(value, BaseModel)
        text = meaning(type(value)) if inner and meaning(type(value)) else field.meaning
        yield from _comment(_said(field, text), indent)
        if key in why:
            yield from _comment(f"Derived: {why[key]}", indent)
        if inner:
            yield f"{indent}{field.name}:"
            yield from _section(value, key, why)
        else:
            yield f"{indent}{field.name}: {scalar(value)}"


def _said(field: Field, text: str) -> str:
    if field.name == "kind":
        return ""
    limits = [f"One of {', '.join(field.choices)}."] if len(field.choices) > 1 else []
    _, comma, bounds = field.words.partition(", ")
    limits += [f"{bounds[0].upper()}{bounds[1:]}."] if comma else []
    return " ".join([text, *limits]).strip()


def _comment(text: str, indent: str) -> list[str]:
    # A line break of any kind would end the comment, and a control character has no place in YAML.
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    lines = textwrap.wrap(plain, WIDTH - len(indent) - 2, break_long_words=False, break_on_hyphens=False)
    return [f"{indent}# {line}" for line in lines]


_BARE = re.compile(r"[A-Za-z_./][\w./=@+-]*(?::[\w./=@+-]+)*", re.ASCII)
_BOOLEANS = frozenset({"y", "n", "yes", "no", "on", "off"})
"""Words that YAML 1.1, which other programs still read, takes for true or false."""
_NOT_PRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def scalar(value: Any) -> str:
    """A plain value, or a list of them, on one line of YAML."""
    if isinstance(value, list):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, str) and _bare(value):
        return value
    quoted = json.dumps(value, ensure_ascii=False, allow_nan=False)
    # JSON is YAML, except that these must be escaped: YAML takes some for line breaks and refuses the others.
    return _NOT_PRINTABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", quoted)


def _bare(text: str) -> bool:
    """Whether a text can stand without quotes and stays a text, here and in YAML 1.1."""
    if not _BARE.fullmatch(text) or text.lower() in _BOOLEANS:
        return False
    return bool(YAML(typ="safe").load(text) == text)
