# Two commands: `make train` and `make test`. Both set up .venv first, from nothing but Python 3.11.

PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: train evaluate tune test test-slow test-faults test-cluster test-sweeps check help

help:
	@echo "make train      train a small TAEHV on synthetic driving video, on this machine"
	@echo "make evaluate   judge the newest run in runs/: scores, report, verdict"
	@echo "make tune       a sweep of two short trials, from end to end"
	@echo "make test       checks and tests"
	@echo "make test-slow  the minutes-long suite: 'make train' itself, and its figures"
	@echo "make test-faults  kills, full disks, stores that hang: the half-hour suite"
	@echo "make test-cluster  cluster.yaml, brought up in a pretended cloud: as root, on Linux"
	@echo "make test-sweeps  sweeps that are killed, starved, or have something to find"
	@echo "make check      lint, format, types, and the walls between the rooms"

train: .venv/runs
	$(BIN)/python jobs/train.py --config configs/small.yaml

evaluate: .venv/runs
	@weights=$$(ls -t runs/*/final_model.safetensors 2>/dev/null | head -n 1); \
	test -n "$$weights" || { echo "no finished run in runs/: 'make train' makes one"; exit 1; }; \
	$(BIN)/python jobs/evaluate.py --checkpoint "$$weights" --overwrite

tune: .venv/runs
	$(BIN)/python jobs/tune.py tune_configs/smoke.yaml

test: check
	$(BIN)/python -m pytest --numprocesses 2 --durations=15 -m "not slow and not faults and not cluster and not sweeps"

test-slow: .venv/tests
	$(BIN)/python -m pytest -m slow

# Where a fault strikes is drawn from FAULTS_SEED; FAULTS_TABLE names a file for the table.
test-faults: .venv/tests
	$(BIN)/python -m pytest -m faults -v --numprocesses 2 --durations=12 tests/faults

# A whole cluster on this machine, in a pretended cloud: as root, on Linux; ten minutes.
test-cluster: .venv/tests
	tests/cluster/lab.sh python -m pytest -x -v -s -m cluster tests/cluster

test-sweeps: .venv/tests
	$(BIN)/python -m pytest -m sweeps --durations=12

check: .venv/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Files that say which requirements are installed. Without compiled bytecode a cold Ray takes
# longer to start than it allows itself.
.venv/runs: requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/tests: requirements-dev.txt .venv/runs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@
