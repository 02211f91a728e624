"""Trainings that share a GPU on streams of one process give the bits of trainings alone."""

import numpy as np
import pytest
import torch

from bench.record import store
from bench.record.paths import predictions_path
from tests.runner.runs import run

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
MODELS = [
    "resnet18",
    "vit_tiny_patch16_224[drop_rate=0.2,drop_path_rate=0.1]",
    "medmamba_tiny[drop_path_rate=0.2]",
    "vmamba_tiny",
]


def train(out, pack, models=MODELS):
    keys = {"sweep.sizes": [28], "sweep.resolutions": [32], "sweep.recipe": "standard", "sweep.epochs": 12}
    return run(models, out, seeds=(0, 1), **keys, **{"run.device": "cuda:0", "run.pack": pack})


@pytest.mark.parametrize("pack", [4, "auto"])
def test_bits_are_those_of_trainings_alone(pack, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for out, n in (("alone", 1), ("packed", pack)):
        outcome = train(tmp_path / out, n)
        assert {record["status"] for record in outcome.written} == {"ok"}, [r["reason"] for r in outcome.written]
        assert all(record["metrics"]["cuda_graph"] for record in outcome.written)
    records, _ = store.read_records(tmp_path / "alone")
    assert len(records) == 2 * len(MODELS)
    for record in records:
        alone, packed = (
            np.load(predictions_path(tmp_path / out, record["key"]))["test_scores"] for out in ("alone", "packed")
        )
        assert np.array_equal(alone, packed), record["spec"]["model"]
    if pack == 4:
        assert max(record["environment"]["packed"] for record in outcome.written) == 4
