"""The page holds what a reader looks for, says plainly what is missing, and lets no text of a row become markup."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from luthier.errors import InputError
from luthier.report import write_report
from luthier.runs.folder import RunFolder, read_json, write_json, write_text
from luthier.runs.journal import Journal
from tests.report.sample import answers_run, labels_run, stopped_run

VOID = {"meta", "br", "img", "input", "link", "hr"}
HOSTILE = "</p><script>alert(1)</script><img src=x onerror=alert(2)>\"'>{{ 7*7 }}&amp;\u202e\x00\ud800"


class Page(HTMLParser):
    """The elements and the text of a page, and whether its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.text = " ".join(" ".join(self.words).replace("\u202f", " ").split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(run: RunFolder) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(params=["answers", "labels", "many labels", "stopped"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    root = tmp_path / "run"
    if request.param == "many labels":
        return labels_run(root, classes=30)
    return {"answers": answers_run, "labels": labels_run, "stopped": stopped_run}[request.param](root)


def test_the_page_is_whole_and_needs_no_network(run: RunFolder) -> None:
    found = page(run)
    assert found.open == []
    assert run.report == run.root / "report.html"
    assert {"script", "link", "img", "iframe"}.isdisjoint(tag for tag, _ in found.elements)
    text = run.report.read_text(encoding="utf-8")
    assert "http://" not in text
    assert "https://" not in text
    assert "url(" not in text


def test_headings_are_in_order_and_figures_have_titles(run: RunFolder) -> None:
    found = page(run)
    levels = [int(tag[1]) for tag, _ in found.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in found.all("svg"))
    assert all("scope" in th for th in found.all("th"))


def test_the_same_folder_gives_the_same_page(run: RunFolder) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_an_answers_run_says_whether_it_helped_and_by_how_much(tmp_path: Path) -> None:
    text = page(answers_run(tmp_path / "run")).text
    assert "Tuning helped: on 196 rows it had never seen" in text
    assert "0.213 → 0.411" in text
    assert "+0.160 to +0.236" in text
    assert "The model as it was at step 200 is kept" in text
    assert "luthier chat run" in text
    assert "luthier export run --to merged --out run-merged" in text
    assert "PeftModel.from_pretrained(base, folder)" in text
    assert "Energy not measured" in text
    assert "12 rows are longer than 2048 tokens" in text


def test_where_lower_is_better_a_fall_is_drawn_as_a_gain(tmp_path: Path) -> None:
    found = page(answers_run(tmp_path / "run")).text
    assert "−1.63 to −1.41" in found
    assert "+1.52 [+1.41 to +1.63]" in found


def test_examples_are_the_most_improved_the_most_worsened_and_others(tmp_path: Path) -> None:
    text = page(answers_run(tmp_path / "run")).text
    improved, worsened, others = (text.index(t) for t in ("Most improved", "Most worsened", "Picked by a fixed rule"))
    assert improved < text.index("row-004") < worsened < text.index("row-001") < others


def test_private_data_of_examples_is_masked(tmp_path: Path) -> None:
    found = page(answers_run(tmp_path / "run"))
    assert "Can you write to me at ⟨e-mail⟩ or call ⟨phone⟩?" in found.text
    assert "jo.bloggs" not in found.text
    assert "7946" not in found.text


def test_a_few_labels_get_a_matrix_and_many_get_their_most_confused_pairs(tmp_path: Path) -> None:
    few, many = page(labels_run(tmp_path / "few")), page(labels_run(tmp_path / "many", classes=30))
    assert "rows on the diagonal" in few.text
    assert "rows on the diagonal" not in many.text
    assert "Most confused of 30 labels" in many.text


def test_a_stopped_run_says_that_nothing_was_compared(tmp_path: Path) -> None:
    text = page(stopped_run(tmp_path / "run")).text
    assert "This run stopped at step 17, and was not compared with its base model." in text
    assert "Stopped at step 17: interrupted by the user." in text
    assert "There are no answers to show." in text
    assert "This run has left no model." in text


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run")
    write_text(run.asked, "model: {source: some/model}\ndata: {train: [a.jsonl]}\n")
    with Journal(run.events) as journal:
        journal.write("created", run="run")
    text = page(run).text
    assert "This run has not finished: 0 steps are done" in text
    assert "No optimizer step was taken." in text


def test_a_comparison_that_was_switched_off_is_said(tmp_path: Path) -> None:
    run = answers_run(tmp_path / "run")
    run.evaluation.unlink()
    run.predictions.unlink()
    assert "has not been compared with its base model yet" in page(run).text
    write_text(run.recipe, run.recipe.read_text().replace("enabled: true", "enabled: false"))
    assert "The comparison with the base was switched off" in page(run).text


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("worse", "Tuning did harm"),
        ("not worse within delta", "Tuning did no noticeable harm"),
        ("identical outputs", "Tuning changed nothing that was measured"),
        ("inconclusive: need 120 more items", "It is not clear whether tuning helped"),
    ],
)
def test_each_verdict_has_its_plain_sentence(tmp_path: Path, word: str, said: str) -> None:
    run = answers_run(tmp_path / "run")
    evaluation = read_json(run.evaluation)
    evaluation["verdict"]["word"] = word
    write_json(run.evaluation, evaluation)
    assert said in page(run).text


def test_unknown_numbers_are_dashes(tmp_path: Path) -> None:
    run = answers_run(tmp_path / "run")
    evaluation = read_json(run.evaluation)
    unknown = ("base", "tuned", "difference", "low", "high", "p", "smallest_detectable")
    for metric in evaluation["metrics"]:
        metric.update(dict.fromkeys(unknown))
    evaluation.update(items=0, improved=[], worsened=[], per_class=[])
    write_json(run.evaluation, evaluation)
    write_text(run.predictions, "")
    assert "– → –" in page(run).text


def test_a_tuned_model_that_was_measured_alone_has_a_page(tmp_path: Path) -> None:
    run = labels_run(tmp_path / "run")
    evaluation = read_json(run.evaluation)
    evaluation["arms"]["base"] = evaluation["verdict"] = evaluation["confusion"]["base"] = None
    evaluation["calibration"]["base"] = None
    for row in evaluation["per_class"]:
        row["base"] = None
    for metric in evaluation["metrics"]:
        metric.update(base=None, difference=None, word=None, smallest_detectable=None)
    write_json(run.evaluation, evaluation)
    assert "The tuned model was measured alone" in page(run).text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = labels_run(tmp_path / HOSTILE.replace("/", "").replace("\x00", "").replace("\ud800", ""))
    _poison(run)
    found = page(run)
    assert found.open == []
    assert {"script", "img"}.isdisjoint(tag for tag, _ in found.elements)
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert "alert(1)" in found.text
    assert "{{ 7*7 }}" in found.text
    assert "\x00" not in found.text


def _poison(run: RunFolder) -> None:
    """Puts hostile text wherever a text of the user's can stand."""
    evaluation = read_json(run.evaluation)
    labels = evaluation["confusion"]["labels"]
    evaluation["confusion"]["labels"] = [f"{HOSTILE}{label}"[:-1].replace("\ud800", "") for label in labels]
    for row in evaluation["per_class"]:
        row["label"] = HOSTILE.replace("\ud800", "")
    evaluation["notes"] = [HOSTILE.replace("\ud800", "")]
    write_json(run.evaluation, evaluation)
    rows: list[dict[str, Any]] = [json.loads(line) for line in run.predictions.read_text().splitlines()]
    for row in rows:
        row.update(prompt=[{"role": HOSTILE, "content": HOSTILE, "tool_calls": [{"x": HOSTILE}]}], reference=HOSTILE)
        row["answer"] = HOSTILE
    write_text(run.predictions, "".join(json.dumps(row) + "\n" for row in rows))
    findings = read_json(run.findings)
    safe = HOSTILE.replace("\ud800", "")
    write_json(
        run.findings, [{**f, "message": safe, "remedy": safe, "examples": [safe], "rule": safe} for f in findings]
    )
    derived = read_json(run.derived)
    write_json(run.derived, [{"key": safe, "value": [safe], "why": safe} for _ in derived])
    manifest = read_json(run.manifest)
    manifest["base"].update(source=safe, licence=safe, files={safe: safe})
    manifest["data"] = [{**file, "file": safe} for file in manifest["data"]]
    manifest["machine"]["cpu"] = safe
    write_json(run.manifest, manifest)


def test_a_very_long_answer_is_shortened_and_says_so(tmp_path: Path) -> None:
    run = answers_run(tmp_path / "run")
    rows = [json.loads(line) for line in run.predictions.read_text().splitlines()]
    for row in rows:
        row["answer"] = "word " * 20_000
    write_text(run.predictions, "".join(json.dumps(row) + "\n" for row in rows))
    assert "characters left out" in page(run).text
    assert run.report.stat().st_size < 300_000


def test_a_long_run_gives_a_small_page(tmp_path: Path) -> None:
    run = answers_run(tmp_path / "run")
    with Journal(run.events) as journal:
        for number in range(241, 20_000):
            journal.write(
                "step", step=number, loss=1.0, rate=1e-4, tokens=100, computed=75, seconds=0.5, memory_bytes=10**9
            )
    spared = page(run).text
    assert "what rows of a step begin with alike was computed once, which spared 9 %" in spared
    assert run.report.stat().st_size < 400_000


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    run = answers_run(tmp_path / "run")
    write_text(run.evaluation, "{")
    with pytest.raises(InputError) as error:
        write_report(run)
    assert "evaluation.json" in str(error.value)
    with pytest.raises(InputError):
        write_report(RunFolder(tmp_path / "nothing"))
