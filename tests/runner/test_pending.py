"""What runs again of a run directory that holds Records already."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.plan.plan import make_plan
from bench.record import store
from bench.runner.pending import find_pending
from bench.sweep import config


def test_retry_noisy_measures_doubted_speeds_again_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)  # no bench.toml
    flags = {"sweep.models": "resnet18,resnet50,vit_tiny_patch16_224,vit_small_patch16_224", "run.device": "cpu",
             "sweep.datasets": "phantom_global", "sweep.kinds": "efficiency", "efficiency.resolutions": "32",
             "efficiency.rounds": "2"}  # fmt: skip
    metrics = {"resnet18": {"noisy": True}, "resnet50": {"noisy": False, "latency_noise_rel": 0.4},
               "vit_tiny_patch16_224": {"noisy": False, "noise_rel": 0.01}}  # fmt: skip
    for retry, again in (("failed", set()), ("noisy,failed", {"resnet18", "resnet50"})):
        loaded = config.load(None, None, {**flags, "run.retry": retry})
        plan = make_plan(loaded)
        for key, cell in plan.cells.items():
            if found := metrics.get(cell.model):
                record = {"schema": store.SCHEMA, "key": key, "kind": "efficiency", "status": "ok", "reason": "",
                          "spec": store.plain(cell.spec()), "metrics": found, "environment": {}}  # fmt: skip
                store.write_record(tmp_path / "run", record)
        done, jobs = find_pending(loaded, plan, tmp_path / "run", print)
        assert {job.cell.model for job in jobs} == again | {"vit_small_patch16_224"}  # which has no Record
        assert done.replaced.keys() == {key for key, cell in plan.cells.items() if cell.model in again}
