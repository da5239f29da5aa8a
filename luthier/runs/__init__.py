"""Where a run happened: a folder whose paths are named once, a journal that only grows, and a manifest of hashes."""
