"""A run folder as one self-contained HTML page: no torch, no network, nothing read but the folder."""

from luthier.report.page import write_report

__all__ = ["write_report"]
