"""Is what is done what was meant? Each check is a pure function that a user can run on his own model and rows, and that
the tests run on small models of every family."""

from luthier.proof.checks import CHECKS, Subject
from luthier.proof.files import Start
from luthier.proof.mask import Row
from luthier.proof.measure import Proof

__all__ = ["CHECKS", "Proof", "Row", "Start", "Subject"]
