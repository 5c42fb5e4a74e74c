# The commands of this repository; `make` or `make help` lists them.

SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
# auto, cpu or gpu: which build of PyTorch `make install` takes
TORCH ?= auto
# processes that run the tests
WORKERS ?= 2
PIP := $(BIN)/python scripts/quiet_pip.py
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help install dev demo test soak lint format types docs bench

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(VENV)/.polyalign ## make .venv with polyalign and its pinned dependencies

demo: install ## align a real small model with several methods; ends with a table and a report
	@$(BIN)/python demo/run_demo.py

test: dev ## run the whole suite (about 10 minutes on 2 cores)
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

soak: dev ## run the endurance tests: many kills at random moments
	@$(ONE_THREAD) $(BIN)/python -m pytest -m soak $(ARGS)

lint: dev ## check style and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: dev ## mend style and formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: dev ## check the types (strict where the mathematics lives)
	@$(BIN)/mypy

docs: install ## write the generated pages and the method index
	@$(BIN)/python scripts/build_docs.py

bench: $(VENV)/.bench ## measure speed and memory beside TRL; ARGS names tables, --help the options
	@$(BIN)/python -m benchmarks.run $(ARGS)

dev: $(VENV)/.dev

# Each step leaves a stamp, so a second `make install` does nothing.

$(VENV)/.python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "polyalign needs Python 3.11 or newer; here is: $$(python3 --version 2>&1 || echo 'no python3')."; \
		echo "Install one, or name it: make install PYTHON=/path/to/python3.12"; exit 1; fi
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "polyalign needs Python 3.11 or newer; $(PYTHON) is %d.%d." % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment (on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@$(PIP) "pip" --upgrade pip -c constraints.txt
	@touch $@

$(VENV)/.torch: constraints.txt scripts/install_torch.py | $(VENV)/.python
	@$(BIN)/python scripts/install_torch.py --build $(TORCH)
	@touch $@

$(VENV)/.polyalign: pyproject.toml constraints.txt | $(VENV)/.torch
	@$(PIP) "Build tools" hatchling -c constraints.txt
	@$(PIP) "polyalign and what it needs" --no-build-isolation -e . -c constraints.txt
	@touch $@

$(VENV)/.dev: $(VENV)/.polyalign
	@$(PIP) "What the tests need" --no-build-isolation -e '.[dev]' -c constraints.txt
	@touch $@

$(VENV)/.bench: $(VENV)/.polyalign
	@$(PIP) "TRL, the benchmark's peer" --no-build-isolation -e '.[bench]' -c constraints.txt
	@touch $@
