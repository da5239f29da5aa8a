"""What a policy file may say, and what is said of one that cannot be."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import PolicyError
from luthier.gate.policy import Policy, dump_policy, load_policy, shipped
from luthier.gate.table import rules
from luthier.recipe.data import Waiver


def write(folder: Path, text: str, name: str = "own.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_policy_loads_and_is_kept_as_it_is(name: str, tmp_path: Path) -> None:
    policy = load_policy(name)
    again = load_policy(write(tmp_path, dump_policy(policy)))
    assert dump_policy(again) == dump_policy(policy)
    assert again.name == policy.name == name


@given(data=st.data())
def test_a_threshold_is_what_the_policy_says_and_else_what_the_rule_says(data: st.DataObject) -> None:
    numbered = sorted(name for name, rule in rules().items() if rule.thresholds)
    name = data.draw(st.sampled_from(numbered))
    threshold = data.draw(st.sampled_from(sorted(rules()[name].thresholds)))
    value = data.draw(st.floats(0, 1000))
    policy = Policy.model_validate({"rules": {name: {threshold: value}}})
    assert policy.number(name, threshold) == value
    for other, rule in rules().items():
        for key, default in rule.thresholds.items():
            assert (other, key) == (name, threshold) or policy.number(other, key) == default


def test_a_policy_extends_another_rule_by_rule(tmp_path: Path) -> None:
    write(tmp_path, "rules: {near_duplicate: {similarity: 0.9}, html: off}\ngroups: [customer]", "base.yaml")
    policy = load_policy(write(tmp_path, "extends: base.yaml\nrules: {near_duplicate: block}\n", "over.yaml"))
    assert policy.groups == ("customer",)
    assert policy.severity("near_duplicate") == "block"
    assert not policy.enabled("html")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: {near_duplicte: off}", "did you mean near_duplicate?"),
        ("rules: {near_duplicate: {similarty: 0.9}}", "did you mean similarity?"),
        ("rules: {near_duplicate: {similarity: high}}", "write a number"),
        ("rules: {near_duplicate: grave}", "near_duplicate: write off"),
        ("grups: [customer]", "did you mean groups?"),
        ("control_tokens: [ab]", "control_tokens: a token has 3 to 100 characters"),
        ("waive: [{rule: leek, reason: it is meant so}]", "did you mean leak?"),
        ("waive: [{rule: leak, reason: short}]", "waive"),
        ("extends: suport", "did you mean support?"),
        ("extends: own.yaml", "in a circle"),
        ("[1, 2]", "a policy is a mapping"),
        ("rules: {a: [}", "not valid YAML"),
    ],
)
def test_what_cannot_be_is_said_with_what_was_meant(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(PolicyError) as error:
        load_policy(write(tmp_path, text))
    assert said in str(error.value)


def test_a_waiver_takes_its_reason_along() -> None:
    policy = load_policy("default", waive=[Waiver(rule="leak", reason="the test file is a copy on purpose")])
    assert policy.waived("leak") == "the test file is a copy on purpose"
    assert policy.waived("duplicate") is None


@pytest.mark.parametrize(
    ("rule", "action"), [("near_duplicate", "redact"), ("leak", "pseudonym"), ("email", "repair"), ("leak", "repair")]
)
def test_a_mend_that_has_nothing_to_work_on_is_refused(tmp_path: Path, rule: str, action: str) -> None:
    with pytest.raises(PolicyError, match=f"{rule}.action"):
        load_policy(write(tmp_path, f"rules: {{{rule}: {{action: {action}}}}}"))


def test_a_recogniser_that_needs_a_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="gliner needs"):
        load_policy(write(tmp_path, "recogniser: {kind: gliner}"))
