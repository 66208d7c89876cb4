# One virtual environment, made once and again whenever pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test bench clean

demo: $(VENV)/demo.done
	$(BIN)/harness check suites/examples/pocket-w4-g32.yaml

test: $(VENV)/test.done
	$(BIN)/ruff check harness tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.done: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/test.done: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@ $(VENV)/demo.done

bench: $(VENV)/test.done
	$(BIN)/python tests/bench/shared_pass.py

clean:
	rm -rf $(VENV) runs build dist
