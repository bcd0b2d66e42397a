# Two commands do everything on a fresh machine: `make quickstart` and `make test`.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart serve find-alpha find-alpha-whole robustness test test-core test-browser test-all check docs format benchmark clean

quickstart: .venv/ready
	$(BIN)/dgg-ray run studies/quickstart.yaml

# The page with all studies; the quickstart is its first template.
serve: .venv/ready
	$(BIN)/dgg-ray serve

robustness: .venv/ready
	$(BIN)/dgg-ray run studies/order_robustness.yaml

find-alpha: .venv/ready
	$(BIN)/dgg-ray run studies/find_alpha.yaml

find-alpha-whole: .venv/ready
	$(BIN)/dgg-ray run studies/find_alpha_whole.yaml

# pytest compiles its assertions once, not in every run, also where the environment forbids Python to keep bytecode.
test test-core test-browser test-all: export PYTHONDONTWRITEBYTECODE :=

# Two processes: whole files go to one of them, since tests of a file share what they have run.
test: .venv/ready
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow and not browser and not gpu"

# To run after each edit: no Ray, whole studies, processes of their own or simulations of thousands of studies;
# properties are checked on fewer examples. Two processes are enough for two cores: each has one thread.
test-core: export DGG_RAY_EXAMPLES := 20
test-core: export OMP_NUM_THREADS := 1
test-core: .venv/ready
	$(BIN)/pytest -n 2 --dist loadfile -m "not ray and not whole and not statistics and not slow and not browser and not gpu"

# The pages in a real browser: Debian's package chromium, or another Chromium at /usr/bin/chromium.
test-browser: .venv/ready
	$(BIN)/pytest -m browser

test-all: .venv/ready
	$(BIN)/pytest

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright

# Strict: a link that leads nowhere fails.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmark: .venv/ready
	$(BIN)/python benchmarks/quickstart.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/schedule.py

# torch comes first and alone, at its pinned version: a looser demand from another package may bring
# gigabytes of CUDA libraries that this set is not tested with.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,caption,deepspeed,s3,mlflow]"
	touch $@

clean:
	rm -rf .venv out
