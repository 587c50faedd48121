# Everything a person or a machine does with this repository. `make` alone lists it.
# Each target sets up .venv first, so that any of them works in a fresh clone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --use-pep517
# The Python that makes .venv: the first of these that is 3.11 or newer and can make one.
PYTHONS ?= python3 python3.13 python3.12 python3.11 /usr/bin/python3
# Pinned and installed first, so that no newer build with gigabytes of GPU libraries is chosen.
TORCH ?= torch==2.13.0
# Twenty US stocks and the S&P 500, daily 1990 to 2022, for the demo; only its data files are read.
MARKET_DATA ?= skfolio==1.12.2
# Robust rules by other hands, for the tests to compare with. It declares torchvision and more, of
# which what is compared with needs nothing.
ORACLE ?= byzfl==0.0.11
# Arguments for the command behind a target, as in `make demo ARGS="--clients 20"`.
ARGS ?=
# The shortest demo that still trains over the wire: one origin, one noise seed.
DEMO_SHORT ?= --origins 2019 --seeds 1
COVERAGE_FLOOR ?= 95
BENCH_ROUNDS ?= 7
PYTHON_FOLDERS := $(wildcard src client_sdk/src client_sdk/examples tests tools deploy)
BASELINE := proto/baseline.binpb

##@ Use
.PHONY: setup
setup: $(STAMP) ## make .venv with both distributions and all tools
	@echo "$(VENV) is ready: $$($(BIN)/python --version), $$($(BIN)/buf --version 2>&1 | sed 's/^/buf /')"

$(STAMP): pyproject.toml client_sdk/pyproject.toml
	@python=; for candidate in $(PYTHONS); do \
	  if "$$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' \
	    >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "setup needs Python 3.11 or newer with venv (Debian: apt-get install python3-venv);" \
	    "name another one with make PYTHONS=/path/to/python3" >&2; exit 1; \
	fi; \
	[ -x $(BIN)/python ] || { echo "making $(VENV) with $$($$python --version)"; \
	  "$$python" -m venv $(VENV); }
	$(PIP) '$(TORCH)'
	$(PIP) -e ./client_sdk -e '.[dev]'
	$(PIP) --no-deps '$(MARKET_DATA)' '$(ORACLE)'
	@touch $@

.PHONY: demo
demo: $(STAMP) ## 20 brokers train a model on real prices; ARGS="--clients 20", "--full", ...
	$(BIN)/boltz-mesh demo $(ARGS)

.PHONY: demo-short
demo-short: $(STAMP) ## the demo with one origin and one noise seed
	$(BIN)/boltz-mesh demo $(DEMO_SHORT) $(ARGS)

##@ Test
.PHONY: test
test: $(STAMP) ## all tests that need nothing but .venv
	$(BIN)/pytest $(ARGS)

.PHONY: test-system
test-system: $(STAMP) ## tests against Debian's PostgreSQL, image builder and linters
	tools/install_system.sh
	$(BIN)/pytest -m system $(ARGS)

.PHONY: check
check: $(STAMP) ## format, lint, types, contract, stubs, Dockerfile
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(PYTHON_FOLDERS)
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking --against $(BASELINE)
	$(BIN)/python tools/generate_stubs.py --check
	$(BIN)/hadolint Dockerfile

.PHONY: coverage
coverage: $(STAMP) ## branch coverage, subprocesses included; fails under COVERAGE_FLOOR
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --fail-under=$(COVERAGE_FLOOR)

.PHONY: bench
bench: $(STAMP) ## time of a round: 4 clients with 1 M and with 25 M parameters
	$(BIN)/python tools/bench/round.py --clients 4 --params 1000000 --mode open \
	  --rounds $(BENCH_ROUNDS) --json $(ARGS)
	$(BIN)/python tools/bench/round.py --clients 4 --params 25000000 --mode open \
	  --rounds $(BENCH_ROUNDS) --json $(ARGS)

##@ Change
.PHONY: format
format: $(STAMP) ## format Python and proto files, apply safe lint fixes
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .
	$(BIN)/buf format --write

.PHONY: stubs
stubs: $(STAMP) ## generate boltz_protocol.v1 from proto/
	$(BIN)/python tools/generate_stubs.py

.PHONY: baseline
baseline: $(STAMP) ## accept the contract as it is: later breaking checks compare with it
	$(BIN)/buf build --exclude-source-info --output $(BASELINE)

.PHONY: image
image: $(STAMP) ## build the server's container image without a registry or a daemon (as root)
	tools/build_image.sh

.PHONY: clean
clean: ## remove .venv, caches and reports
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* htmlcov dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	  /^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
