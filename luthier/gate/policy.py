"""Which rules hold, how strictly: a YAML file that a user writes, merged onto a shipped one, and kept with the run.

    extends: support                 a shipped policy, or a file beside this one; left out, every rule as it comes
    rules:
      near_duplicate: {severity: block, action: drop, similarity: 0.85}
      boilerplate: "off"
    groups: [customer, ticket]
    languages: [en, de]
    provenance: [source, licence]
    waive: [{rule: leak, reason: the test file is a copy on purpose}]

A threshold is set by its name beside `severity` and `action`. Unknown names are refused with what was probably meant.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError, field_validator, model_validator

from luthier.errors import PolicyError, RecipeError
from luthier.gate.rules import Mend
from luthier.gate.table import rules
from luthier.recipe.base import Part
from luthier.recipe.data import Waiver
from luthier.recipe.load import value_of
from luthier.types import JSON, Severity

SHIPPED = Path(__file__).parent / "policies"
_LARGEST_BYTES = 1_000_000
SHORTEST_TOKEN, LONGEST_TOKEN = 3, 100
"""Characters of a control token. A tokenizer of bytes can name a space or a letter special; those are no marks."""


class Setting(Part):
    """What a policy says of one rule; what it leaves out is as the rule's own table has it."""

    off: bool = False
    severity: Severity | None = None
    action: Mend | None = None
    thresholds: Mapping[str, float] = {}


class Recogniser(Part):
    """Presidio (extra `pii`) or GLiNER, with a model that lies on this machine."""

    kind: Literal["presidio", "gliner"]
    model: str | None = None
    """Folder of the model; for Presidio also the name of an installed spaCy model."""
    language: str = "en"

    @model_validator(mode="after")
    def _model_where_needed(self) -> Recogniser:
        if self.kind == "gliner" and self.model is None:
            raise ValueError("gliner needs `model`: the folder of a model")
        return self


