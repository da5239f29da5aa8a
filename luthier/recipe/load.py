"""YAML to `Recipe`: `extends`, dotted overrides, and errors that name the key and what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from luthier.errors import RecipeError
from luthier.masking import mask
from luthier.recipe import Recipe
from luthier.recipe.schema import kind_of, models_in, sections

JSON = dict[str, Any]
LARGEST_RECIPE_BYTES = 1_000_000
MOST_VALUES = 200_000
"""Values that a recipe may hold: YAML's references can make a few lines stand for billions of them."""


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
    result: JSON = _copy(tree)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise RecipeError(
                "an override is KEY=VALUE",
                where="-o",
                got=repr(mask(text))[:120],
                do="for example -o training.epochs=3",
            )
        *parents, last = key.strip().split(".")
        node = result
        for parent in parents:
            child = node.get(parent)
            if child is None:
                child = node[parent] = {}
            if not isinstance(child, dict):
                raise RecipeError(f"{parent}: is a value, not a section", where=f"-o {key}", got=type(child).__name__)
            node = child
        node_value = _yaml(value, where=f"-o {key}")
        if last == "kind" and node.get("kind", node_value) != node_value:
            # As with `extends`: settings of one kind mean nothing to another.
            node.clear()
        node[last] = node_value
    return result


def value_of(text: str, *, where: str) -> Any:
    """A value written in YAML, as in an override."""
    return _yaml(text, where=where)


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
    problems = [_problem(key, items) for key, items in _by_key(error.errors(include_url=False)).items()]
    if len(problems) == 1:
        what, got, do = problems[0]
        return RecipeError(what, where=where, got=got, do=do)
    lines = [what + (f" {do}" if do else "") + (f" (got {got})" if got else "") for what, got, do in problems]
    return RecipeError(f"{len(problems)} things in the recipe cannot be", where=where, got="\n    ".join(["", *lines]))


def _by_key(items: Iterable[Any]) -> dict[str, list[Any]]:
    """Problems by dotted key. Where a value may be of several types, those that got furthest into it are kept."""
    found: dict[str, list[Any]] = {}
    for item in items:
        found.setdefault(_key(item["loc"]), []).append(item)
    deeper = [key.rpartition(".")[0] for key in found if key.rpartition(".")[2].isdigit()]
    return {key: items for key, items in found.items() if key not in deeper}


def _key(loc: tuple[Any, ...]) -> str:
    """The dotted key of pydantic's path, which also names the chosen kind and the branch of a union."""
    return ".".join(
        str(part)
        for before, part in zip((None, *loc), loc, strict=False)
        if not (before in ("adapter", "objective") and loc.index(part) == 1 and part in _KINDS)
        and not str(part).startswith(("list[", "literal["))
    )


_KINDS = frozenset(kind for _, part in sections() if (kind := kind_of(part)))


def _problem(key: str, items: list[Any]) -> tuple[str, str, str]:
    """(what, got, do) of the problems of one key: several where a value fits none of its types."""
    item, value = items[0], items[0].get("input")
    kind, context = item["type"], item.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{key}: unknown key", "", _meant(key, item["loc"])
    if kind == "missing":
        return f"{key}: is needed and missing", "", ""
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = [kind_of(part) for path, part in sections() if path == key]
        given = repr(mask(str(context["tag"])))[:120] if "tag" in context else ""
        what = "is none of the kinds there are" if given else "is needed and missing"
        return f"{key}.kind: {what}", given, f"Choose one of {', '.join(map(str, tags))}."
    messages = [one["msg"].removeprefix("Value error, ").removeprefix("Input ") for one in items]
    message = " or ".join([messages[0], *(m.removeprefix("should be ") for m in messages[1:])])
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "must be a section with keys"
    got = "" if isinstance(value, (dict, list, BaseModel)) else repr(mask(value) if isinstance(value, str) else value)
    do = f"Write [{got}]." if kind == "list_type" and isinstance(value, str) else ""
    if kind == "literal_error" and isinstance(value, str):
        close = difflib.get_close_matches(value, re.findall(r"'([^']+)'", context["expected"]), n=1, cutoff=0.6)
        do = f"Did you mean {close[0]}?" if close else ""
    return f"{key or 'recipe'}: {message[:1].lower()}{message[1:]}", got[:120], do


def _meant(key: str, loc: tuple[Any, ...]) -> str:
    """What an unknown key was probably meant to be: a key of this section, or the same word in another one."""
    name = key.rpartition(".")[2]
    known = _fields_at(loc[:-1])
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close and difflib.SequenceMatcher(None, name, close[0]).ratio() > 0.8:
        return f"Did you mean {close[0]}?"
    elsewhere = {f"{path}.{name}".lstrip("."): kind_of(part) for path, part in sections() if name in part.model_fields}
    if key in elsewhere:
        return f"It belongs to kind {elsewhere[key]}."
    if len(elsewhere) == 1:
        return f"Did you mean {next(iter(elsewhere))}?"
    return f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}."


def _fields_at(loc: Iterable[Any]) -> list[str]:
    """Field names of the section that `loc` (pydantic's path, chosen kinds included) leads to."""
    current: type[BaseModel] = Recipe
    candidates: list[type[BaseModel]] = [Recipe]
    for part in loc:
        chosen = [candidate for candidate in candidates if kind_of(candidate) == part]
        if len(candidates) > 1 and chosen:
            candidates = chosen
        else:
            candidates = models_in(current.model_fields[part].annotation)
        current = candidates[0]
    return list(current.model_fields)


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
        return _strict(yaml.load(text), where=where, counter=count())
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark and not where.startswith("-o") else where
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        # ruamel quotes both values of a key that stands twice.
        problem = re.sub(r' with value ".*', "", str(problem), flags=re.S)
        raise RecipeError("this is not valid YAML", where=place, got=problem) from None
    except (ValueError, RecursionError) as error:
        raise RecipeError("this is not valid YAML", where=where, got=str(error)[:120]) from None


def _strict(value: Any, *, where: str, counter: Iterator[int]) -> Any:
    """Plain dicts and lists with text keys only."""
    if next(counter) > MOST_VALUES:
        raise RecipeError("this holds too many values for a recipe", where=where, got=f"more than {MOST_VALUES:,}")
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise RecipeError("keys of a recipe are words", where=where, got=repr(key)[:80])
        return {key: _strict(inner, where=where, counter=counter) for key, inner in value.items()}
    if isinstance(value, list):
        return [_strict(inner, where=where, counter=counter) for inner in value]
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
