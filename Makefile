# Two commands are all there is to know: `make bench` and `make test`. Each makes .venv, installs and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MINUTES ?= 0
# Two test processes on two cores: a second thread of either would only be in the way.
ONE_THREAD := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

.PHONY: bench test soak lint gpu clean
bench: $(STAMP)
	$(BIN)/bench run --preset quick $(if $(OUT),--out $(OUT))

# Files in their own order: xdist's, by their number of tests, leaves the longest single tests for the end, beside an idle core.
test: $(STAMP) lint
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

soak: $(STAMP)
	$(ONE_THREAD) $(BIN)/python -m pytest -m "slow and not gpu" --timeout 1800

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# All that is to be measured on a GPU; ends after MINUTES (0: when all is done), the same command goes on. See --help.
gpu: $(STAMP)
	$(BIN)/python -m tools.gpu_session --minutes $(MINUTES) $(if $(ARCHIVE),--archive $(ARCHIVE))

clean:
	rm -rf $(VENV) build *.egg-info

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "medbench needs Python 3.11 or later; set PYTHON=..."'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@
