"""What the harness itself costs: planning, deciding what is done, and a Cell's way through a process of its own.

Times are CPU seconds where another process could be in the way.
"""

import json
import time

import pytest

from bench.plan.plan import make_plan
from bench.record import paths, store
from bench.record.cells import cell_key, spec_key
from bench.runner import runner
from bench.sweep import config
from tests.runner import runs


@pytest.fixture(autouse=True)
def away(tmp_path, monkeypatch):
    """Away from the bench.toml of the checkout."""
    monkeypatch.chdir(tmp_path)


def sweep(out, seeds):
    return runs.sweep(["place_plain"], out, range(seeds), **{"run.threads": 1})


def seconds(function):
    """CPU seconds of a call: the better of two."""
    found = []
    for _ in range(2):
        began = time.process_time()
        function()
        found.append(time.process_time() - began)
    return min(found)


def test_a_plan_of_200_cells_takes_less_than_a_second(tmp_path):
    loaded = config.load(
        flags={
            "sweep.models": ["all"],
            "sweep.datasets": ["phantoms"],
            "sweep.seeds": list(range(4)),
            "run.device": "cpu",
            "sweep.kinds": ["accuracy", "efficiency"],
        }
    )
    assert len(make_plan(loaded).cells) >= 200
    assert seconds(lambda: make_plan(loaded)) < 1.0


def overheads(outcome):
    """Seconds of each Cell outside its measurement: birth, plug-ins, checks, facts of the machine, death."""
    return sorted(r["timings"]["wall_s"] - r["timings"]["worker_s"] for r in outcome.written)


def test_a_cell_costs_less_than_half_a_second_beside_its_measurement(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    loaded = sweep(tmp_path / "run", 6)
    plan = make_plan(loaded)
    began = time.process_time()
    outcome = runner.execute(loaded, plan, tmp_path / "run", runs.Listener())
    assert len(outcome.written) == 6
    assert overheads(outcome)[0] < 0.5, "the least disturbed cell"
    assert (time.process_time() - began) / 6 < 0.1, "what the driver itself does for a cell"


def fill(out, count):
    """Write ``count`` Records of accuracy Cells; return the sweep they belong to."""
    loaded = sweep(out, count)
    plan = make_plan(sweep(out, 1))
    ((_, cell),) = plan.cells.items()
    (out / "cells").mkdir(parents=True)
    metrics = {name: 0.123456789 for name in ("test_auc", "test_acc", "test_f1", "test_ece", "val_auc", "val_acc")}
    environment = {"device": "cpu", "versions": {"torch": "2", "timm": "1"}, "cpu_model": "a processor of some name"}
    spec = json.loads(json.dumps(cell.spec()))
    assert spec_key("accuracy", spec) == cell_key(cell)
    for seed in range(count):
        spec["seed"] = seed
        key = spec_key("accuracy", spec)
        record = {
            "schema": store.SCHEMA, "key": key, "kind": "accuracy", "status": "ok", "reason": "", "spec": spec,
            "metrics": {**metrics, "test_confusion": [[1] * 8] * 8}, "environment": environment, "log_tail": [],
        }  # fmt: skip
        paths.record_path(out, key).write_text(json.dumps(record, indent=1, sort_keys=True))
    return loaded


def test_what_is_done_is_seen_by_the_status_alone(tmp_path):
    fill(tmp_path, 300)
    states, problems = store.read_states(tmp_path)
    assert len(states) == 300 and not problems and {state.status for state in states.values()} == {"ok"}
    assert seconds(lambda: store.read_states(tmp_path)) < 300 * 50e-6 * 4, "50 us a record, and four times that here"


@pytest.mark.slow
def test_resume_is_decided_within_five_seconds_for_100_000_records(tmp_path):
    fill(tmp_path, 100_000)
    assert seconds(lambda: store.read_states(tmp_path)) < 5.0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_cells_that_do_next_to_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    loaded = sweep(tmp_path / "run", 1000)
    plan = make_plan(loaded)
    began = time.monotonic()
    outcome = runner.execute(loaded, plan, tmp_path / "run", runs.Listener())
    wall = time.monotonic() - began
    spent = overheads(outcome)
    print(f"{wall / 1000:.3f} s a cell in all, {spent[500]:.3f} s beside its measurement (median)")
    assert len(outcome.written) == 1000 and spent[500] < 0.5
