# `make` lists the targets. The first one that needs it creates the environment in $(VENV); a changed pyproject.toml updates it.
# Any variable may be given: `make test PYTEST_ARGS="-k spec -x"`, `make demo RUN=runs/other`, `make VENV=.venv313 PYTHON=python3.13 test`.

VENV ?= .venv
# The first that runs: a version manager may put a `python3.11` on the path that only says that there is none.
PYTHON ?= $(firstword $(foreach python,python3.11 python3 python3.12 python3.13,$(if $(shell \
	$(python) -c 'import sys; print(int((3, 11) <= sys.version_info[:2] <= (3, 13)))' 2>/dev/null | grep 1),$(python))) python3)
RUN ?= runs/digits_mlp
# Most of the time is spent compiling, on one core a process: two workers take half as long as one.
PYTEST_ARGS ?= -n logical --maxprocesses 4 --dist worksteal
PIP_ARGS ?=
TRY ?=
TESTS ?=
# The fast tests compile more than they compute: without LLVM's optimisations they take about half as long, and without XLA's newer fusion
# emitters half of that (as an option of its backend, since jax 0.12 refuses the flag). Of the slow ones those that are marked so do without
# both; the others have them, as users do.
FAST_XLA_FLAGS ?= --xla_backend_optimization_level=0 --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters
SLOW := slow and not gpu and not interop
INTEROP_VENV ?= .venv-interop
DOCS_VENV ?= .venv-docs

PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
INTEROP_INSTALLED := $(INTEROP_VENV)/.installed
DOCS_INSTALLED := $(DOCS_VENV)/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo install test test-slow test-gpu test-interop lint format docs clean

help: ## List the targets
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

demo: $(INSTALLED) ## Meta-train a UNF optimizer on the digits, race it against tuned rivals, draw the curves (RUN=runs/digits_mlp)
	$(PY) scripts/meta_train.py --config configs/digits_mlp.py --run-dir $(RUN)
	$(PY) scripts/evaluate.py --run-dir $(RUN)

install: $(INSTALLED) ## Create or update the environment (VENV=.venv, PYTHON=python3.11)

test: $(INSTALLED) ## Run the fast tests and the examples in docstrings (PYTEST_ARGS="-k spec -x")
	XLA_FLAGS="$(FAST_XLA_FLAGS) $$XLA_FLAGS" $(PY) -m pytest -m "not slow and not gpu and not interop" $(PYTEST_ARGS) $(TESTS)

test-slow: $(INSTALLED) ## Run the slow tests
	status=0; \
	XLA_FLAGS="$(FAST_XLA_FLAGS) $$XLA_FLAGS" $(PY) -m pytest -m "$(SLOW) and compiles" $(PYTEST_ARGS) || [ $$? = 5 ] || status=1; \
	$(PY) -m pytest -m "$(SLOW) and not compiles" $(PYTEST_ARGS) || [ $$? = 5 ] || status=1; \
	exit $$status  # 5: PYTEST_ARGS chose none of these

test-gpu: PYTEST_ARGS = # one process, as there is one accelerator
test-gpu: $(INSTALLED) ## Run the tests that need an accelerator
	JAX_PLATFORMS=cuda,cpu $(PY) -m pytest -m gpu $(PYTEST_ARGS)

test-interop: PYTEST_ARGS = # one process: TensorFlow takes longer to import than the tests to run
test-interop: $(INTEROP_INSTALLED) ## Run the tests with other people's packages, in an environment of their own (INTEROP_VENV=.venv-interop)
	$(INTEROP_VENV)/bin/python -m pytest -m interop tests/interop $(PYTEST_ARGS)

lint: $(INSTALLED) ## Check style, format, types and the import rule
	@status=0; for check in "$(PY) -m ruff check" "$(PY) -m ruff format --check" "$(PY) -m pyright --pythonpath $(PY)" \
		"$(PY) $(VENV)/bin/lint-imports --no-logo"; do echo "$$check"; $$check || status=1; done; exit $$status

format: $(INSTALLED) ## Format the code and fix what ruff can fix
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

docs: $(DOCS_INSTALLED) ## Build the documentation into site/, in an environment of its own (DOCS_VENV=.venv-docs)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/python -m mkdocs --quiet build --strict

clean: ## Remove caches and builds; environments and runs stay
	rm -rf dist build site .pytest_cache .ruff_cache .import_linter_cache
	find . -path ./runs -prune -o -path './.venv*' -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The file is written last: an interrupted installation is done again.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= ($(if $(TRY),(3, 99),(3, 13))))' 2>/dev/null || { \
		echo "make: lopt needs Python 3.11, 3.12 or 3.13, but PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1 | head -n 1);" \
			"name another one, as in 'make PYTHON=/path/to/python3.11 ...'." \
			"A newer Python is tried, without a promise, by 'make TRY=1 PYTHON=python3.14 VENV=.venv-next ...'" >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
		echo "make: '$(PYTHON) -m venv' failed; Debian and Ubuntu keep it in the package python3-venv" >&2; exit 1; }
	@echo "Installing lopt into $(VENV); the first time takes a few minutes"
	@$(PY) -m pip install --quiet --disable-pip-version-check $(if $(TRY),--ignore-requires-python) $(PIP_ARGS) -e '.[dev]'
	@touch $@

# What learned-optimization 0.0.1 asks for cannot be installed, so it goes in without.
$(INTEROP_INSTALLED): pyproject.toml | $(INSTALLED)
	@test -x $(INTEROP_VENV)/bin/pip || $(PY) -m venv $(INTEROP_VENV)
	@echo "Installing lopt with other people's packages into $(INTEROP_VENV): 3 GB"
	@$(INTEROP_VENV)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[interop,tasks]' pytest
	@$(INTEROP_VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps learned-optimization==0.0.1
	@touch $@

# The pages are made of the sources' text: nothing of lopt is imported, and JAX is not needed.
$(DOCS_INSTALLED): docs/requirements.txt | $(INSTALLED)
	@test -x $(DOCS_VENV)/bin/pip || $(PY) -m venv $(DOCS_VENV)
	@$(DOCS_VENV)/bin/pip install --quiet --disable-pip-version-check $(PIP_ARGS) -r $<
	@touch $@
