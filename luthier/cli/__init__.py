"""The command line: one file for each verb, a few lines of typer over `luthier.workflow`.

Nothing heavy is imported before a verb needs it, so that `luthier --help` is there at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code (see `luthier.errors`)."""
    from luthier.cli.run import run

    return run(sys.argv[1:] if arguments is None else list(arguments))
