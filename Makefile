PYTHON ?= python3
BIN := .venv/bin
QUIET := --quiet --disable-pip-version-check

.PHONY: help demo test fuzz e2e bench clean

help:
	@echo "make demo   stream a run, answer its question, see it finish (ARGS=\"--base-url URL\" for a server of yours)"
	@echo "make test   lint, type checks, tests with coverage"
	@echo "make fuzz   the properties among the tests, a hundred times as long"
	@echo "make bench  typed events side by side with other clients (ARGS=--quick), or with a build before (ARGS=\"--against REV\")"
	@echo "make e2e    the same calls against real servers; writes the table of the README"

.venv/pyvenv.cfg:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "agentproto needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(QUIET) --upgrade "pip>=25.1"

.venv/installed: .venv/pyvenv.cfg pyproject.toml
	$(BIN)/python -m pip install $(QUIET) --editable ".[aiohttp,testing]"
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install $(QUIET) --group dev
	@touch $@

demo: .venv/installed
	@$(BIN)/python examples/quickstart.py $(ARGS)

test: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/pyright --verifytypes agentproto --ignoreexternal
	$(BIN)/python -m pytest --cov --cov-branch --cov-report=term-missing

fuzz: .venv/installed-dev
	$(BIN)/python -m pytest -m hypothesis --hypothesis-profile=long --durations=0 --durations-min=1

e2e: .venv/installed-dev
	$(BIN)/python -m pytest tests/e2e

.venv-bench/installed: benchmarks/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install $(QUIET) --editable ".[aiohttp]" --requirement benchmarks/requirements.txt
	@touch $@

bench: .venv-bench/installed
	@.venv-bench/bin/python benchmarks/run.py $(ARGS)

clean:
	rm -rf .venv .venv-bench .e2e .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
