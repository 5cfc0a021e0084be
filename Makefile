# Barter's two commands are `make demo` and `make test`; `make help` lists the rest.
# Needed: Python >= 3.11 with venv, git and make. Everything else goes into .venv.

VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed
# `python3.12` may be a shim that fails, so each candidate is run before it is believed.
PYTHON  ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
LOCK    := requirements.lock
# `make test PYTEST="-k simplex"` hands that to pytest; DATABASE_URL reaches it by itself.
PYTEST  ?=
# `make bench-policies ARGS="--tasks digits"` hands that to the suite; its `--help` teaches.
ARGS    ?=

# Compiled modules are kept, whatever the caller's shell says: a server is five processes, and
# each would compile all that it imports, at every start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: bench-policies bench-serving chaos help install demo study serve test suite check lint format upgrade chromium clean
.DELETE_ON_ERROR:

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort \
	| awk -F '\t' '{ printf "  make %-14s %s\n", $$1, $$2 }'

install: $(STAMP)  ## Build the environment in .venv from the lock

# uv is in the lock like everything else: pip puts it there, and uv is then some ten times as
# fast as pip at the rest. It does not read pip's configuration, so where only that names an
# index, pip does it all.
$(STAMP): pyproject.toml $(LOCK)
	@test -n "$(PYTHON)" || { echo "Barter needs Python 3.11, 3.12 or 3.13; none was found."; exit 1; }
	@echo "Building $(VENV) with $$($(PYTHON) --version)"
	test -x $(BIN)/python && $(BIN)/python -c 'import pip' || $(PYTHON) -m venv --clear $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' $(LOCK) > $(VENV)/uv.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock
	$(BIN)/uv pip sync --quiet --no-config --system-certs --python $(BIN)/python --require-hashes $(LOCK) \
	|| $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	$(BIN)/uv pip install --quiet --no-config --python $(BIN)/python --offline --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)  ## Show the whole loop on real retail data; Ctrl-C ends it
	$(BIN)/barter demo

bench-serving: $(STAMP)  ## Time a durable decision beside an empty Flask view
	$(BIN)/python -m tests.bench.serving

chaos: $(STAMP)  ## Every fault that a host must live through (8 min; service/README.md lists them)
	$(BIN)/python -m pytest -m "crash or chaos" -p no:cacheprovider $(PYTEST)

bench-policies: $(STAMP)  ## Policies beside their peers (hours, resumes; ARGS="--quick" takes a minute)
	$(BIN)/python -m tests.bench.policies $(ARGS)

study: $(STAMP)  ## The demo's campaign over 20 seeds through the real server (20 min)
	$(BIN)/python -m service.demo.study --output tests/bench/demo_study.md

serve: $(STAMP)  ## Start the service with its own PostgreSQL, or with DATABASE_URL
	$(BIN)/barter serve

# Types take a core two minutes, in which the tests may have begun. A file of tests stays in one of
# two processes, each with a PostgreSQL of its own. They go in the order of their names: by the
# number of tests, which is pytest-xdist's own, the longest come last, and one process waits.
test: $(STAMP) chromium  ## Check and run all tests (DATABASE_URL=... tests on that server)
	@$(MAKE) --no-print-directory -j2 check suite

# What JAX has compiled once, in whatever process, is not compiled again.
suite: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.jax_cache
suite: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
suite: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := -1
suite: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: lint  ## Lint, formatting, types and layers
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP)  ## Format the code and apply safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

upgrade: $(STAMP)  ## Move the lock to the newest releases that pyproject.toml allows
	$(BIN)/uv pip compile --quiet --no-config --upgrade --universal --python-version 3.11 \
	--fork-strategy fewest --generate-hashes --no-annotate --no-header \
	--no-emit-index-url --no-emit-find-links --extra dev pyproject.toml -o $(LOCK)

# Browser tests drive the system's Chromium. Root on Debian can have it installed here; anyone
# else is told what to install, and those tests say so where it is missing.
chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Chromium for the browser tests"; \
		apt-get -qq update && DEBIAN_FRONTEND=noninteractive \
		apt-get -qq install --no-install-recommends -y chromium >/dev/null; \
	else echo "Chromium is missing: the browser tests need it (Debian: apt-get install chromium)"; fi

clean:  ## Remove the environment and all caches (data folders stay)
	rm -rf $(VENV) .jax_cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
