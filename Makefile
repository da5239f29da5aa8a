# What people type. Everything runs in .venv, which is made anew only when pyproject.toml changes.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first Python on the path that is new enough; `make demo PYTHON=/path/to/python` takes another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.PHONY: demo test quick check format bench reference

demo: $(STAMP)
	$(BIN)/luthier demo

test: $(STAMP)
	$(BIN)/pytest -m "not gpu"

quick: $(STAMP)
	$(BIN)/pytest -m "not gpu and not slow and not models and not shared_data"

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m luthier.cli.reference --check

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

reference: $(STAMP)
	$(BIN)/python -m luthier.cli.reference

# Needs the public data sets; benchmarks/workloads.py says which, and where they come from.
DATA ?= ../shared/data
bench: $(STAMP)
	for job in banking77 gsm8k mts; do $(BIN)/python benchmarks/workloads.py $$job --data $(DATA) || exit 1; done

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Luthier needs Python 3.11 or newer, and none is on the path." >&2; \
	  echo "  do: install one, or make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[gguf,dev]'
	@touch $@
