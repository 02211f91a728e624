# Two commands are all there is to know: `make bench` and `make test`. Each makes .venv, installs and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
OUT ?= results/quick
# Two test processes on two cores: a second thread of either would only be in the way.
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: bench test soak lint gpu clean
bench: $(STAMP)
	$(BIN)/bench run --preset quick --out $(OUT)

test: $(STAMP) lint
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile

soak: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest -m "slow and not gpu" --timeout 1800

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

gpu: $(STAMP)
	$(BIN)/python -m bench.measure.ops_bench --device cuda --models medmamba vmamba --sizes 224 --batches 64 --json gpu_ops.json
	$(BIN)/python -m bench.measure.gpu_check --json gpu_train.json

clean:
	rm -rf $(VENV) build *.egg-info

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "medbench needs Python 3.11 or later; set PYTHON=..."'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
