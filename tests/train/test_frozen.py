"""Frozen features: computed once, verified, shared by heads, seeds and draws; one Record a Cell."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.numpy import load_file
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import bench
from bench.data.cache import open_entry
from bench.plan.plan import make_plan
from bench.record import store
from bench.record.cells import AccuracyCell, Context, Result, cell_key
from bench.registry import dataset_info
from bench.sweep import config
from bench.train.frozen import features, run

SET = "phantom_local[train=90]"


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own; torch's switches as they were."""
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    return path


def planned(checkpoint: Path, **changes: Any) -> list[AccuracyCell]:
    flags = {"sweep.models": f"timm:test_resnet[pretrained={checkpoint}]", "sweep.datasets": SET}
    flags |= {"sweep.resolutions": [32], "sweep.kinds": "accuracy", "sweep.track": "frozen"}
    flags |= {f"sweep.{key}": value for key, value in changes.items()}
    found = make_plan(config.load(None, None, flags)).cells.values()
    return [cell for cell in found if isinstance(cell, AccuracyCell) and cell.weights_sha256]


def executed(cells: list[AccuracyCell], out: Path) -> dict[str, Result]:
    context = Context("cpu", 1, None, None, out, progress=lambda event: None)
    return dict(run.run_frozen(cells, context))


def test_features_are_the_networks_and_the_probe_is_scikit_learns(checkpoint: Path, tmp_path: Path) -> None:
    cells = planned(checkpoint, heads="linear")
    found = executed(cells, tmp_path)[cell_key(cells[0])]
    assert found.status == "ok"
    (path,) = (tmp_path / "cache" / "features").glob("*.safetensors")
    kept = load_file(path)
    splits = open_entry(dataset_info(SET), 32).splits
    model = timm.create_model("test_resnet", checkpoint_path=checkpoint).eval()
    model.reset_classifier(0)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.pretrained_cfg["mean"], model.pretrained_cfg["std"]))
    pixels = torch.from_numpy(np.array(splits["test"].images)).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 255
    with torch.inference_mode():
        np.testing.assert_allclose(kept["test"], model((pixels - mean) / std).numpy(), atol=1e-4)
    c = found.metrics["chosen"]["inverse_regularisation"]
    scaler = StandardScaler().fit(kept["train"].astype(float))
    probe = LogisticRegression(C=c, tol=1e-10, max_iter=10_000)
    probe.fit(scaler.transform(kept["train"].astype(float)), np.array(splits["train"].labels))
    expected = probe.predict_proba(scaler.transform(kept["test"].astype(float)))
    np.testing.assert_allclose(found.arrays["test_scores"], expected, atol=1e-3)


def test_features_are_computed_once_and_again_if_damaged(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = planned(checkpoint, seeds="0,1", shots="3", draws=2)
    first = executed(cells, tmp_path)
    built = []
    real = run.build_model
    monkeypatch.setattr(run, "build_model", lambda *given, **how: built.append(1) or real(*given, **how))
    again = executed(cells, tmp_path)
    assert not built
    for key, result in first.items():
        np.testing.assert_array_equal(result.arrays["test_scores"], again[key].arrays["test_scores"])
    (path,) = (tmp_path / "cache" / "features").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    executed(cells[:1], tmp_path)
    assert built
    assert features.read(path, {"train": 90}) is not None


def test_exact_heads_are_alike_for_all_seeds_and_draws_differ(checkpoint: Path, tmp_path: Path) -> None:
    cells = planned(checkpoint, seeds="0,1", shots="3", draws=2, heads="linear")
    found = executed(cells, tmp_path)
    scores = {(c.seed, c.shots, c.draw): found[cell_key(c)].arrays["test_scores"] for c in cells}
    assert np.array_equal(scores[0, 3, 0], scores[1, 3, 0])
    assert not np.array_equal(scores[0, 3, 0], scores[0, 3, 1])
    few = [found[cell_key(c)] for c in cells if c.shots]
    assert {r.metrics["labelled_train"] for r in few} == {6}
    assert {len(r.arrays["val_scores"]) for r in few} == {6}
    assert len({len(r.arrays["test_scores"]) for r in found.values()}) == 1


def test_a_network_that_gives_no_features_is_told(checkpoint: Path, tmp_path: Path) -> None:
    cell = dataclasses.replace(planned(checkpoint, heads="linear")[0], model="timm:test_resnet", weights_sha256=None)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 0))
    real, run.build_model = run.build_model, lambda *given, **how: (flat, False)  # type: ignore[assignment]
    try:
        with pytest.raises(ValueError, match="timm:test_resnet gives no features"):
            executed([cell], tmp_path)
    finally:
        run.build_model = real  # type: ignore[assignment]


def test_a_sweep_of_tiny_cells_needs_one_worker_a_network(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags: dict[str, Any] = {"models": f"timm:test_resnet[pretrained={checkpoint}]", "datasets": SET, "out": str(out)}
    flags |= {"resolutions": 32, "kinds": "accuracy", "track": "frozen", "shots": "2,4", "draws": 3}
    bench.run(**flags)
    records, problems = store.read_records(out)
    assert not problems
    assert len(records) == 2 * 3 * 7
    assert {record["status"] for record in records} == {"ok"}
    assert len(list((out / "logs").glob("*.log"))) == 2  # one worker for the weights, one for the random network
    assert len(list((out / "predictions").glob("*.npz"))) == len(records)
    written = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    bench.run(**flags)
    assert written == {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
