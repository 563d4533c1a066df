# Two commands to know: `make quickstart` and `make test`. Both set up .venv from the lock first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test check format wheel clean

quickstart: $(READY)  ## a whole experiment on this machine, in minutes: eight KV-head budgets to a Pareto front
	$(BIN)/mlkv sweep experiment=quickstart

test: $(READY)  ## the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(READY)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	$(BIN)/python -m build --wheel

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv dist build
