# Each target sets up what it needs: uv in a small venv of its own, then the locked environment.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
UV := .uv/bin/uv
BIN := .venv/bin
QUICK := runs/quickstart
export UV_PYTHON_DOWNLOADS = never

# Covered lines are counted, and the longest tests of faults run, in CI alone: `make test CI=1`.
COVERAGE := --cov=dd_tasks --cov=schemas --cov-report=term:skip-covered --cov-fail-under=85
# Of tests: one more than there are cores, as some wait for servers.
PROCESSES ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

# `make stack PUBLISH=ORG/NAME` publishes to the Hub, with HF_TOKEN; else to runs/stack/published.
PUBLISH ?=

.PHONY: setup quickstart stack test check format bench faults clean

setup: .venv/.synced

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

.venv/.synced: $(UV) pyproject.toml uv.lock
	$(UV) sync --quiet --locked --compile-bytecode --python $(PYTHON)
	@touch $@

quickstart: setup $(QUICK)/shards/test/index.json
	$(BIN)/retort run infra/quickstart.yaml --out $(QUICK)/dataset --report $(QUICK)/report.html --store $(QUICK)/store

$(QUICK)/shards/test/index.json: | setup
	$(BIN)/retort shards pack digits --split train --split test --out $(QUICK)/shards --overwrite

stack: setup $(QUICK)/shards/test/index.json
	$(BIN)/python infra/stack.py --spec infra/quickstart.yaml --publish '$(PUBLISH)'

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n $(PROCESSES) --dist loadfile $(if $(CI),$(COVERAGE),-m 'not long')

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_imports.py
	$(BIN)/python infra/audit.py --uv $(UV)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks.cifar10 --data $(DATA)

faults: setup
	$(BIN)/python -m benchmarks.kills
	$(BIN)/python -m benchmarks.fuzz

clean:
	rm -rf .venv .uv runs
