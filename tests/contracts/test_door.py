"""What Luthier promises to programs and to the impatient: its public names, and how fast and light it starts."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import luthier
from luthier.errors import LuthierError

HEAVY = ("torch", "transformers", "duckdb", "pyarrow", "numpy", "peft")


def modules_after(code: str) -> set[str]:
    """What a fresh interpreter has imported after running `code`."""
    tail = "\nimport sys\nprint('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


def test_public_names() -> None:
    assert set(luthier.__all__) == {"Recipe", "__version__", "evaluate", "load", "tune"}
    assert all(getattr(luthier, name) is not None for name in luthier.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        luthier.nothing  # noqa: B018


def test_the_version_is_the_one_that_is_packaged() -> None:
    packaged = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"]
    assert luthier.__version__ == packaged


def test_importing_luthier_imports_nothing_heavy() -> None:
    assert not modules_after("import luthier") & set(HEAVY)


@pytest.mark.parametrize("words", [["--help"], ["tune", "--help"], ["--version"], ["tune"]], ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    assert not modules_after(f"from luthier.cli import main\nmain({words!r})") & set(HEAVY)


def test_checking_needs_no_torch() -> None:
    seen = modules_after(
        "import luthier.workflow.prepare, luthier.governance.card, luthier.report.page, luthier.runs.record"
    )
    assert not seen & {"torch", "peft"}


def test_recipes_need_no_torch() -> None:
    assert not modules_after("import luthier; luthier.Recipe") & {"torch", "transformers", "duckdb", "pyarrow"}


@pytest.mark.parametrize(
    "given",
    [{}, {"model": "m"}, {"data": "d"}, {"recipe": {"model": {}}, "model": "m", "data": "d"}],
    ids=["nothing", "no data", "no model", "both"],
)
def test_tune_says_what_is_missing(given: dict[str, object]) -> None:
    with pytest.raises(LuthierError, match="model"):
        luthier.tune(**given)  # type: ignore[arg-type]
