# `make demo` and `make test` do all set-up in .venv; PYTHON=python3.12 picks another interpreter.
VENV := .venv
ifeq ($(OS),Windows_NT)
# with the make and the shell of Git for Windows or MSYS2
PYTHON ?= python
BIN := $(VENV)/Scripts
else
PYTHON ?= python3
BIN := $(VENV)/bin
endif
BASELINES := setup_04_all unet8_all unet32_all unet128_all resenc8_all

.PHONY: demo test check format docs splits lock clean

demo: $(VENV)/installed
	$(BIN)/python -m cellmap_segmentation_challenge demo

test: check
	$(BIN)/python -m pytest -n auto --dist worksteal

# layout, lint and types
check: $(VENV)/developed
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy

format: $(VENV)/developed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# the pages of docs/, into site/
docs: $(VENV)/developed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# the datasplits of the experiments, by the command in the first line of each
splits: $(VENV)/installed
	for split in $(BASELINES:=/datasplit.csv) $(BASELINES:=/datasplit_partial.csv); do \
		$(BIN)/$$(head -n 1 $$split | cut -c 3-) --overwrite || exit 1; done

# exact versions for every system, from the lower bounds in pyproject.toml
lock: $(VENV)/developed
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --extra viewer --extra mlflow \
		--extra parquet --no-annotate --no-emit-index-url --custom-compile-command "make lock" \
		--output-file requirements.lock pyproject.toml

# what running it takes
$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

# and what working on it takes
$(VENV)/developed: $(VENV)/installed requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) demo cache site tensorboards
