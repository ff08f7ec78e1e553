# The two commands to know: `make quickstart` and `make test`. Both set up .venv by themselves.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ROOT   ?= runs/quickstart

# By themselves: litgpt asks for a huggingface-hub that no other peer can have, and does without.
LITGPT := 'litgpt>=0.5.13,<0.6' 'lightning>=2.6,<3' pytorch-lightning lightning-utilities torchmetrics

.PHONY: help install quickstart test test-faults lint bench metrics clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and "Manta needs Python 3.11 or newer; this is %d.%d. Set PYTHON=..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install --quiet -e .
	@touch $@

$(VENV)/.installed-for-tests: pyproject.toml | $(BIN)/pip
	$(BIN)/pip install --quiet -e '.[test]'
	@touch $(VENV)/.installed $@

install: $(VENV)/.installed-for-tests ## Create .venv with Manta and what its tests need

quickstart: $(VENV)/.installed ## Run the whole chain on this machine: text to an aligned model (a quarter of an hour)
	$(BIN)/manta quickstart --root $(ROOT)

test: install ## Run every test, two at a time: first those that need no Ray
	$(BIN)/python -m pytest -q --numprocesses 2 tests/unit
	$(BIN)/python -m pytest -q --numprocesses 2 --dist loadfile --no-loadscope-reorder tests/integration

test-faults: install ## Kill, damage and fill up whatever can be, and show what came of it (hours; goes on where it was)
	$(BIN)/python -m tests.faults --at-once 2 --keep runs/faults

lint: install ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install ## Measure against the peers; prints one JSON line per benchmark
	$(BIN)/pip install --quiet -e '.[bench]'
	$(BIN)/pip install --quiet --no-deps $(LITGPT)
	$(BIN)/python -m tests.benchmarks.tokenize
	$(BIN)/python -m tests.benchmarks.tokenize --model-type unigram
	$(BIN)/python -m tests.benchmarks.tokens_stage
	$(BIN)/python -m tests.benchmarks.loader
	$(BIN)/python -m tests.benchmarks.train
	$(BIN)/python -m tests.benchmarks.train_stage

metrics: install ## Make the Grafana dashboard and docs/metrics.md from the declared metrics
	$(BIN)/python -m cluster.grafana
	$(BIN)/python -m cluster.metrics_page

clean: ## Remove .venv and caches; keeps runs/
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
