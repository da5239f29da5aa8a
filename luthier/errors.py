"""Every error that Luthier raises on purpose, and the exit code each one ends a command with.

    LuthierError                      1   something a user can act on
    ├── InputError                    2   what was given is wrong
    │   ├── RecipeError                   the recipe
    │   ├── DataError                     a data file or its rows
    │   ├── PolicyError                   a policy of the data gate
    │   └── ModelError                    a model, an adapter, a tokenizer or a template
    ├── OutOfMemory                   3   the machine has less memory than the work needs
    ├── NotFinite                     4   a loss or gradient that is no number; nothing was updated
    ├── StorageError                  5   a disk that is full or cannot be written
    └── Interrupted                 130   Ctrl-C or SIGTERM; what was done is saved

`assert` is for our own invariants, never for what a user gave.
"""


class LuthierError(Exception):
    """An error with four parts: what happened, where, what was found there, and what to do.

    `str()` gives them as one block. Private text never belongs in `got`: pass lengths, keys or types.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", got: str = "", do: str = "") -> None:
        self.what, self.where, self.got, self.do = what, where, got, do
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        # A value that begins with a line break is a list, and stands below its name.
        lines += [
            f"  {name}:{'' if value.startswith(chr(10)) else ' '}{value}" for name, value in self.parts() if value
        ]
        return "\n".join(lines)

    def parts(self) -> tuple[tuple[str, str], ...]:
        """The labelled parts after the first line, in the order they are printed."""
        return (("where", self.where), ("got", self.got), ("do", self.do))


class InputError(LuthierError):
    """What was given is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """The recipe names a key that does not exist, or a value that cannot be."""


class DataError(InputError):
    """A data file cannot be read, or rows in it cannot be used."""


class PolicyError(InputError):
    """A policy of the data gate cannot be found, or names a rule or a value that cannot be."""


class ModelError(InputError):
    """A model, adapter, tokenizer or template cannot be found, loaded or used."""


class OutOfMemory(LuthierError):
    """The machine has less memory than the work needs."""

    exit_code = 3


class NotFinite(LuthierError):
    """A loss or a gradient is not a finite number; the optimizer step was not taken."""

    exit_code = 4


class StorageError(LuthierError):
    """A disk is full or cannot be written; files that stood before are untouched."""

    exit_code = 5


class Interrupted(LuthierError):
    """The user or the system asked to stop; the last finished step is saved."""

    exit_code = 130
