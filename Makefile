# Everything runs from .venv, which each target makes when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SCENE ?=
# Idle OpenMP threads sleep instead of spinning: without it a second busy process makes torch ten times slower.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: setup test lint types bench demo clean
.DEFAULT_GOAL := test

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@echo "== set-up: Python environment in $(VENV) (first time: a minute or two, about 6 GB)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints requirements.lock --editable ".[dev]"
	@touch $@

lint: setup
	@echo "== lint: ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup
	@echo "== types: mypy"
	@$(BIN)/mypy

test: lint types
	@echo "== tests: pytest, one process per core (four at most)"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

bench: setup
	@echo "== benchmarks: renderer against a matrix product in the same process, levels of detail, data, training (half an hour, 16 GB)"
	@$(BIN)/python benchmarks/render.py
	@$(BIN)/python benchmarks/lod.py
	@$(BIN)/python benchmarks/data.py
	@$(BIN)/python benchmarks/train.py

demo: setup
	@echo "== demo: shards, training, evaluation, zoom, report (about ten minutes on two cores)"
	@$(BIN)/sr3d demo --output outputs/demo $(if $(SCENE),--scene "$(SCENE)")

clean:
	rm -rf outputs
