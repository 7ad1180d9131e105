# `make demo` and `make test` create .venv and install what they need; both are fast the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help install demo miniature test lint test-reproduce test-vllm test-studio bench clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 15) else f"starec needs Python 3.11 to 3.14, got {sys.version.split()[0]}: run `make PYTHON=python3.12 ...`")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,serve]'
	@touch $@

# torch and TRL are large, and only the tests need them all: `make demo` does without.
$(VENV)/.installed-train: pyproject.toml constraints-cpu.txt | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,baselines,examples]' -c constraints-cpu.txt
	@touch $@

install: $(VENV)/.installed  ## create .venv and install starec into it

demo: install  ## serve a small model, run a population of user agents, print its table and a story
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
	$(BIN)/pytest -m 'not vllm and not studio and not crosscheck and not reproduce'

test-reproduce: $(VENV)/.installed-train  ## every table and figure of the paper at the tiny scale, from the split to the numbers
	$(BIN)/pytest -m reproduce tests/test_reproduce.py

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

clean:  ## remove what the targets above made
	rm -rf $(VENV) .venv-vllm .venv-studio dist build .mypy_cache .ruff_cache .pytest_cache
