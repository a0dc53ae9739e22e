# `make demo` and `make test` do all the set-up by themselves. Variables that can be given on the command line:
#   PYTHON    the interpreter to make .venv from     make setup PYTHON=python3.12
#   EXTRAS    what to install beside the core        make setup EXTRAS=gpu,hub,dev
#   PIP_ARGS  more arguments for pip install         make setup PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
#             (this one takes the small CPU build of torch, where pip would fetch the CUDA one)
#   PYTEST_ARGS                                      make test PYTEST_ARGS="-n 4 tests/store"
#   BENCH     which of infra/bench                   make bench BENCH="long kills" BENCH_ARGS=--json
#   VENV      the environment, .venv                 make bench VENV=.venv-bench EXTRAS=cpu,bench BENCH=avalanche
EXTRAS ?= cpu,dev
PIP_ARGS ?=
PYTEST_ARGS ?= -n auto --maxprocesses 4
BENCH ?= throughput growth long kills reading anchors stream modalities resume
BENCH_ARGS ?=
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
ifneq ($(origin EXTRAS) $(origin PIP_ARGS) $(origin PYTHON),file file file)
.PHONY: $(STAMP)  # what is asked for on the command line is installed, whatever was before
endif

.PHONY: setup demo test lint types bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt infra/setup.sh
	PYTHON="$(PYTHON)" infra/setup.sh $(VENV) $(EXTRAS) $(PIP_ARGS)
	@touch $@

demo: setup
	$(BIN)/palimpsest --lake lake-demo demo

test: setup
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

bench: setup
	@status=0; for one in $(BENCH); do echo "== $$one"; $(BIN)/python -m infra.bench.$$one $(BENCH_ARGS) || status=1; done; exit $$status

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
