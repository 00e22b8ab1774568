# `make run`: set up and carry out the whole method once. `make test`: set up and pass the tests. `make lint`: style.
# `make test-faults`: minutes of killed commands, thousands of damaged files. `make test-cluster`: minutes of a real
# cluster of three hosts on this machine. `make audit`: known vulnerabilities.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-faults test-cluster lint audit setup clean

run: setup
	$(BIN)/denoise-nas run --config quick

test: setup
	$(BIN)/pytest

test-faults: setup
	$(BIN)/pytest -m faults -n 0
	$(BIN)/pytest -n 0 --hypothesis-profile=thousands tests/pipeline/test_damaged_files.py

test-cluster: setup
	$(BIN)/pytest -m cluster -n 0 -rs tests/cluster

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# An environment of its own, so that the auditor's dependencies stay out of ours. Strict: a package that could not be
# looked up fails the audit. Not part of `.ci/run`, whose answer must not depend on the day.
audit:
	test -x $(VENV)/audit/bin/python || $(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	$(VENV)/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

setup: $(VENV)/.installed

# torch first and alone: asked for together with the rest, pip may look at CUDA builds.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV), once: torch, then all others, about two minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
