"""The benchmark's arithmetic: who agrees with whom, what a token must cost, and a page that says what was measured."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import page
from benchmarks.contenders.common import arranged
from benchmarks.field import FIELD, Contender
from benchmarks.figures import agrees, gap, rate, ratios, run_loss
from benchmarks.floor import Sizes, decoding_work, work
from benchmarks.profile_step import REST, category
from benchmarks.scaling import exponent

PEER = Contender("peer", "hand", "peers")
REGROUPED = Contender("regrouped", "hand", "peers", same_steps=False)


def trained(*losses: float, seconds: float = 2.0) -> dict[str, Any]:
    n = len(losses)
    return {"losses": losses, "units": [10] * n, "tokens": [100] * n, "seconds": [50.0] + [seconds] * (n - 1)}


@given(st.lists(st.integers(1, 2000), min_size=24, max_size=24), st.integers(2, 8))
def test_grouping_by_length_moves_examples_between_timed_steps_only(lengths: list[int], size: int) -> None:
    steps = [list(range(a, min(a + size, 24))) for a in range(0, 24, size)]
    grouped = arranged(steps, lengths, across=True)
    assert grouped[0] == steps[0]
    assert [len(step) for step in grouped] == [len(step) for step in steps]
    assert sorted(i for step in grouped for i in step) == list(range(24))
    ordered = [lengths[i] for step in grouped[1:] for i in step]
    assert ordered == sorted(ordered, reverse=True)
    assert arranged(steps, lengths, across=False) == steps


def test_the_first_step_is_never_timed() -> None:
    assert rate(trained(1.0, 1.0, 1.0), "lora") == 50.0


def test_one_step_with_another_loss_is_not_the_same_work() -> None:
    base = trained(2.0, 1.9, 1.8)
    assert agrees(PEER, trained(2.0, 1.905, 1.8), base, "lora")
    assert not agrees(PEER, trained(2.0, 2.0, 1.8), base, "lora")
    assert not agrees(PEER, base, None, "lora")


def test_other_steps_are_compared_over_the_run() -> None:
    base, other = trained(2.0, 1.5, 2.5), trained(2.0, 2.5, 1.5)
    assert gap(PEER, other, base, "lora") == 1.0
    assert gap(REGROUPED, other, base, "lora") == 0.0
    assert run_loss({"losses": [1.0, 4.0], "units": [2, 1]}) == 2.0


def test_answers_agree_up_to_where_they_part() -> None:
    base = {"completions": [[1, 2, 3, 4], [5, 6]], "seconds": [3.0]}
    other = {"completions": [[1, 2, 9, 4], [5, 6]], "seconds": [2.0]}
    assert gap(PEER, other, base, "generate") == 0.25
    assert rate(other, "generate") == 3.0


def test_a_ratio_is_of_two_runs_of_one_round() -> None:
    fast, slow = [{"result": trained(1.0, 1.0, seconds=s)} for s in (1.0, 4.0)]
    assert ratios([fast, slow], [slow, slow], "lora") == [4.0, 1.0]
    assert ratios([fast, {"result": None}], [slow, slow], "lora") == [4.0]


def test_the_floor_is_the_formula_of_the_matrix_work() -> None:
    size = Sizes(body=106_000_000, adapter=4_900_000, head=49152 * 576, attention=30 * 576)
    done = work(size, kind="lora", supervised=0.24, length=417)
    assert done.body == 4 * 106e6
    assert done.adapter == pytest.approx(29e6, rel=0.02)
    assert done.head == pytest.approx(27e6, rel=0.02)
    assert done.attention == pytest.approx(50e6, rel=0.02)
    assert done.floor == done.body + done.adapter + done.head
    assert work(size, kind="classify", supervised=0.0, length=20).body == 6 * 106e6
    assert decoding_work(size, prompt_tokens=0, new_tokens=1) == 2 * (size.body + size.head)


def test_a_power_is_found() -> None:
    assert exponent([1, 2, 4, 8], [3, 6, 12, 24]) == pytest.approx(1)
    assert exponent([1, 2, 4], [1, 4, 16]) == pytest.approx(2)


def test_operators_fall_under_the_work_they_do() -> None:
    assert category("aten::addmm") == "matrix products"
    assert category("aten::_scaled_dot_product_flash_attention_for_cpu_backward") == "attention"
    assert category("aten::copy_") == "copies and casts"
    assert category("aten::embedding") == REST


def test_the_page_names_what_failed_and_who_did_other_work(tmp_path: Path) -> None:
    path = page.write(results(), tmp_path)
    text = path.read_text()
    ours = next(line for line in text.splitlines() if line.startswith("| Luthier |"))
    assert "100 (50-200) | 3 |" in ours
    assert "did not run: no memory" in text
    assert text.count("**not the same work**") == 1
    # The fastest peer computes something else, so the next one is the bar.
    assert "| 20 (transformers + PEFT, padded, supervised logits) | 5.00 |" in text
    assert (tmp_path / "2026-01-02-engine-avx512-bf16" / "gsm8k.svg").exists()
    for figure in (tmp_path / "2026-01-02-engine-avx512-bf16").iterdir():
        assert math.isfinite(float(ET.parse(figure).getroot().attrib["height"]))


def results() -> dict[str, Any]:
    def run(seconds: float, loss: float = 2.0) -> dict[str, Any]:
        result = {**trained(loss, loss, seconds=seconds), "versions": {"torch": "2"}}
        return {"result": result, "error": None, "peak_bytes": 2e9, "others": 0.0, "stolen": 0.0}

    field = [contender.name for contender in FIELD["gsm8k"]]
    failed = {"result": None, "error": "no memory", "peak_bytes": 1, "others": 0.0, "stolen": 0.0}
    runs = {name: [failed] for name in field}
    runs[field[0]] = [run(1.0), run(0.5), run(2.0)]
    runs[field[1]] = [run(5.0)]
    runs[field[2]] = [run(0.1, loss=2.5)]
    facts = {
        "sha256": "0" * 64, "examples": 16, "tokens": 200, "longest": 20, "supervised": 0.5, "mean_length": 10.0,
        "all_tokens": 1000, "all_examples": 96,
    }  # fmt: skip
    flop = {"body": 1e6, "adapter": 1e6, "head": 1e6, "attention": 1e6, "floor": 3e6}
    job = {"title": "Arithmetic", "kind": "lora", "facts": facts, "flop": flop, "runs": runs}
    host = {
        "processor": "P",
        "cores": 2,
        "flags": ["avx512f", "avx512_bf16"],
        "memory_bytes": None,
        "system": "S",
        "python": "3",
    }
    point = {"seconds": 1.0, "peak_bytes": 1e9, "loaded_bytes": 1e9, "error": None, "others": None}
    points = [{"model": "small", "tokens": n, "length": n, **point, "seconds": n / 100} for n in (256, 512, 1024)]
    return {
        "date": "2026-01-02",
        "machine": host,
        "settings": {"threads": 2, "repeats": 3, "quick": False, "full": False, "load_at_start": [0.0, 0.0, 0.0]},
        "workloads": {"gsm8k": {**job, "gemm": [{"bf16": 3e8, "fp32": 1e8}]}},
        "scaling": {"tokens": points, "context": points},
        "minutes": 1.0,
    }
