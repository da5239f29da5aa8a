"""The demo's data: the support desk of an invented company. FACTS.md is what it knows; the rows were written by hand
from it."""
