# Everything runs in an environment of its own, created on first use; `make clean` removes it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PYTHONUNBUFFERED := 1
# Two tests at a time, one thread each: the threads of one test would compete with those of the other. A module is not
# split, since its tests share what they made; tests/conftest.py orders the modules.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder $(if $(COVERAGE),--cov --cov-append --cov-report=)

.PHONY: help quickstart test test-rest test-all coverage fuzz lint docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	touch $@

quickstart: $(VENV)/installed ## train and evaluate a counter on generated crowds, and draw its results
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/installed ## the tests that run anywhere: no network, no GPU, a few minutes
	$(PYTEST) -m "not slow and not golden and not data and not gpu"

test-rest: $(VENV)/installed ## the tests that `make test` leaves out, except those that need a GPU
	$(PYTEST) -m "(slow or golden or data) and not gpu"

test-all: $(VENV)/installed ## all tests; golden numbers and real data if HEADCOUNT_GOLDEN and HEADCOUNT_DATA are set
	$(PYTEST) -m "not gpu"

coverage: $(VENV)/installed ## line coverage of src, of the tests run with COVERAGE=1 since the last report; fails below 92 %
	$(BIN)/coverage report --skip-covered --sort=cover
	rm -f .coverage

fuzz: $(VENV)/installed ## thousands of damaged files and random settings, some minutes; not in CI; FUZZ="--seed 7"
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -m fuzz $(FUZZ)

lint: $(VENV)/installed docs ## ruff, mypy, and the documentation built strictly
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(VENV)/installed ## build the documentation into site/; broken links are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean: ## remove the environment; runs in checkpoints/ stay
	rm -rf $(VENV)
