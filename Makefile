# `make train` and `make test` are all a newcomer needs: both set up .venv by themselves.
PYTHON ?= python3
PRESET ?= tiny
RUN ?= runs/$(PRESET)
SEED ?= 0

VENV := .venv
BIN := $(VENV)/bin

.PHONY: install train test test-containers lint
install: .venv.stamp

.venv.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

train: install
	$(BIN)/agentprm train --preset $(PRESET) --run $(RUN) --seed $(SEED) $(if $(GAMES),--games $(GAMES))

# Two processes, a file of tests each: most of the time goes by in waiting for services.
test: install
	$(BIN)/python -m pytest -m "not containers" -n 2 --dist loadfile

# Needs a Docker engine; builds the images first.
test-containers: install
	$(BIN)/python -m pytest -m containers

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
