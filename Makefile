# make demo sets everything up and runs the main job; make test sets everything up and passes the quick tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROCESSES ?= 2
RECORDS ?= outputs/records
export HF_HUB_OFFLINE ?= 1
.DEFAULT_GOAL := help

.PHONY: help demo test test-all lint setup tiny tiny-b tiny-check embedded-check publish leaderboard reproduce bench clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(VENV)/.done  ## Install everything into .venv (Python 3.11 or later; 3 minutes, 8 GB)

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=...")'
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup  ## Protect, customize and evaluate one embedded identity (4 to 8 minutes on two cores)
	$(BIN)/python run.py

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal

test: setup  ## Run the tests without the slow ones (6 minutes on two cores)
	@echo "Without the tests marked slow, which 'make test-all' and .ci/run also run."
	$(PYTEST) -m "not slow"

test-all: setup  ## Run all tests
	@echo "All tests, also those marked slow, which 'make test' leaves out."
	$(PYTEST)

lint: setup  ## Check style, formatting and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

tiny: setup  ## Train the embedded model from nothing (hours on two cores; goes on where it was stopped)
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) -m experiments.embedded.train

tiny-b: setup  ## Train the second, narrower embedded model from nothing
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) -m experiments.embedded.train --model tiny_b

tiny-check: setup  ## Measure the embedded model on its own
	$(BIN)/python -m experiments.embedded.model_check

embedded-check: setup  ## Protect and customize twelve embedded people at three budgets (hours; resumable)
	$(BIN)/python -m experiments.embedded.world_check

publish: setup  ## Add records to experiments/results (RECORDS=outputs/records: files, folders, output_dirs)
	$(BIN)/python -m experiments.leaderboard.publish $(RECORDS)

leaderboard: setup  ## Make experiments/results/leaderboard from the committed records
	$(BIN)/python -m experiments.leaderboard

reproduce: setup  ## Run again what the committed records came from, and say which numbers moved (a day on two cores; resumable)
	$(BIN)/python -m experiments.leaderboard.reproduce

bench: setup  ## Measure the speed and memory of every phase
	$(BIN)/python -m experiments.benchmarks.speed

clean:  ## Remove what runs wrote (outputs/)
	rm -rf outputs
