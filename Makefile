# make book    executes every chapter that changed and builds the site
# make test    runs all tests
# Both set up .venv first, with nothing but Python 3.11 or newer.  PYTHON= and VENV= choose others.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.smoothsal-installed

.PHONY: book html test lint bench clean
.DEFAULT_GOAL := book

book: $(STAMP)
	@$(BIN)/python book/build.py book

html: $(STAMP)
	@$(BIN)/python book/build.py html

test: $(STAMP)
	$(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/explain.py

clean:
	rm -rf _build book/status.md .pytest_cache .ruff_cache .mypy_cache dist

$(STAMP): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}; try: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV): torch is large, so the first time takes a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.txt --editable '.[book,test,dev]'
	@touch $@
