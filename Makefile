# Two commands to know: `make quickstart` and `make test`. Both set up .venv from the lock first.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: quickstart test test-long test-engines test-oldest bench check docs format schema wheel slurm-up slurm-down clean

quickstart: $(READY)  ## a whole experiment on this machine, in minutes: eight KV-head budgets to a Pareto front
	$(BIN)/mlkv sweep experiment=quickstart

test: $(READY)  ## the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test-long: $(READY)  ## what takes minutes: every experiment's twin, overlapping faults, real time limits, full disks; on a SLURM of its own, as root
	MLKV_REQUIRE_SLURM=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m long -n 2 --dist loadfile --no-loadscope-reorder

test-engines: $(READY)  ## exports served by vLLM, llama.cpp and OpenVINO: makes their environments, gigabytes, which takes about 20 minutes
	MLKV_ENGINES=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/engines -m long -rs

test-oldest: $(READY)  ## the model and its training on the oldest transformers that is supported
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --requirement requirements.lock
	.venv-oldest/bin/python -m pip install --quiet transformers==5.17.0
	.venv-oldest/bin/python -m pytest tests/mlkv

bench: $(READY)  ## every benchmark that this machine can run, beside what users would pick instead, and the table of docs/performance.md
	$(BIN)/python -m benchmarks --run --table

check: $(READY)  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## the documentation as a site, in dist/docs; warnings are errors
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs dist/docs

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

schema: $(READY)  ## conf/schema.json, by which editors check YAML files, from the typed schema
	$(BIN)/python -m sweeps.planning.json_schema

wheel: $(READY)
	$(BIN)/python -m build --wheel

slurm-up: $(READY)  ## a real SLURM on this machine, to try things on (docs/slurm.md)
	$(BIN)/python -m slurm.local_cluster up

slurm-down: $(READY)
	$(BIN)/python -m slurm.local_cluster down

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .venv-oldest dist build
