# Every target makes .venv by itself and installs the pinned versions into it; the second time that costs nothing.
PYTHON ?= python3
JOBS ?= 2
PIP_ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: help quickstart test lint docs golden wheel clean
.DEFAULT_GOAL := help

help:
	@echo "make quickstart   train and evaluate a small model on this machine, a few minutes"
	@echo "make test         the test suite with coverage"
	@echo "make lint         formatting, style, types and import rules"
	@echo "make docs         the documentation into site/"
	@echo "make golden       write the expected plan of every recipe anew (tests/golden/plans)"
	@echo "make wheel        the wheel into dist/"
	@echo "make clean        remove what the other targets made, .venv and runs/ excepted"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev,docs]'
	@touch $@

quickstart: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/seqtune train recipe=quickstart # its model is so small that a second thread only gets in the way

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term --cov-fail-under=90

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/python docs/build.py

golden: $(STAMP)
	$(BIN)/python tests/recipes/golden.py

wheel: $(STAMP)
	rm -f dist/*.whl
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist .

clean:
	rm -rf build dist site htmlcov .coverage* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
