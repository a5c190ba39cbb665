# Every target sets up what it needs; the first run installs, later ones start at once.
#
#   make demo           the demonstration: tables, and pictures in demo-out/
#   make test           the test suite: float64, the float32 leg, then the leak leg
#   make test-float32   the float32 leg alone
#   make test-leaks     the leak leg alone: no traced value outlives its trace
#   make test-slow      the tests that take minutes
#   make test-newest    the suite on the newest Python of this machine, with the newest packages
#   make lint           formatting, lint, types
#   make bench          benchmarks
#   make docs           the documentation, in site/
#   make picture        docs/rooms.svg, the rooms and the imports between them
#   make clean          remove environments, caches and results
#
# PYTHON names the interpreter for .venv, WORKERS the number of test processes.

PYTHON ?=
WORKERS ?= 2

VENV := .venv
NEWEST := .venv-newest
BIN := $(VENV)/bin
PIP := python -m pip --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: help picture demo test test-float32 test-leaks test-slow test-newest lint bench docs clean

help:
	@sed -n '3,/^$$/s/^# \{0,1\}//p' Makefile

# Set-up. A stamp in the environment says which extra is installed for this pyproject.toml.

$(VENV)/.made:
	@set -e; \
	python=$$(.ci/find-python 11 $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11)); \
	echo "Making $(VENV) with $$python"; \
	"$$python" -m venv --clear $(VENV)
	@$(BIN)/$(PIP) install --quiet --upgrade pip
	@touch $@

$(VENV)/.has-%: pyproject.toml | $(VENV)/.made
	@echo "Installing volform[$*] into $(VENV): a few minutes the first time"
	@$(BIN)/$(PIP) install --quiet --editable '.[$*]'
	@touch $@

# Tasks

demo: $(VENV)/.has-demo
	$(BIN)/python examples/demo.py --out demo-out

# A file's tests share what they compile, so they stay in one process.
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
# Files that have tests of a leg: collecting all of them takes a worker half a minute.
marked = $(shell grep -rl --include='*.py' 'mark\.$(1)' tests)

test: $(VENV)/.has-test
	$(PYTEST) --durations=30
	@$(MAKE) --no-print-directory test-float32 test-leaks

test-float32: $(VENV)/.has-test
	VOLFORM_TEST_X64=0 $(PYTEST) -m float32 $(call marked,float32)

test-leaks: $(VENV)/.has-test
	VOLFORM_TEST_LEAKS=1 $(PYTEST) -m leaks $(call marked,leaks)

test-slow: $(VENV)/.has-test
	$(PYTEST) -m slow --durations=30

test-newest:
	@if ! python=$$(.ci/find-python 12 python3.13 python3.12 2>/dev/null); then \
	    echo "test-newest: skipped, no Python 3.12 or 3.13 on this machine"; \
	else \
	    $(MAKE) --no-print-directory $(NEWEST)/.has-test VENV=$(NEWEST) PYTHON="$$python" && \
	    $(MAKE) --no-print-directory test VENV=$(NEWEST); \
	fi

lint: $(VENV)/.has-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright --pythonpath $(BIN)/python

bench: $(VENV)/.has-test
	$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-autosave

docs: $(VENV)/.has-docs
	$(BIN)/mkdocs build --strict

picture: $(VENV)/.has-test
	$(BIN)/python docs/rooms.py

clean:
	rm -rf $(VENV) $(NEWEST) demo-out site build dist
	rm -rf .benchmarks .hypothesis .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
