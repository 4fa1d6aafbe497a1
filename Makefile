# Everything runs in an environment of its own, made on first use; `make clean` removes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1
# Two tests at a time, one thread each: threads of one test would wait for those of the other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

.PHONY: help quickstart test test-all lint clean

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	touch $@

quickstart: $(VENV)/installed ## train, evaluate and picture a counter on generated crowds
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/installed ## the tests anybody can run: no network, no GPU, about three minutes
	$(PYTEST) -m "not slow and not golden and not data and not gpu"

test-all: $(VENV)/installed ## all tests; golden and real data where HEADCOUNT_GOLDEN and HEADCOUNT_DATA say
	$(PYTEST) -m "not gpu"

lint: $(VENV)/installed ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean: ## remove the environment; runs in checkpoints/ stay
	rm -rf $(VENV)
