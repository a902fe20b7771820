# Paths are relative throughout: make cannot name a target whose path holds a space, and the folder that
# this lies in may. Tools are run as modules, since the scripts in .venv/bin carry the folder's old name
# after it was moved.

PYTHON ?= python3
VENV_PYTHON := .venv/bin/python
PIP_INSTALL := $(VENV_PYTHON) -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP := .venv/.set-up

# The stamp holds the folder's name: after a move or a copy the editable install points elsewhere.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
MOVED := moved
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo up seed test test-unit test-browser check fix bench migration moved

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Install everything into .venv (done by the others when needed)

$(STAMP): pyproject.toml constraints.txt $(MOVED)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Titer needs Python 3.11 or newer, and '$(PYTHON)' is not. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@$(VENV_PYTHON) -m pip --version >/dev/null 2>&1 || { rm -rf .venv && $(PYTHON) -m venv .venv; }
	@rm -f $(STAMP)
	@echo "Installing into .venv: about 1.3 GB, a minute or more the first time."
	@$(PIP_INSTALL) -e '.[dev]'
	@pwd -P | tr -d '\n' > $(STAMP)

demo: setup ## Run the main job here: align, fine-tune, measure, decide (under 10 minutes)
	@$(VENV_PYTHON) -m api.cli demo $(ARGS)

up: setup ## Start the whole service on this machine; Ctrl-C stops it
	@$(VENV_PYTHON) -m api.cli up $(ARGS)

seed: setup ## Fill the service's database with made-up data, to look at the dashboard
	@$(VENV_PYTHON) -m api.cli db seed $(ARGS)

test: setup ## Run the tests (a part of them: make test T=tests/models)
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 --dist worksteal $(T)

test-unit: setup ## Run the tests that are quick and start no server or process: a minute or two on two cores
	@OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n 2 --dist worksteal -m 'not servers and not processes and not long and not browser' $(T)

test-browser: setup ## Run the tests that look at the dashboard (needs Chromium)
	@$(PIP_INSTALL) -e '.[browser]'
	@$(VENV_PYTHON) -m pytest -m browser $(T)

check: setup ## Lint, check the format, the types and who may import whom
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy
	@$(VENV_PYTHON) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

fix: setup ## Repair what lint and format can repair by themselves
	@$(VENV_PYTHON) -m ruff check --fix .
	@$(VENV_PYTHON) -m ruff format .

bench: setup ## Measure what a Booster step costs against an SFT step
	@$(VENV_PYTHON) -m benchmarks.step_cost $(ARGS)

migration: setup ## Write a migration from the tables: make migration m="add a column"
	@test -n "$(m)" || { echo 'Say what it does: make migration m="add a column"' >&2; exit 1; }
	@$(VENV_PYTHON) -m migrations.new "$(m)"

moved:
