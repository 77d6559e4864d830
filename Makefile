# Every target sets up what it needs in $(VENV); the first run installs, later runs are quick.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
WORKERS ?= 2

bin := $(VENV)/bin
# Test workers share the cores: one torch thread each.
test_environment := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: help demo test lint format types docs integrations clean

help:
	@echo "make demo          race six optimizers on a small language model (about 4 minutes) and write a report"
	@echo "make test          all tests"
	@echo "make lint          ruff: rules and formatting"
	@echo "make types         mypy --strict"
	@echo "make docs          the documentation, warnings as errors, into site/"
	@echo "make integrations  install what the tests inside Lightning, Hugging Face and Flower need"
	@echo "make clean         remove what was built, and the environment"

demo: $(VENV)/.with-race
	$(bin)/hasten race

test: $(VENV)/.with-dev
	$(test_environment) $(bin)/python -m pytest -n $(WORKERS) --dist worksteal -rs

lint: $(VENV)/.with-dev
	$(bin)/ruff check .
	$(bin)/ruff format --check .

format: $(VENV)/.with-dev
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

types: $(VENV)/.with-dev
	$(bin)/mypy

docs: $(VENV)/.with-docs
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict
	@echo "documentation: site/index.html"

integrations: $(VENV)/.with-integrations $(VENV)/.with-federated

$(VENV)/.with-torch:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"hasten needs Python 3.10 or later, $(PYTHON) is {v[0]}.{v[1]}: make PYTHON=python3.x" if v < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet "$(TORCH)"
	@touch $@

$(VENV)/.with-%: pyproject.toml | $(VENV)/.with-torch
	$(bin)/python -m pip install --quiet -e ".[$*]"
	@touch $@

clean:
	rm -rf $(VENV) site dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
