"""What can be said of every field of a recipe, read from the models: type, bounds, choices, default, meaning.

The commented recipe, the reference page and the errors all speak from this one reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel

from luthier.recipe import Recipe

JSON = dict[str, Any]
TYPES = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
}
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


@dataclass(frozen=True, slots=True)
class Field:
    """One key of a section."""

    name: str
    words: str
    """Its type with its bounds: `whole number, at least 1`. Empty for a section."""
    choices: tuple[str, ...]
    nullable: bool
    required: bool
    default: Any
    meaning: str
    parts: tuple[type[BaseModel], ...]
    """The sections that may stand here: none for a value, one, or one for each `kind`."""


def fields(model: type[BaseModel]) -> list[Field]:
    """The keys of a section, in the order they are written."""
    schema = model.model_json_schema()
    found = []
    for name, info in model.model_fields.items():
        node = schema["properties"][name]
        parts = tuple(models_in(info.annotation))
        kinds = [part for part in node.get("anyOf", [node]) if part.get("type") != "null"]
        choices = [str(choice) for kind in kinds for choice in _choices(kind)]
        if choices and any(kind.get("type") == "boolean" for kind in kinds):
            choices = ["true", "false", *choices]
        found.append(
            Field(
                name=name,
                words="" if parts else " or ".join(_type(kind) for kind in kinds),
                choices=tuple(choices),
                nullable=len(kinds) < len(node.get("anyOf", [node])),
                required=info.is_required(),
                default=None if parts else info.get_default(call_default_factory=True),
                meaning=" ".join((info.description or "").split()),
                parts=parts,
            )
        )
    return found


def sections(model: type[BaseModel] = Recipe, path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted path, model) of every section, outer before inner; a path with several kinds comes once for each."""
    yield path, model
    for field in fields(model):
        for part in field.parts:
            yield from sections(part, f"{path}.{field.name}".lstrip("."))


def meaning(model: type[BaseModel]) -> str:
    """What a section is about."""
    return " ".join((model.__doc__ or "").split())


def kind_of(model: type[BaseModel]) -> str | None:
    """The value of `kind` that chooses this section among others."""
    info = model.model_fields.get("kind")
    return None if info is None else str(get_args(info.annotation)[0])


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in models_in(inner)]


def _type(node: JSON) -> str:
    if node.get("type") == "array":
        least = ", at least one" if node.get("minItems") == 1 else ""
        return f"list of {_type(node['items'])}s{least}"
    if _choices(node):
        return "one word" if len(_choices(node)) > 1 else f"`{_choices(node)[0]}`"
    bounds = [f"{words} {_bound(node[key])}" for key, words in BOUNDS.items() if key in node]
    return ", ".join([TYPES[node["type"]], *bounds])


def _choices(node: JSON) -> list[Any]:
    return list(node.get("enum", [])) or ([node["const"]] if "const" in node else [])


def _bound(value: float) -> str:
    return f"{value:g}" if abs(value) < 1e6 else str(value)