class Policy(Part):
    """Every rule holds as it comes, except where `rules` says otherwise."""

    name: str = "default"
    rules: Mapping[str, Setting] = {}
    groups: tuple[str, ...] = ()
    """Columns whose rows belong together and may not stand on two sides: customer, patient, matter."""
    time: str | None = None
    """Column with the time of a row: test rows must be later than training rows."""
    languages: tuple[str, ...] = ()
    """ISO 639-1 codes that are expected; empty: any."""
    terms: Mapping[str, tuple[str, ...]] = {}
    """Words that name a group of people, by group: `{women: [she, her], men: [he, his]}`."""
    names: tuple[str, ...] = ()
    """Names of people that are looked for as well: customers, patients."""
    recogniser: Recogniser | None = None
    """A model that finds names, where it is installed."""
    markers: tuple[str, ...] = ()
    """Phrases that forbid the use of a text: attorney-client privileged, material non-public information."""
    control_tokens: tuple[str, ...] = ()
    """Marks of templates that are looked for besides the usual ones: `["<turn>", "</turn>"]`."""
    provenance: tuple[str, ...] = ()
    """What must be known of every row: source, licence, consent, owner, date."""
    sources: Mapping[str, Mapping[str, str]] = {}
    """The same by file name, where it is not a column: `{tickets.jsonl: {licence: internal}}`."""
    waive: tuple[Waiver, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _known_rules(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        told = tree.get("rules") or {}
        if not isinstance(told, dict):
            raise ValueError("rules: must be a mapping from a rule's name to its settings")
        tree = tree | {"rules": {name: _setting(name, value) for name, value in told.items()}}
        for waiver in tree.get("waive") or ():
            name = waiver.get("rule") if isinstance(waiver, dict) else waiver.rule
            if name not in rules():
                raise ValueError(f"waive: there is no rule {name}{_meant(str(name), rules())}")
        return tree

    @field_validator("control_tokens")
    @classmethod
    def _no_letters(cls, tokens: tuple[str, ...]) -> tuple[str, ...]:
        for token in tokens:
            if not SHORTEST_TOKEN <= len(token.strip()) <= LONGEST_TOKEN:
                raise ValueError(f"a token has {SHORTEST_TOKEN} to {LONGEST_TOKEN} characters, {token[:20]!r} has not")
        return tokens

    def enabled(self, rule: str) -> bool:
        return not self._of(rule).off

    def severity(self, rule: str) -> Severity:
        return self._of(rule).severity or rules()[rule].severity

    def action(self, rule: str) -> Mend:
        return self._of(rule).action or rules()[rule].mend

    def number(self, rule: str, threshold: str) -> float:
        """The value of a rule's threshold."""
        return self._numbers[rule, threshold]

    def waived(self, rule: str) -> str | None:
        """Why this rule may be broken; None where it may not."""
        return next((waiver.reason for waiver in self.waive if waiver.rule == rule), None)

    def with_waivers(self, more: Iterable[Waiver]) -> Policy:
        return Policy.model_validate(self.model_dump() | {"waive": [w.model_dump() for w in (*self.waive, *more)]})

    def with_control_tokens(self, more: Iterable[str]) -> Policy:
        tokens = tuple(dict.fromkeys((*self.control_tokens, *more)))
        return Policy.model_validate(self.model_dump() | {"control_tokens": tokens})

    def _of(self, rule: str) -> Setting:
        return self.rules.get(rule, _AS_IT_COMES)

    @cached_property
    def _numbers(self) -> Mapping[tuple[str, str], float]:
        """Looked up for every row, so one dictionary."""
        return {
            (name, threshold): float(self._of(name).thresholds.get(threshold, default))
            for name, rule in rules().items()
            for threshold, default in rule.thresholds.items()
        }


_AS_IT_COMES = Setting()


def policy_tree(name: str) -> JSON:
    """What a policy's files say, merged and not yet checked.

    Raises:
        PolicyError: there is none.
    """
    return {"name": Path(name).stem, **_tree(name, Path(), seen=())}


def load_policy(name: str = "default", *, waive: Sequence[Waiver] = ()) -> Policy:
    """A shipped policy or a file, with what it extends.

    Raises:
        PolicyError: there is none, or it names what does not exist.
    """
    tree = policy_tree(name)
    try:
        return Policy.model_validate(tree).with_waivers(waive)
    except ValidationError as error:
        raise _explained(error, where=name) from None


def dump_policy(policy: Policy) -> str:
    """The policy as YAML with every threshold written out, for the record."""
    from io import StringIO

    from ruamel.yaml import YAML

    out = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    told: JSON = {}
    for name, rule in rules().items():
        if not policy.enabled(name):
            told[name] = "off"
            continue
        said: JSON = {"severity": policy.severity(name), "action": policy.action(name)}
        told[name] = said | {threshold: _short(policy.number(name, threshold)) for threshold in rule.thresholds}
    yaml.dump(policy.model_dump(mode="json", exclude={"rules"}) | {"rules": told}, out)
    return out.getvalue()


def _short(number: float) -> float:
    return int(number) if number.is_integer() else number


def shipped() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _tree(name: str, folder: Path, *, seen: tuple[Path, ...]) -> JSON:
    path = SHIPPED / f"{name}.yaml" if name in shipped() else folder / name
    if path in seen:
        raise PolicyError(
            "policies extend each other in a circle", where=str(path), got=" -> ".join(p.name for p in (*seen, path))
        )
    try:
        tree = value_of(_text(path), where=str(path)) or {}
    except RecipeError as error:
        raise PolicyError(error.what, where=error.where, got=error.got) from None
    if not isinstance(tree, dict):
        raise PolicyError("a policy is a mapping", where=str(path), got=f"a {type(tree).__name__}")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise PolicyError("`extends` names one policy", where=str(path), got=f"a {type(parent).__name__}")
    return _merged(_tree(parent, path.parent, seen=(*seen, path)), tree)


def _text(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size > _LARGEST_BYTES:
            raise PolicyError("this is too large for a policy", where=str(path), got=f"{path.stat().st_size:,} bytes")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PolicyError("a policy is UTF-8 text", where=str(path), got=f"byte {error.start} is not") from None
    except OSError as error:
        close = difflib.get_close_matches(path.name, shipped(), n=1, cutoff=0.5)
        do = f"did you mean {close[0]}?" if close else f"give a file, or one of {', '.join(shipped())}"
        raise PolicyError("this policy cannot be read", where=str(path), got=error.strerror or "", do=do) from None


def _merged(base: JSON, over: JSON) -> JSON:
    """`over` on `base`: a rule's settings one by one, lists whole."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _setting(name: str, value: Any) -> Any:
    """What a file says of one rule as a `Setting`: `off`, a severity, or a mapping with thresholds by name."""
    if isinstance(value, Setting):
        return value
    if name not in rules():
        raise ValueError(f"there is no rule {name}{_meant(name, rules())}")
    if value in ("off", False):
        return {"off": True}
    if value in get_args(Severity):
        return {"severity": value}
    if not isinstance(value, dict):
        raise ValueError(f"{name}: write off, {', '.join(get_args(Severity))}, or a mapping")
    known = {**rules()[name].thresholds}
    own = set(Setting.model_fields) - {"thresholds"}
    numbers = {**value.get("thresholds", {}), **{k: v for k, v in value.items() if k not in Setting.model_fields}}
    for key, number in numbers.items():
        if key not in known:
            raise ValueError(f"{name}: there is no threshold {key}{_meant(key, [*known, *own])}")
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise ValueError(f"{name}.{key}: write a number")
    _fits(name, value.get("action"))
    return {key: value[key] for key in own if key in value} | {"thresholds": numbers}


def _fits(name: str, action: Any) -> None:
    """Refuses a mend that has nothing to work on."""
    from luthier.gate.private import RULES as PRIVATE

    if action in ("redact", "pseudonym") and name not in PRIVATE:
        raise ValueError(f"{name}.action: only private data can be replaced; write drop or none")
    if action == "repair" and rules()[name].mend != "repair":
        raise ValueError(f"{name}.action: this cannot be repaired; write drop or none")


def _meant(name: str, known: Iterable[str]) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known: {', '.join(known)}" if len(known) < 12 else ""


def _explained(error: ValidationError, *, where: str) -> PolicyError:
    problems = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = f"unknown key{_meant(key, Policy.model_fields)}"
        problems.append(f"{key}: {message}" if key else message)
    if len(problems) == 1:
        return PolicyError(problems[0], where=where)
    return PolicyError(
        f"{len(problems)} things in the policy cannot be", where=where, got="\n    ".join(["", *problems])
    )
