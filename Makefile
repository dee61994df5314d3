# `make` or `make help` lists what there is. Everything works from a bare clone: Python 3.11 or newer is all it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DOORS = $(BIN)/python -m pip install --disable-pip-version-check -e '.[doors]'
PORT ?= 8080
PROCESSES ?= 4

.PHONY: help install run demo check test campaign bench secrets test-docker clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## Make .venv, with the service, the client and everything that the other commands need

$(INSTALLED): $(foreach part,. client examples/main_api,$(part)/setup.cfg $(part)/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; name one with PYTHON=…, this is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	@echo "Making $(VENV) with the service, the client and the tools; this takes about a minute."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --disable-pip-version-check -e ./client -e '.[embedded,dev]' -e ./examples/main_api
	@echo "Installing the gateways and OAuth clients that some tests run against."
	@$(DOORS) 2>/dev/null || echo "They cannot be installed here, so those tests will be skipped. To see why: $(DOORS)"
	@touch $(INSTALLED)

run: $(INSTALLED) ## Serve on 127.0.0.1:8080 (PORT=… for another) with a private Redis; every REVOCATION_… variable counts
	@REVOCATION_PORT="$${REVOCATION_PORT:-$(PORT)}" exec $(BIN)/revocation-service serve

demo: $(INSTALLED) ## Run all four parts on loopback, and walk through login, logout and six logins (DEMO_ONCE=1: then end)
	@exec $(BIN)/python examples/demo.py

check: $(INSTALLED) ## Lint, format, types, and the imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy deploy/healthcheck.py
	$(BIN)/mypy examples/demo.py
	MYPYPATH=examples/main_api/tests $(BIN)/mypy examples/main_api/tests
	$(BIN)/lint-imports --no-cache

test: $(INSTALLED) ## The tests, against real Redis processes that they start themselves (PROCESSES=4 at a time; some minutes)
	$(BIN)/pytest -m "not docker" -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

campaign: $(INSTALLED) ## The same claims turned up: 100,000 revocations under kills, long fuzzing (over an hour)
	CAMPAIGN=1 $(BIN)/pytest -m "not docker"

bench: $(INSTALLED) ## Measure, against named baselines in the same run
	$(BIN)/python -m bench

secrets: ## Make secrets/ for docker-compose.yml: passwords and keys; two of them are printed, this once
	@deploy/make-secrets

test-docker: $(INSTALLED) ## Build the image, run the compose file and the testcontainers tests; says so where no engine answers
	$(BIN)/pytest -m docker -rs tests/docker

clean: ## Remove what the other commands made
	rm -rf $(VENV) build client/build dist *.egg-info client/*.egg-info examples/main_api/*.egg-info .mypy_cache .ruff_cache .hypothesis
