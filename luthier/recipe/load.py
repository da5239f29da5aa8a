"""YAML to `Recipe`: `extends`, dotted overrides, and errors that name the key and what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from luthier.errors import RecipeError
from luthier.recipe import Recipe

JSON = dict[str, Any]
LARGEST_RECIPE_BYTES = 1_000_000


def load(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Reads a recipe file, follows `extends`, applies `key.path=value` overrides, and validates the result.

    Raises:
        RecipeError: the file is missing or no YAML mapping, or a key or value is not possible.
    """
    tree = _read(Path(path), seen=())
    return build(override(tree, overrides), where=str(path))


def build(tree: Mapping[str, Any], *, where: str) -> Recipe:
    """Validates a nested mapping. `where` names its origin in errors."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise explain(error, where=where) from None


def override(tree: Mapping[str, Any], overrides: Iterable[str]) -> JSON:
    """Returns `tree` with `a.b=value` applied; values are YAML (`3`, `true`, `[a, b]`, `null`)."""
    result = _copy(tree)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(
                "an override is KEY=VALUE", where="-o", got=repr(text), do="for example -o training.epochs=3"
            )
        *parents, last = key.strip().split(".")
        node = result
        for parent in parents:
            child = node.get(parent)
            if child is None:
                child = node[parent] = {}
            if not isinstance(child, dict):
                raise RecipeError(f"{parent}: is a value, not a section", where=f"-o {text}", got=type(child).__name__)
            node = child
        node[last] = _yaml(value, where=f"-o {text}")
    return result


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every value written out."""
    from io import StringIO

    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 110
    out = StringIO()
    yaml.dump(recipe.model_dump(mode="json"), out)
    return out.getvalue()


def explain(error: ValidationError, *, where: str) -> RecipeError:
    """All problems of a recipe as one error, each with its dotted key."""
    problems = [_problem(item, error) for item in error.errors(include_url=False)]
    if len(problems) == 1:
        what, got, do = problems[0]
        return RecipeError(what, where=where, got=got, do=do)
    lines = [what + (f" {do}" if do else "") + (f" (got {got})" if got else "") for what, got, do in problems]
    return RecipeError(f"{len(problems)} things in the recipe cannot be", where=where, got="\n    ".join(["", *lines]))


def _problem(item: Any, error: ValidationError) -> tuple[str, str, str]:
    path = [p for p in item["loc"] if not (isinstance(p, str) and p in _UNION_TAGS)]
    key = ".".join(map(str, path))
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        known = _fields_at(Recipe, item["loc"][:-1])
        close = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.5)
        do = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}."
        return f"{key}: unknown key", "", do
    if kind == "missing":
        return f"{key}: is needed and missing", "", ""
    message = item["msg"].removeprefix("Value error, ")
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "must be a section with keys"
    got = "" if isinstance(value, (dict, list, BaseModel)) else repr(value)[:120]
    if key == "":
        key = "recipe"
    return f"{key}: {message[:1].lower()}{message[1:]}", got, ""


_UNION_TAGS = {"lora", "full", "supervised", "text", "classify", "classify_multi", "regress", "list[str]"} | {
    "literal['all-linear']"
}


def _fields_at(model: type[BaseModel], loc: Iterable[Any]) -> list[str]:
    """Field names of the section that `loc` (pydantic's path, union tags included) leads to."""
    from typing import get_args

    current: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        if isinstance(current, type) and issubclass(current, BaseModel) and part in current.model_fields:
            current = current.model_fields[part].annotation
        candidates = _models_in(current)
        tagged = [c for c in candidates if part in get_args(c.model_fields["kind"].annotation)] if all(
            "kind" in c.model_fields for c in candidates
        ) else []
        if tagged:
            current = tagged[0]
        elif len(candidates) == 1:
            current = candidates[0]
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    from typing import get_args

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]


def _read(path: Path, *, seen: tuple[Path, ...]) -> JSON:
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(p.name for p in (*seen, resolved))
        raise RecipeError("recipes extend each other in a circle", where=str(path), got=chain)
    try:
        size = path.stat().st_size
        if size > LARGEST_RECIPE_BYTES:
            raise RecipeError(
                "this is too large for a recipe",
                where=str(path),
                got=f"{size:,} bytes",
                do="give data files with --data, recipes as the argument",
            )
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(
            "there is no such recipe", where=str(path), do="luthier init --model MODEL --data FILE > recipe.yaml"
        ) from None
    except IsADirectoryError:
        raise RecipeError("a recipe is a file, this is a folder", where=str(path)) from None
    except UnicodeDecodeError as error:
        raise RecipeError("a recipe is UTF-8 text", where=str(path), got=f"byte {error.start} is not") from None
    except OSError as error:
        raise RecipeError("the recipe cannot be read", where=str(path), got=error.strerror or "") from None
    tree = _yaml(text, where=str(path))
    if not isinstance(tree, dict):
        raise RecipeError(
            "a recipe is a mapping of sections", where=str(path), got=_kind(tree), do="start from luthier init"
        )
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise RecipeError("`extends` names one recipe file", where=str(path), got=_kind(parent))
    return _merge(_read(path.parent / parent, seen=(*seen, resolved)), tree)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _yaml(text: str, *, where: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    yaml = YAML(typ="safe")
    yaml.allow_duplicate_keys = False
    try:
        return _strict(yaml.load(text), where=where)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise RecipeError("this is not valid YAML", where=place, got=str(problem)) from None
    except (ValueError, RecursionError) as error:
        raise RecipeError("this is not valid YAML", where=where, got=str(error)[:120]) from None


def _strict(value: Any, *, where: str) -> Any:
    """Plain dicts and lists with text keys only."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise RecipeError("keys of a recipe are words", where=where, got=repr(key)[:80])
        return {key: _strict(inner, where=where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_strict(inner, where=where) for inner in value]
    return value


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return value


def _merge(base: JSON, over: JSON) -> JSON:
    """`over` on `base`: sections merge key by key; a section whose `kind` changes replaces the other whole."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            result[key] = _merge(old, value)
        else:
            result[key] = value
    return result
