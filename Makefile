# make demo | make test | make test-long | make lint | make format | make clean
# Everything runs in an own .venv that is set up once, from any Python 3.11 or newer on PATH (or PYTHON=...).

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
CANDIDATES := python3 python3.11 python3.12 python3.13 python3.14 python
PYTHON ?= $(shell for p in $(CANDIDATES); do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
WORKERS ?= logical
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --maxprocesses 8 --dist worksteal

# One thread per process: the tests are many small models side by side.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-long lint format clean install
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n '1,2s/^# //p' Makefile

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "zoo needs Python 3.11 or newer on PATH, or as PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Setting up $(VENV) once: torch first, then the rest (a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@$(PIP) "$(TORCH)"
	@$(PIP) -e ".[test,plots,train]"
	@touch $(INSTALLED)

install: $(INSTALLED)

demo: $(INSTALLED)
	@$(BIN)/python examples/demo.py

test: $(INSTALLED)
	@$(BIN)/python tests/fetch_transformers_tests.py
	@$(PYTEST)

test-long: $(INSTALLED)
	@$(BIN)/python tests/fetch_transformers_tests.py
	@$(PYTEST) -m "long and not serving"

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
