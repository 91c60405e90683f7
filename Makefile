# Two commands do all the set-up: `make demo` and `make test`. Each makes .venv where it is missing.
#
#   make demo                  four hospitals, one model; results in runs/
#   make test                  the tests (WARDROUND_DATA=FOLDER adds those on the larger real sets)
#   make test-slow             the tests that take minutes
#   make check                 format, lint, types, import contracts
#   make format                reformat, and fix what ruff can fix
#   make protos                Python anew from the .proto files of the control services
#   make clean                 remove what was built; runs/ stays
#
# PYTHON=python3.12            the interpreter that .venv is made from (3.11 or newer)
# SYSTEM_TORCH=1               reuse the torch that PYTHON already has, whatever its version
# PYTEST_ARGS='-k ring'        more arguments for pytest
#
# pip's own settings decide where packages come from: PIP_INDEX_URL, PIP_EXTRA_INDEX_URL,
# PIP_FIND_LINKS, PIP_NO_INDEX and pip.conf all work.

SHELL := /bin/sh
PYTHON ?= python3
SYSTEM_TORCH ?=
PYTEST_ARGS ?=
BIN := .venv/bin
CODE := src core privacy strategies runtime training client server simulations conf tests benchmarks

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow check format protos clean

help:
	@sed -n 's/^#   \(make .*\)/\1/p' Makefile

demo: .venv/installed-demo
	$(BIN)/wardround demo

# One thread a worker: two workers share the machine, and the sums stay bit for bit the same. A file goes to
# one worker as a whole, so that what its tests share is made once; the long ones come first.
test: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow' $(PYTEST_ARGS)

test-slow: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m slow $(PYTEST_ARGS)

check: .venv/installed-dev
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/support/control_protos.py --check

format: .venv/installed-dev
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

protos: .venv/installed-dev
	$(BIN)/python tests/support/control_protos.py

clean:
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Under SYSTEM_TORCH the pin on torch goes; every other pin stays.
.venv/constraints.txt: constraints.txt | $(BIN)/python
	sed '$(if $(SYSTEM_TORCH),/^torch==/d)' constraints.txt > $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Wardround needs Python 3.11 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) .venv
	@if [ -n '$(SYSTEM_TORCH)' ] && ! $(BIN)/python -c 'import torch'; then \
	  echo 'SYSTEM_TORCH is set, but $(PYTHON) itself has no torch' >&2; rm -rf .venv; exit 1; fi

# The stamps are apart, so that a demo after the tests installs nothing, and tests after a demo add
# only what is missing.
.venv/installed-demo: pyproject.toml .venv/constraints.txt
	$(BIN)/python -m pip install -c .venv/constraints.txt -e '.[demo]'
	touch $@

.venv/installed-dev: pyproject.toml .venv/constraints.txt
	$(BIN)/python -m pip install -c .venv/constraints.txt -e '.[dev]'
	touch .venv/installed-demo $@
