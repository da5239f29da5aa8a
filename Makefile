# What people type. Everything runs in .venv, which is made anew only when pyproject.toml changes.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The first Python on the path that is new enough; `make demo PYTHON=/path/to/python` takes another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

# A file of tests stays in one process: what its tests share is made once. More than four would want much memory.
JOBS := --numprocesses=auto --maxprocesses=4 --dist=loadfile

.PHONY: demo test quick check format bench reference

demo: $(STAMP)
	$(BIN)/luthier demo

test: $(STAMP)
	$(BIN)/pytest $(JOBS) -m "not gpu"

quick: $(STAMP)
	$(BIN)/pytest $(JOBS) -m "not gpu and not slow and not models and not shared_data" --hypothesis-profile=quick

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

# Peers and Luthier in turn: about an hour on two cores that do nothing else. Needs the public data sets, which
# benchmarks/workloads.py names. BENCH="--quick --busy-ok" shows in minutes that everything runs.
DATA ?= ../shared/data
BENCH ?=
PEERS := .venv-peers
bench: $(STAMP) $(PEERS)/.installed
	$(BIN)/python -m benchmarks.bench --data $(DATA) --peers $(PEERS)/bin/python $(BENCH)

$(PEERS)/.installed: benchmarks/peers.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
	@touch $@

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "Luthier needs Python 3.11 or newer, and none is on the path." >&2; \
	  echo "  do: install one, or make $(firstword $(MAKECMDGOALS)) PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[gguf,dev]'
	@touch $@
