# Every target sets up what it needs on a fresh machine and then runs; nothing else has to be done first.
#
#   make demo        simulated cells, training, prediction, network, tables and figures in demo_output/
#   make test        the default tests (`make test PYTEST_ARGS="-m ''"` adds the slow ones)
#   make test-celloracle  the bridge to CellOracle, in an environment of its own (needs uv)
#   make lint        ruff and mypy
#   make docs        the documentation, warnings are errors (docs/_build/html/index.html)
#   make linkcheck   the same, then its internal links
#   make gallery     draws the pictures of the gallery, the start page and the README anew (minutes)
#   make bench       the benchmarks (`make bench BENCH=speed`, `BENCH_ARGS=--small`)
#   make notebooks   runs every notebook
#   make clean       removes what the targets above wrote, but not the environment
#
# Variables: PYTHON (3.11 or newer), VENV (folder of the environment), CONSTRAINTS (empty: newest versions), JOBS.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints/py311.txt
TORCH ?= torch==2.13.0
JOBS ?= 2
OUT ?= demo_output
BENCH ?=
BENCH_ARGS ?=
PYTEST_ARGS ?=
UV ?= uv
CELLORACLE_VENV ?= .venv-celloracle

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install $(if $(CONSTRAINTS),-c $(CONSTRAINTS) $(TORCH))
BENCH_SCRIPTS := $(sort $(wildcard $(if $(BENCH),benchmarks/bench_$(BENCH).py,benchmarks/bench_*.py)))
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

.PHONY: help demo test test-celloracle lint docs linkcheck gallery bench notebooks clean
.DEFAULT_GOAL := help

help:
	@sed -n '3,14s/^# \{0,1\}//p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed. Name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps are older than pyproject.toml or the constraints when the environment has to be brought up to date.
# torch stands in the same command as the package, so that one build of it is taken, once.
$(VENV)/.sccausal-dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP_INSTALL) -e ".[dev]"
	@touch $@

$(VENV)/.sccausal-docs: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP_INSTALL) -e ".[dev,docs]"
	@touch $@ $(VENV)/.sccausal-dev

demo: $(VENV)/.sccausal-dev
	$(BIN)/sccausal demo --out $(OUT)

# one thread in each worker: two workers with two threads each are slower than one
test: $(VENV)/.sccausal-dev
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(PYTEST_ARGS)

# CellOracle pins packages that are years old: it has an environment of its own, made as the user guide says
$(CELLORACLE_VENV)/.sccausal-celloracle: pyproject.toml constraints/celloracle-py311.txt constraints/celloracle-overrides.txt
	@command -v $(UV) >/dev/null || { echo "uv is needed: https://docs.astral.sh/uv/" >&2; exit 1; }
	$(UV) venv --allow-existing --python 3.11 $(CELLORACLE_VENV)
	$(UV) pip install --python $(CELLORACLE_VENV)/bin/python --config-file constraints/uv-celloracle.toml \
		--override constraints/celloracle-overrides.txt -c constraints/celloracle-py311.txt \
		$(TORCH) celloracle==0.20.0 pytest hypothesis -e .
	@touch $@

test-celloracle: $(CELLORACLE_VENV)/.sccausal-celloracle
	OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=1 MPLBACKEND=Agg PYTHONHASHSEED=0 $(CELLORACLE_VENV)/bin/python -m pytest tests/grn/test_celloracle.py

lint: $(VENV)/.sccausal-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.sccausal-docs
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

linkcheck: docs
	$(BIN)/python docs/check_links.py docs/_build/html

gallery: $(VENV)/.sccausal-docs
	$(BIN)/python docs/make_gallery.py
	$(BIN)/python docs/make_pictures.py

bench: $(VENV)/.sccausal-dev
	@test -n "$(BENCH_SCRIPTS)" || { echo "no benchmark of that name: $(BENCH)" >&2; exit 1; }
	@set -e; for script in $(BENCH_SCRIPTS); do \
		echo "== $$script"; MPLBACKEND=Agg $(BIN)/python $$script $(BENCH_ARGS); done

notebooks: $(VENV)/.sccausal-docs
	@if test -z "$(NOTEBOOKS)"; then echo "there are no notebooks yet"; else \
		MPLBACKEND=Agg $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 $(NOTEBOOKS); fi

clean:
	rm -rf build dist htmlcov $(OUT) .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf docs/_build docs/api/generated docs/notebooks/*.ipynb docs/notebooks/_* docs/jupyter_execute lightning_logs scvi_log
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +
