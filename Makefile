# The two commands a new user types are `make demo` and `make test`; both set everything up first.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV := .venv/bin
export PATH := $(CURDIR)/$(VENV):$(PATH)
export PYTHONUNBUFFERED := 1

.PHONY: help setup demo test test-live check lint types unit floor integration molecule e2e chaos sanity docs bench lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: ## Install everything into .venv (and, as root on Debian, the container engine)
	@scripts/setup

demo: setup ## The main job on the sandbox: rent, train, lose the machine, resume, tear down
	@gpuyard demo

test: setup ## Every test: check, integration, roles, end to end
	@scripts/test all

test-live: ## MANUAL=1, PROVIDER=…: a real account, read only; SPEND=1 rents one machine for minutes
	@scripts/test-live

check: setup ## Lint, types, and the unit tests that start no programs, within two minutes
	@scripts/test check

lint: setup
	@scripts/test lint

types: setup
	@scripts/test types

unit: setup
	@scripts/test unit

floor: setup ## Plugins, modules and plays with the oldest ansible-core that is supported
	@scripts/test floor

integration: setup ## Modules, clients and the sandbox against each other
	@scripts/test integration

molecule: setup ## Every role on real containers
	@scripts/test molecule

e2e: setup ## The whole story on both emulated clouds
	@scripts/test e2e

FAULTS ?= 100
chaos: setup ## FAULTS=100 SEED=… RUN=… or BOXES=10: faults at random moments, and what has to hold after each
	@scripts/chaos --faults $(FAULTS) $(if $(BOXES),--boxes $(BOXES)) $(if $(SEED),--seed $(SEED)) $(if $(RUN),--world $(RUN)) $(if $(JSON),--json $(JSON))

sanity: setup ## ansible-test sanity
	@scripts/test sanity

docs: setup ## The documentation as a site, in docs/_build/html; a warning is an error
	@scripts/docs

bench: setup ## The measures of benchmarks/, as ratios to a floor taken in the same run
	@python benchmarks/market.py; market=$$?; python benchmarks/checkpoints.py; copies=$$?; python benchmarks/run.py && exit $$((market + copies))

lock: setup ## Pin the newest versions that fit, with hashes
	@scripts/lock

clean: ## Remove what was built in the checkout (the sandbox: gpuyard sandbox down)
	@rm -rf .venv .tools dist build .ansible .mypy_cache .ruff_cache .pytest_cache docs/_build docs/collection docs/generated
