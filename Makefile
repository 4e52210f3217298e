# Two commands matter: `make up` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
CACHE  ?= $(CURDIR)/.cache
ARGS   ?=
FUZZ_SECONDS ?= 600
PROTOS := $(wildcard ca/proto/*/*.proto)
WIRE   := $(CACHE)/bin/wire

.PHONY: help up test test-long check proto bench fuzz docs lock clean prerequisites fmt

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

prerequisites:
	@need() { echo "make: $$1 is missing; on Debian: apt-get install $$2" >&2; exit 1; }; \
	command -v git >/dev/null || need git git; \
	[ -n "$(PYTHON)" ] || need "Python 3.11" "python3 python3-venv"; \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make: $(PYTHON) is older than Python 3.11; set PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || need "Python's venv module" python3-venv

# What `burgee up` needs, from the hashed lock alone.
$(VENV)/.up: requirements.lock pyproject.toml | prerequisites
	@[ -x $(BIN)/python ] || { echo "creating $(VENV)"; "$(PYTHON)" -m venv $(VENV); }
	@[ -e $(VENV)/.dev ] || { echo "installing from requirements.lock"; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Everything the checks and tests use on top.
$(VENV)/.dev: requirements-dev.lock pyproject.toml | prerequisites
	@[ -x $(BIN)/python ] || "$(PYTHON)" -m venv $(VENV)
	@echo "installing from requirements-dev.lock"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: $(VENV)/.up ## Run server, agent and two Envoys speaking mTLS (ARGS="--once" to verify and exit)
	@exec $(BIN)/burgee up $(ARGS)

test: $(VENV)/.dev ## Install what the tests need and run them all (ARGS="-k name" to choose)
	@bash tests/support/install-real-parts.sh
	@CACHE="$(CACHE)" bash tests/support/build-go.sh
	@CACHE="$(CACHE)" bash tests/support/build-java.sh
	BURGEE_CACHE="$(CACHE)" $(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)

test-long: $(VENV)/.dev ## Policies in full counts: index, specification, Envoy and Cedar on 20,000 calls and more
	BURGEE_TEST_LONG=1 BURGEE_CACHE="$(CACHE)" $(BIN)/python -m pytest -n 2 --dist loadgroup --timeout 1800 tests/policy tests/ca/api/policy $(ARGS)

check: $(VENV)/.dev ## Format, lint, types, import rules, generated files, docs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/support/generated.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir $(CACHE)/site

fmt: $(VENV)/.dev ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.dev ## Regenerate everything that is generated: messages, CLI and configuration reference
	$(BIN)/python tests/support/generated.py

bench: $(VENV)/.dev ## Measure through the public wire and print the table beside SPIRE's figures
	@CACHE="$(CACHE)" bash tests/support/build-go.sh
	BURGEE_CACHE="$(CACHE)" $(BIN)/python -m tests.bench $(ARGS)

fuzz: $(VENV)/.dev ## Fuzz every parser and listener for ten minutes (FUZZ_SECONDS=60; ARGS="--target jwt")
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --work "$(CACHE)/fuzz" $(ARGS)

docs: $(VENV)/.dev ## Serve the documentation on this machine
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

lock: $(VENV)/.dev ## Renew the lock files (names and hashes, no addresses)
	$(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header --python-version 3.11 $(ARGS) \
	  --extra demo --group build pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header --python-version 3.11 $(ARGS) \
	  --no-strip-markers --extra demo --extra postgres --extra vault --extra pkcs11 --extra systemd --group build --group test --group dev \
	  --constraint requirements.lock pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header --python-version 3.11 $(ARGS) \
	  --extra postgres --extra vault --constraint requirements-dev.lock pyproject.toml -o helm/image/requirements.lock
	$(BIN)/uv pip compile --quiet --generate-hashes --no-annotate --no-header --python-version 3.11 $(ARGS) \
	  --group build --constraint requirements-dev.lock -o helm/image/build.lock

clean: ## Remove everything that was made here, state of `make up` included
	rm -rf $(VENV) $(CACHE) .burgee .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf site dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
