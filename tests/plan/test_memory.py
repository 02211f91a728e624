"""Memory before it hurts: against peaks measured on an H100, and against what autograd keeps."""

import json
from pathlib import Path

import pytest
import torch

import bench
from bench.plan.estimate import cost_of
from bench.plan.memory import memory_bytes
from bench.plan.plan import make_plan
from bench.record.cells import EfficiencyCell
from bench.sweep.config import load

RECORDS = Path(__file__).resolve().parents[2] / "results" / "efficiency" / "cells"


def _cell(spec):
    return EfficiencyCell(**{name: spec[name] for name in EfficiencyCell.__dataclass_fields__ if name in spec})


def test_inference_is_within_a_third_of_the_peaks_on_an_h100():
    seen = 0
    for path in RECORDS.glob("*.json"):
        record = json.loads(path.read_text())
        if record["kind"] == "efficiency" and record["status"] == "ok" and record["spec"]["device"] == "cuda:0":
            peak = record["metrics"]["peak_memory_mib"] * 2**20
            assert memory_bytes(_cell(record["spec"])) == pytest.approx(peak, rel=0.34), record["spec"]["model"]
            seen += 1
    assert seen >= 30


def test_training_is_what_autograd_keeps_and_four_numbers_a_weight():
    model = bench.create_model("resnet18", num_classes=1000, img_size=96).train()
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = model(torch.zeros(4, 3, 96, 96))
    expected = 16 * sum(p.numel() for p in model.parameters()) + 8 * sum(kept.values())
    loaded = load(None, None, {"sweep.models": "resnet18", "sweep.datasets": "phantom_local",
                               "sweep.resolutions": "96", "sweep.kinds": "accuracy", "run.device": "cpu"},
                  ["recipe.batch_size=32"])  # fmt: skip
    (cell,) = make_plan(loaded).cells.values()
    assert out.requires_grad and memory_bytes(cell) == pytest.approx(expected, rel=0.1)


def test_what_does_not_fit_is_said(monkeypatch):
    monkeypatch.setattr("bench.plan.estimate.device_bytes", lambda device: 1 << 30)
    flags = {"sweep.models": "resnet18,swin_tiny_patch4_window7_224", "sweep.datasets": "phantom_local",
             "sweep.resolutions": "64,224", "sweep.kinds": "accuracy", "run.device": "cpu"}  # fmt: skip
    cost = cost_of(make_plan(load(None, None, flags, ["recipe.batch_size=32"])), ())
    assert [line.split(" needs")[0] for line in cost.too_large] == ["swin_tiny_patch4_window7_224 at 224 px"]
    assert "of 1.0 GiB; gradients will be accumulated" in cost.too_large[0] and "memory about" in str(cost)
