# `make demo` and `make test` create .venv and install what they need; both are fast the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help install demo miniature test lint docs dist test-reproduce test-vllm test-studio test-notebooks test-adapters test-resolve clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 15) else f"starec needs Python 3.11 to 3.14, got {sys.version.split()[0]}: run `make PYTHON=python3.12 ...`")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,serve]' -c constraints.txt
	@touch $@

# The first look is quick: what only developers need comes with `make install`.
$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[serve,report]' -c constraints.txt
	@touch $@

# torch and TRL are large, and only the tests need them all.
$(VENV)/.installed-train: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,baselines,examples]' -c constraints.txt
	@touch $@

install: $(VENV)/.installed  ## create .venv and install starec into it

demo: $(VENV)/.installed-demo  ## serve a small model, run a population of user agents, print its table and one turn
	$(BIN)/python -m starec_env.cli demo

# The allocator keeps large tensors: a third of a step on a CPU was page faults of memory handed back and taken again.
miniature: export MALLOC_MMAP_THRESHOLD_ = 4000000000
miniature: export MALLOC_TRIM_THRESHOLD_ = 16000000000
miniature: $(VENV)/.installed-train  ## SFT, then GRPO or more SFT, of a small model on two cores, and their table (20 minutes)
	for seed in 0 1; do $(BIN)/python examples/nano/miniature.py --seed $$seed & done; wait
	$(BIN)/python examples/nano/miniature.py --table

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint $(VENV)/.installed-train  ## ruff, mypy and the test suite
	$(BIN)/pytest -m 'not vllm and not studio and not crosscheck and not adapters and not reproduce'

test-reproduce: $(VENV)/.installed-train  ## every table and figure of the paper at the tiny scale, from the split to the numbers; sharded models
	$(BIN)/pytest -m reproduce tests/test_reproduce.py tests/starec_training/test_sharded.py

.venv-docs/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -e '.[docs]' -c constraints.txt
	@touch $@

docs: .venv-docs/.installed  ## the site of all pages, into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --quiet --strict

dist: install .venv-docs/.installed  ## wheel and sdist, into dist/, checked as a package index checks them; the Dockerfile linted
	rm -rf dist
	$(BIN)/python -m hatchling build
	.venv-docs/bin/twine check --strict dist/*
	if [ -x .venv-docs/bin/hadolint ]; then .venv-docs/bin/hadolint Dockerfile; fi

.venv-notebooks/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PYTHON) -m venv .venv-notebooks
	.venv-notebooks/bin/python -m pip install --quiet --disable-pip-version-check -e '.[serve,report,notebooks]' -c constraints.txt
	@touch $@

test-notebooks: .venv-notebooks/.installed  ## execute examples/notebooks, each from a fresh kernel (3 minutes)
	for notebook in examples/notebooks/*.ipynb; do .venv-notebooks/bin/jupyter execute --timeout=300 $$notebook || exit 1; done

.venv-vllm/.installed: tests/real_vllm/install.py | $(BIN)/python
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/python tests/real_vllm/install.py
	@touch $@

test-vllm: install .venv-vllm/.installed  ## drive a real vLLM (its CPU build: 2.6 GB, minutes to install)
	$(BIN)/pytest -m vllm tests/real_vllm

.venv-studio/.installed: pyproject.toml | $(BIN)/python
	$(PYTHON) -m venv .venv-studio
	.venv-studio/bin/python -m pip install --quiet --disable-pip-version-check -e . 'langgraph-cli[inmem]>=0.4,<1'
	@touch $@

test-studio: install .venv-studio/.installed  ## drive `langgraph dev`: the schemas, a turn and a thread on its in-memory server
	$(BIN)/pytest -m studio tests/langgraph_dev

# verifiers and inspect_ai want different openai packages, hence two environments. starec itself is installed as a user
# does, from a wheel, each time: inspect_ai finds tasks of installed packages alone.
ADAPTERS := 'openenv-core>=0.3,<0.5' 'inspect-ai>=0.3.285,<0.4' 'openai>=3.4' duckdb polars pandas datasets
TRACERS := opentelemetry-sdk openinference-instrumentation-langchain opentelemetry-instrumentation-langchain 'mlflow>=3,<4'
.venv-adapters/.installed .venv-verifiers/.installed: pyproject.toml | $(BIN)/python
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check . 'pytest>=9,<10' 'pytest-asyncio>=1.2' \
	    $(if $(findstring verifiers,$@),'verifiers>=0.4$(,)<0.5',$(ADAPTERS) $(TRACERS))
	@touch $@

, := ,
test-adapters: $(VENV)/.installed-train .venv-adapters/.installed .venv-verifiers/.installed  ## drive verifiers, OpenEnv, inspect_ai, TRL, tracers and table readers
	for venv in .venv-adapters .venv-verifiers; do \
	    $$venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall . || exit; done
	.venv-adapters/bin/pytest -m adapters tests/adapters
	.venv-verifiers/bin/pytest -m adapters tests/adapters/test_verifiers.py
	$(BIN)/pytest -m adapters tests/adapters/test_trl.py

test-resolve: install  ## resolve every extra on Python 3.11 to 3.14 with uv; nothing is installed
	$(BIN)/python tests/resolve/check.py

clean:  ## remove what the targets above made
	rm -rf $(VENV) .venv-docs .venv-notebooks .venv-vllm .venv-studio .venv-adapters .venv-verifiers site dist build \
	    .mypy_cache .ruff_cache .pytest_cache
