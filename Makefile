# Needs Python 3.11 or newer, make and git; everything else is installed into .venv from the lock.

PYTHON ?= $(firstword $(foreach name,python3.13 python3.12 python3.11 python3.14 python3 python,$(shell \
	$(name) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $(name))))
BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
MINUTES ?= 10
# Tests start the interpreter some hundred times: what it has compiled it should find again.
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help demo test scale chaos backends check format bench bench-peers docs lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## Kill one of two runners in the middle of its workflows and see them finish
	$(BIN)/python examples/fulfil.py

test: $(INSTALLED) ## Run the tests on an embedded PostgreSQL (or the server of OUTLAST_TEST_DSN)
	$(BIN)/python -m pytest -n 4 --maxschedchunk 1 $(ARGS)

scale: $(INSTALLED) ## Send a million messages to ten thousand entities while processes are killed
	$(BIN)/python -m pytest -q tests/chaos/test_scale.py --scale=full -o log_cli=true -o log_cli_level=INFO $(ARGS)

chaos: $(INSTALLED) ## Do harm to processes, server and network, and check what is left (SEED=7 MINUTES=60)
	$(BIN)/python -m pytest -q tests/chaos/test_chaos.py --chaos-seconds=$$(( $(MINUTES) * 60 )) \
		$(if $(SEED),--chaos-seed=$(SEED)) -o log_cli=true -o log_cli_level=INFO $(ARGS)

backends: $(INSTALLED) ## Terminate all backends every five seconds for ten minutes, and check what is left
	$(BIN)/python -m pytest -q tests/chaos/test_backends.py -k every_backend --scale=full \
		-o log_cli=true -o log_cli_level=INFO $(ARGS)

check: $(INSTALLED) ## Lint, formatting, types and layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy & mypy=$$!; $(BIN)/pyright && wait $$mypy

format: $(INSTALLED) ## Format the code and apply safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## Measure latency, throughput and statements per workflow
	$(BIN)/python -m bench $(ARGS)

bench-peers: $(INSTALLED) ## Measure other engines in turn with ours, after installing them
	$(BIN)/python -m bench.peers $(ARGS)

docs: $(INSTALLED) ## Check the documents' links, snippets, commands and names
	$(BIN)/python -m pytest -q tests/examples/test_documents.py $(ARGS)

lock: ## Write requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
		--all-extras --no-header --upgrade pyproject.toml --output-file requirements.lock

clean: ## Remove the environment, caches and the embedded server's data
	rm -rf .venv .outlast .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "outlast needs Python 3.11 or newer: install it, or run 'make PYTHON=/path/to/python'" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
