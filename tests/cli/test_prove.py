"""`luthier prove` on small models: the table, the object, the exit code, and that nothing stays behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.cli.prove import as_json, print_proven
from luthier.errors import DataError
from luthier.models.sources import Origin
from luthier.proof import CHECKS, Proof
from luthier.recipe.load import build
from luthier.workflow.prove import Proven, choose, prove
from tests.chain import ROWS, conversations, recipe, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", conversations(24))


def proven(model: Path, rows: Path, **sections: Any) -> dict[str, Proof]:
    made = prove(recipe(model, rows, **sections))
    assert made.ok, made.proofs
    assert [proof.name for proof in made.proofs] == list(CHECKS)
    return {proof.name: proof for proof in made.proofs}


def test_every_check_holds_and_nothing_stays(
    saved_tiny: Callable[..., Path], rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.parent)
    before = sorted(rows.parent.rglob("*"))
    words = ["prove", "--model", str(saved_tiny("llama")), "--data", str(rows), "-o", "training.threads=1"]
    assert main(words) == 0
    out = capsys.readouterr().out
    for name in CHECKS:
        assert any(line.startswith(name) and line.rstrip().endswith("holds") for line in out.splitlines()), name
    assert "everything that was checked holds" in out
    assert "spruce" not in out
    assert sorted(rows.parent.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ROWS)
def test_every_objective_can_be_proved(saved_tiny: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS[kind](24))
    found = proven(
        saved_tiny("llama"), rows, objective={"kind": kind}, adapter={"kind": "lora", "rank": 2, "dropout": 0.1}
    )
    # Rows of a few tokens each have too little in common to share.
    assert {name for name, proof in found.items() if not proof.passed} <= {"sharing"}


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_an_encoder_in_full_has_nothing_to_share_or_merge(
    saved_tiny: Callable[..., Path], tmp_path: Path, family: str
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ROWS["classify"](24))
    found = proven(saved_tiny(family), rows, adapter={"kind": "full"})
    assert {name for name, proof in found.items() if proof.passed is None} == {"sharing", "adapter", "merge"}


PEFTS = {
    "oft": {},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "loha": {"rank_dropout": 0.3},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
@pytest.mark.parametrize("method", PEFTS)
def test_pefts_other_methods_can_be_proved(saved_tiny: Callable[..., Path], rows: Path, method: str) -> None:
    adapter = {"kind": "peft", "method": method, "settings": PEFTS[method]}
    found = proven(saved_tiny("llama"), rows, adapter=adapter)
    left_out = {"merge"} if "virtual" in str(PEFTS[method]) else set()
    assert {name for name, proof in found.items() if not proof.passed} == left_out


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_noise_that_cannot_be_switched_off_leaves_gradients_out(saved_tiny: Callable[..., Path], rows: Path) -> None:
    found = proven(saved_tiny("llama"), rows, adapter={"kind": "peft", "method": "pvera"})
    assert {name for name, proof in found.items() if not proof.passed} == {"packing", "sharing", "accumulation"}
    assert "draws noise" in found["packing"].detail


def test_float64_leaves_no_more_than_it_rounds(saved_tiny: Callable[..., Path], rows: Path) -> None:
    made = prove(recipe(saved_tiny("gpt2"), rows, adapter={"kind": "lora", "rank": 2}), float64=True)
    assert made.ok, made.proofs
    assert made.dtype == "float64"
    assert max(proof.largest for proof in made.proofs if proof.largest is not None) < 1e-11


def test_programs_get_one_object(
    saved_tiny: Callable[..., Path], rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prove", "--model", str(saved_tiny("llama")), "--data", str(rows), "--rows", "2", "--json"]
    assert main([*words, "-o", "training.threads=1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is True
    assert said["rows"] == 2
    assert {row["name"]: row["passed"] for row in said["checks"]} == dict.fromkeys(CHECKS, True)


def test_a_check_that_fails_is_named_last(capsys: pytest.CaptureFixture[str], rows: Path) -> None:
    asked = build({"model": {"source": "m"}, "data": {"train": [str(rows)]}}, where="the test")
    failed = Proof("packing", "this against that", float("nan"), 1e-3, False, "documents of one row see each other")
    made = Proven(asked, [failed], rows=2, longest=9, left_out=0, dtype="float32")
    print_proven(made)
    out = capsys.readouterr().out
    assert "FAILS" in out
    assert "see each other" in out
    assert out.splitlines()[-1] == "does not hold: packing"
    assert not made.ok
    assert json.loads(json.dumps(as_json(made), allow_nan=False))["checks"][0]["largest"] is None


def test_the_shortest_rows_and_the_longest_that_fits_are_chosen(tmp_path: Path) -> None:
    from luthier.data import tokens
    from tests.chain import sequence

    lengths = [9, 3, 30, 5, 12, 7]
    made = [(i, sequence([5] * n, [0] * (n - 1) + [i != 1])) for i, n in enumerate(lengths)]
    tokens.write(tmp_path / "train", made)
    store = tokens.open_store(tmp_path / "train")
    assert choose(store, 3, 100) == [3, 5, 2]
    assert choose(store, 3, 20) == [3, 5, 4]
    assert choose(store, 1, 20) == [4]
    assert choose(store, 9, 20) == [3, 5, 0, 4]
    with pytest.raises(DataError, match="short enough"):
        choose(store, 3, 4)


@pytest.mark.models
@pytest.mark.shared_data
@pytest.mark.slow
def test_smollm2_on_real_dialogues(smollm2: Origin, shared_data: Path) -> None:
    rows = shared_data / "mts-dialog" / "MTS-Dialog-TrainingSet.csv"
    data = {"limit": 60, "on_leak": "drop", "columns": {"prompt": "dialogue", "completion": "section_text"}}
    short = {"max_length": 200, "on_over_long": "drop"}
    found = proven(Path(smollm2.source), rows, data=data, training=short)
    assert all(proof.passed for proof in found.values())


@pytest.mark.models
@pytest.mark.shared_data
@pytest.mark.slow
def test_minilm_on_real_questions(minilm: Origin, shared_data: Path) -> None:
    found = proven(Path(minilm.source), shared_data / "banking77" / "train.csv", data={"on_leak": "drop"})
    assert found["packing"].passed
    assert found["resume"].passed
