# Two commands for a fresh machine: `make demo` runs the main job, `make test` passes the tests. Both set up .venv first.
PYTHON ?= python3
# Installed first, and only where .venv has no torch yet; a machine without a GPU may name a CPU build here.
TORCH ?= torch==2.13.0
JOBS ?= auto
BIN := .venv/bin
DEMO := build/demo

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test lint setup

demo: setup
	$(BIN)/tilewright build examples/demo_model $(DEMO) --dtype float32 --max-batch-size 8 --max-input-len 128 --max-output-len 120
	$(BIN)/tilewright run $(DEMO) "Once upon a time" --max-tokens 100 --temperature 0.7 --top-p 0.9 --seed 7
	@echo
	@echo "What to look at:  $(BIN)/tilewright show $(DEMO)              the optimized graph, equal layers folded"
	@echo "                  $(BIN)/tilewright show $(DEMO) 00-import    the graph as it was traced"
	@echo "                  $(DEMO)/inspect/passes/                       every pass: text before and after, and its events"
	@echo "                  $(DEMO)/kernels/                              the generated kernels, with the modules they come from"

test: setup
	$(BIN)/pytest -n $(JOBS) --dist loadgroup

lint: setup
	$(BIN)/ruff check .
	$(BIN)/python .ci/check_arrows.py
	$(BIN)/python .ci/link_rooms.py && $(BIN)/pyright

setup: .venv/ready

.venv/ready: pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or later is needed: make PYTHON=python3.12")'
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/pip install --quiet '$(TORCH)'
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@
