# The ways in: `make demo` to see it work, `make test` before every commit. The rest is `make help`.
SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
  $(shell $(p) -c 'import sys; sys.version_info >= (3, 11) and print("$(p)")' 2>/dev/null)))
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
EVERYTHING := .[dev,ultralytics,timm,transformers,lightning]

# Tests spread over the cores; PYTEST_ARGS narrows them: make test PYTEST_ARGS='-k ssd'
PYTEST_ARGS ?=
WORKERS ?= -n logical --maxprocesses 4 --dist worksteal

# Nothing here needs weights, so nothing may look for any.
export HF_HUB_OFFLINE := 1
export YOLO_OFFLINE := true

.PHONY: help demo test test-long check zoo bench bench-session bench-methods bench-export bench-latency golden docs clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(VENV)/.base  ## draw scenes, train a small SSD to half its FLOPs and parameters, export, time it
	$(BIN)/effp-fx demo

test: check  ## check, then every test but the long ones
	$(BIN)/python -m pytest $(WORKERS) -m 'not long' $(PYTEST_ARGS)

test-long: $(VENV)/.dev  ## the tests that take minutes each: other tools to the end, several processes, large networks (a quarter of an hour)
	$(BIN)/python -m pytest $(WORKERS) -m long $(PYTEST_ARGS)

check: $(VENV)/.dev  ## contracts, lint, types; no test is run
	$(BIN)/lint-imports --no-logo
	$(BIN)/ruff check
	$(BIN)/mypy

zoo: $(VENV)/.dev  ## every model of the zoo, Torch-Pruning beside it: docs/zoo.md and its JSON
	$(BIN)/python -m benchmarks.zoo

bench: $(VENV)/.dev  ## time of capture, analysis, plan and lowering against the number of layers
	$(BIN)/python -m benchmarks.compile_time

bench-session: $(VENV)/.dev  ## EFFP against dense, uniform and one-shot training: docs/results/session.md (hours)
	$(BIN)/python -m benchmarks.session

bench-methods: $(VENV)/.dev  ## every method on two nets, three seeds: docs/results/methods.md (hours; goes on where it stopped)
	$(BIN)/python -m benchmarks.methods

bench-export: $(VENV)/.dev  ## eleven detectors, dense and pruned, every part in ONNX Runtime: docs/results/export.md
	$(BIN)/python -m benchmarks.export

bench-latency: $(VENV)/.dev  ## time ratio against FLOPs ratio in ONNX Runtime, on a quiet machine: docs/results/latency.md
	$(BIN)/python -m benchmarks.latency_ratio

golden: $(VENV)/.dev  ## write the texts in tests/golden anew; read the diff before you commit it
	$(BIN)/python -m pytest -m golden --update-golden $(PYTEST_ARGS)

docs: $(VENV)/.dev  ## write the generated pages, docs/ops.md and docs/errors.md
	$(BIN)/python docs/generate.py

clean:  ## remove what was made, the virtual environment excepted
	rm -rf build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find effp_fx tests docs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# An environment that is there is kept and completed, whoever made it; pip finds the torch and torchvision that fit together.
$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "effp_fx needs Python 3.11 or newer; found: $$(python3 --version 2>&1)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }

# The second try serves a machine with no network whose environment is complete already: it asks no index for anything.
install = $(PIP_INSTALL) --editable '$(1)' || $(PIP_INSTALL) --no-index --no-build-isolation --editable '$(1)'

$(VENV)/.base: pyproject.toml | $(BIN)/python
	@echo "installing effp_fx into $(VENV) (the first time this fetches torch: some minutes)"
	@$(call install,.)
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing effp_fx, its model families and its tools into $(VENV) (the first time: some minutes)"
	@$(call install,$(EVERYTHING))
	@touch $@ $(VENV)/.base
