# Everything runs in .venv, which is made on first use and again when pyproject.toml changes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow fuzz bench methods training-figures matrix zoo mutants clean

demo: .venv/installed
	@mkdir -p runs
	@test -f runs/pocket-w4-g128.yaml || $(BIN)/harness init runs/pocket-w4-g128.yaml
	@# Any verdict is a good demo: exit code 1 (must not ship) and 3 (undecided) too, but not 2 (could not be judged).
	@$(BIN)/harness check runs/pocket-w4-g128.yaml || [ $$? -ne 2 ]

test: .venv/installed-for-tests
	$(BIN)/ruff check harness tests
	$(BIN)/ruff format --check harness tests
	$(BIN)/mypy
	$(BIN)/lint-imports
	@# Whole files, so that what the tests of one share is made once.
	$(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: .venv/installed-for-tests
	$(BIN)/pytest -m slow

# Examples of each fuzzer, drawn anew on every run; about an hour on one core.
FUZZ_EXAMPLES ?= 2000
fuzz: .venv/installed-for-tests
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/pytest tests/fuzz

bench: .venv/installed-for-tests
	$(BIN)/python tests/bench/shared_pass.py
	$(BIN)/python tests/bench/tasks.py
	$(BIN)/python tests/bench/making.py
	$(BIN)/python tests/bench/quantizers.py

methods: .venv/installed-for-tests
	$(BIN)/python tests/bench/methods.py --out .github/METHODS.md

training-figures: .venv/installed-for-tests
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/training.py --out .github/TRAINING.md --folder runs/training
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/distillation.py --out .github/TRAINING.md
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/qlora.py --page .github/TRAINING.md

matrix: .venv/installed-for-tests
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/matrix.py --out .github/MATRIX.md

zoo: .venv/installed-for-tests
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/zoo.py --out .github/ARCHITECTURES.md

mutants: .venv/installed-for-tests
	$(BIN)/pip install --quiet --editable '.[mutation]'
	$(BIN)/python tests/bench/mutants.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/installed-for-tests: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable '.[test,compare]'
	@touch $@ .venv/installed

clean:
	rm -rf .venv runs build dist
