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


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same trainings one after the other: their scores by key."""
    out = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDBENCH_CACHE", str(out / "cache"))
        train(out / "run", 1)
    records, _ = store.read_records(out / "run")
    assert len(records) == 2 * len(MODELS)
    return {record["key"]: np.load(predictions_path(out / "run", record["key"]))["test_scores"] for record in records}


@pytest.mark.parametrize("pack", [4, "auto"])
def test_bits_are_those_of_trainings_alone(pack, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    outcome = train(tmp_path / "packed", pack)
    assert {record["status"] for record in outcome.written} == {"ok"}, [r["reason"] for r in outcome.written]
    assert all(record["metrics"]["cuda_graph"] for record in outcome.written)
    assert {record["key"] for record in outcome.written} == set(alone)
    for record in outcome.written:
        packed = np.load(predictions_path(tmp_path / "packed", record["key"]))["test_scores"]
        assert np.array_equal(alone[record["key"]], packed), record["spec"]["model"]
    if pack == 4:
        assert max(record["environment"]["packed"] for record in outcome.written) == 4
