# Everything runs in .venv, which the first target that needs it sets up (Python >= 3.10, about 6 GB).
PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test lint format clean

help:
	@echo 'make demo     the whole way on synthetic phantoms (DEMO_ARGS="-device cuda" for a GPU); results in demo/report'
	@echo 'make test     lint, types and all tests (PYTEST_ARGS=-x, for instance, goes to pytest)'
	@echo 'make lint     ruff and mypy only'
	@echo 'make format   let ruff rewrite the code'
	@echo 'make clean    remove the demo, build products and caches; keeps $(VENV)'

demo: $(INSTALLED)
	$(BIN)/nnunetv2_ext demo --output demo --overwrite $(DEMO_ARGS)

# Two test processes, each with one thread (tests/conftest.py): more would only wait for one another.
test: lint
	$(BIN)/python -m pytest -rs -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "got Python %d.%d; expected 3.10 or newer; run make PYTHON=python3.11, for instance." % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev,monai,report,cluster]'
	touch $@
