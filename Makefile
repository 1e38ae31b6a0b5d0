# `make` alone prints the list.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test check fix docs clean
help:           ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/ -/' | awk '{ printf "make %s\n", $$0 }'

setup: $(STAMP) ## create .venv with pinned dependencies
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,eval,quantized,dev]'
	@touch $@

demo: $(STAMP)  ## the whole flow on a real 135M model; resumes, and ends in seconds when it is done
	$(BIN)/sst-merge demo

test: check     ## lint, types, layers, generated docs, then every test, the real model's included
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

check: $(STAMP) ## format, lint, types, import layers, generated docs; changes nothing
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

fix: $(STAMP)   ## format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)  ## write the reference pages that are made from the code
	$(BIN)/python docs/generate.py

clean:          ## remove the environment and the runs
	rm -rf $(VENV) runs
