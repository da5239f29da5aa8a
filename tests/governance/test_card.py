"""The card is one that the hub reads, holds the figures, and gives nothing private away."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from luthier.governance import write_card
from luthier.runs.folder import RunFolder, read_json, write_json
from tests.report.sample import answers_run, labels_run, stopped_run


def text(run: RunFolder) -> str:
    return write_card(run).read_text(encoding="utf-8").replace("\u202f", " ")


def test_the_hub_reads_base_licence_and_figures(tmp_path: Path) -> None:
    run = answers_run(tmp_path / "my-run")
    card = ModelCard(text(run))
    assert run.card == run.model / "README.md"
    assert card.data.base_model == "example-org/small-instruct"
    assert card.data.library_name == "peft"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-generation"
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results or []}
    assert figures == {"rouge": 0.411, "chrf": 41.7, "f1": 0.437, "exact_match": 0.031, "loss": 1.09}


def test_the_card_holds_hashes_counts_intervals_and_the_verdict(tmp_path: Path) -> None:
    run = answers_run(tmp_path / "my-run")
    found = text(run)
    manifest = read_json(run.manifest)
    for digest in (*manifest["base"]["files"].values(), *(d["sha256"] for d in manifest["data"])):
        assert digest in found
    assert "train: 1 612 rows" in found
    assert "+0.160 to +0.236" in found
    assert "Tuning helped" in found
    assert "PeftModel.from_pretrained(base, folder)" in found
    assert "One run with one seed" in found


def test_a_classifier_in_full_names_no_local_folder_and_no_label(tmp_path: Path) -> None:
    run = labels_run(tmp_path / "mail")
    found = text(run)
    card = ModelCard(found)
    assert card.data.base_model is None
    assert card.data.license is None
    assert "states no licence" in found
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "text-classification"
    assert "/models/" not in found
    assert "warranty" not in found


def test_no_text_of_a_row_is_in_the_card(tmp_path: Path) -> None:
    found = text(answers_run(tmp_path / "run"))
    assert "bicycle" not in found
    assert "helmet" not in found
    assert str(tmp_path) not in found


def test_a_run_without_figures_says_so(tmp_path: Path) -> None:
    found = text(stopped_run(tmp_path / "run"))
    assert ModelCard(found).data.eval_results is None
    assert "Base and tuned were not compared" in found
    assert "Merge it first" in found


@pytest.mark.parametrize(
    ("licence", "shown"), [("MIT", "mit"), ("Our own terms, v2", "other"), ("Apache 2.0", "apache-2.0")]
)
def test_a_licence_that_the_hub_does_not_know_is_named(tmp_path: Path, licence: str, shown: str) -> None:
    run = answers_run(tmp_path / "run")
    manifest = read_json(run.manifest)
    manifest["base"]["licence"] = licence
    write_json(run.manifest, manifest)
    card = ModelCard(text(run))
    assert card.data.license == shown
    assert (card.data.license_name == "our-own-terms-v2") == (shown == "other")


def test_hostile_names_do_not_break_the_front_matter(tmp_path: Path) -> None:
    run = answers_run(tmp_path / "run")
    manifest = read_json(run.manifest)
    manifest["base"].update(source="a: [b\n---\n# c", licence="x: y\n---", kind="hub")
    write_json(run.manifest, manifest)
    card = ModelCard(text(run))
    assert card.data.base_model == "a: [b\n---\n# c"
    assert card.data.library_name == "peft"
