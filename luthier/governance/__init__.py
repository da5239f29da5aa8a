"""Run folders as documents: no torch, no network, nothing read but the folder."""

from luthier.governance.card import write_card

__all__ = ["write_card"]
