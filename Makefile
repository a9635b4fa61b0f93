# Two commands do all the set-up: `make demo` and `make test`. `make test-all` runs the slow tests, too; `make test-ui` drives the page of `serve` in Chromium, which must be there.
#   PYTHON=python3.12 make test     another interpreter
#   TORCH=cpu make demo             on Linux: the small CPU build of PyTorch instead of the CUDA one
#   TORCH=cuda make demo            PyTorch's CUDA build, where the default is another
#   CONSTRAINTS= make test          the newest versions instead of those of constraints.txt, which were taken on Python 3.11

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PYTHON_IN_VENV := $(BIN)/python$(if $(filter Windows_NT,$(OS)),.exe)
TORCH ?=
CONSTRAINTS ?= constraints.txt
TORCH_INDEX_cpu := --extra-index-url https://download.pytorch.org/whl/cpu
TORCH_INDEX_cuda := --extra-index-url https://download.pytorch.org/whl/cu130
ifneq ($(TORCH),)
ifeq ($(TORCH_INDEX_$(TORCH)),)
$(error TORCH=$(TORCH): use cpu or cuda, or leave it out)
endif
endif
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix -c ,$(CONSTRAINTS)) $(TORCH_INDEX_$(TORCH))

# One thread a worker; compiled modules are kept, also where the environment forbids it.
TEST_ENV := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=

.PHONY: demo test test-all test-ui mutants lint format docs bench build clean

demo: $(VENV)/.study  ## everything offline: phantoms, shipped model, report
	$(BIN)/thoraclip demo --out demo-out

test: $(VENV)/.dev  ## what a change needs, in minutes: everything but the tests marked slow
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --dist worksteal --ignore tests/ui -m "not slow"

test-all: $(VENV)/.dev  ## every test, and each property on more examples
	HYPOTHESIS_PROFILE=deep $(TEST_ENV) $(BIN)/python -m pytest -n auto --dist worksteal --ignore tests/ui

test-ui: $(VENV)/.ui-test  ## the page of `serve` in a headless Chromium: Debian's chromium, Chrome, or the one that CHROMIUM names
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --show-capture=no tests/ui

mutants: $(VENV)/.dev  ## how strong the tests are: a sample of changed code, most of an hour; see CONTRIBUTING.md
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.mutants

lint: $(VENV)/.dev  ## formatter, linter, types, floors
	$(BIN)/ruff format --check src tests scripts benchmarks
	$(BIN)/ruff check src tests scripts benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix src tests scripts benchmarks
	$(BIN)/ruff format src tests scripts benchmarks

docs: $(VENV)/.docs  ## the site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/.dev  ## all benchmarks, more than an hour: benchmarks/results.json and the tables of docs/benchmarks.md; nothing else may run
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) demo-out site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(PYTHON_IN_VENV):
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.study: $(PYTHON_IN_VENV) pyproject.toml constraints.txt
	$(PIP) -e '.[study]'
	touch $@

$(VENV)/.dev: $(PYTHON_IN_VENV) pyproject.toml constraints.txt
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps 'trackio>=0.40'
	touch $@ $(VENV)/.study

$(VENV)/.ui-test: $(PYTHON_IN_VENV) pyproject.toml constraints.txt
	$(PIP) -e '.[ui-test]'
	$(PIP) --no-deps 'trackio>=0.40'
	! command -v npm >/dev/null || npm install --silent --prefix $(VENV)/npm onnxruntime-web@1.30.0 || true  # without it, one test is skipped
	touch $@ $(VENV)/.dev $(VENV)/.study

$(VENV)/.docs: $(PYTHON_IN_VENV) pyproject.toml constraints.txt
	$(PIP) -e '.[docs]'
	touch $@ $(VENV)/.study
