SHELL := /bin/bash
.DELETE_ON_ERROR:
PYTHON := .venv/bin/python
PYTEST := PYTHONPATH=shim:. $(PYTHON) -m pytest
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help setup demo test lint unit root-tests node-tests bench deb nodes nodes-clean clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile

setup: ## install what this machine lacks, make .venv
	@tests/setup

demo: setup deb nodes ## move a container between two nodes, with us and without; writes build/demo.json
	@PYTHONPATH=shim:. $(PYTHON) -m tests.demo

test: setup ## everything that has to pass: lint, unit, root-tests, node-tests
	@tests/timed lint unit root-tests node-tests

lint: setup ## ruff, mypy --strict, syntax of the shell and perl files
	@.venv/bin/ruff check .
	@.venv/bin/mypy shim tests $(wildcard bench)
	@git ls-files -z | xargs -0 -r tests/lint-scripts

unit: setup ## tests that need no root
	@$(PYTEST) tests/unit

root-tests: setup ## tests that need root, but no node
	@$(PYTEST) tests/root

node-tests: setup deb nodes ## tests on two real nodes
	@$(PYTEST) tests/nodes || { \
	  echo "=== node-tests: what failed is tried once more, in nodes brought up anew: a machine can be too busy for two nodes"; \
	  $(PYTEST) --last-failed --last-failed-no-failures none tests/nodes; }

bench: setup deb nodes ## what we cost; prints figures
	@PYTHONPATH=shim:. $(PYTHON) -m bench

# Debian's tools stamp and copy the whole source tree, so build only when a file of the package is newer.
DEB_SOURCES := $(wildcard $(shell git ls-files -c -o --exclude-standard -- \
	shim hooks packaging docs setup.cfg pyproject.toml README.md LICENSE CHANGELOG.md))

deb: build/deb.stamp ## build build/grit-runtime_*.deb

build/deb.stamp: $(DEB_SOURCES) | setup
	@mkdir -p build
	@exec 9>build/.lock; flock 9; rm -f build/grit-runtime_*.deb; packaging/build-deb >build/deb.log 2>&1 </dev/null || { tail -n 60 build/deb.log; exit 1; }
	@ls build/grit-runtime_*.deb
	@touch $@

nodes: setup ## build the two nodes of the testbed (cached in .nodes)
	@PYTHONPATH=shim:. $(PYTHON) -m tests.testbed build

nodes-clean: ## remove the nodes and everything that a testbed of this checkout left behind
	@PYTHONPATH=shim:. /usr/bin/python3 -m tests.testbed clean

clean: nodes-clean ## remove everything that was built, .venv too
	@rm -rf build .venv .setup.lock .mypy_cache .ruff_cache .pytest_cache
