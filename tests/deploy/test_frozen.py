"""A frozen network with a linear head outside of its run: exported, scored and loaded as any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import bench
from bench.cli import main
from bench.deploy.bundle import DeployError, read_bundle
from bench.deploy.which import members_of
from bench.record import store
from bench.record.paths import predictions_path, weights_path
from bench.registry.weights import weights_file

SET = "phantom_local[train=90]"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of frozen features with three heads and its export; the folder, and the run's records by head."""
    top = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(1)
    save_file(timm.create_model("test_resnet").state_dict(), top / "resnet.safetensors")
    flags: dict[str, Any] = {"models": f"timm:test_resnet[pretrained={top}/resnet.safetensors]", "datasets": SET}
    flags |= {"resolutions": 32, "kinds": "accuracy", "track": "frozen", "heads": "linear,medmnistplus,knn11"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDBENCH_CACHE", str(top / "cache"))
        bench.run(**flags, out=str(top / "run"), threads=1, keep_weights=True, seeds="0")
        records = {r["spec"]["head"]: r for r in store.read_records(top / "run")[0] if r["spec"]["weights_sha256"]}
        for head in ("linear", "medmnistplus"):
            key = records[head]["key"]
            assert main.main(["export-model", str(top / "run"), key[:8], "--out", str(top / head)]) == 0
        yield top, records
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("head", ["linear", "medmnistplus"])
def test_it_scores_as_its_record(study: Any, head: str) -> None:
    top, records = study
    key = records[head]["key"]
    bundle = read_bundle(top / head)
    assert bundle.features == records[head]["metrics"]["features"] and bundle.checks["pytorch_against_record"] < 1e-5
    assert weights_path(top / "run", key).stat().st_size < 10_000, "the head alone"
    with np.load(predictions_path(top / "run", key)) as stored:
        expected = stored["test_scores"]
    for engine in ("torch", "onnx"):
        if engine == "onnx":
            pytest.importorskip("onnxruntime")
            assert bundle.checks["onnx_against_pytorch"] < 1e-4
        scored = bench.load_model(top / head, engine=engine).predict(SET)
        found = [list(one.probabilities.values()) for one in scored]
        np.testing.assert_allclose(found, expected, atol=1e-4)
    card = (top / head / "README.md").read_text()
    assert "with its pretrained weights, frozen" in card and "- Pretrained weights: not stated (" in card
    assert set(load_file(top / "resnet.safetensors")) - {"fc.weight", "fc.bias"} == {
        name.removeprefix("backbone.") for name in load_file(top / head / "model.safetensors")
    } - {"weight", "bias"}


def test_neighbours_are_refused_with_what_to_take(study: Any) -> None:
    top, records = study
    linear = records["linear"]["key"][:8]
    with pytest.raises(DeployError, match=rf"asks the 11 nearest training images.*bench export-model .*run {linear}"):
        members_of(top / "run", records["knn11"]["key"])


def test_a_head_is_no_network(study: Any, capsys: pytest.CaptureFixture[str]) -> None:
    top, records = study
    key = records["linear"]["key"]
    with pytest.raises(bench.errors.ConfigError, match="holds only the head 'linear' of a frozen network"):
        weights_file(f"{top / 'run'}/{key[:8]}")
    assert main.main(["explain", str(top / "run"), key]) == 2
    assert "is a head on frozen features" in capsys.readouterr().err
    assert main.main(["explain", str(top / "run"), "all"]) == 2
    assert "no weights were kept" in capsys.readouterr().err


def test_the_recommended_model_is_exported_under_its_protocol(study: Any, tmp_path: Path) -> None:
    """By default the head that the recommendation is of, not whichever has the model's name."""
    top, records = study
    out = shutil.copytree(top / "run", tmp_path / "run")
    for record in [*records.values(), *store.read_records(out)[0]]:
        if record["spec"]["head"] == "knn11":
            (out / "cells" / f"{record['key']}.json").unlink(missing_ok=True)
    found = members_of(out)
    assert [r["key"] for r in found] == [records["linear"]["key"]]


def test_other_weights_than_then_are_refused(study: Any, tmp_path: Path) -> None:
    top, records = study
    path = top / "resnet.safetensors"
    before = path.read_bytes()
    try:
        save_file(timm.create_model("test_resnet").state_dict(), path)
        with pytest.raises(DeployError, match="is not what was planned"):
            from bench.deploy.export import export_model

            export_model(top / "run", [records["linear"]], tmp_path / "model", None, onnx=False)
    finally:
        path.write_bytes(before)


def test_weights_of_heads_are_kept_for_the_recommended_model_alone(study: Any) -> None:
    top, _ = study
    flags: dict[str, Any] = {"models": f"timm:test_resnet[pretrained={top}/resnet.safetensors]", "datasets": SET}
    bench.run(**flags, resolutions=32, kinds="accuracy", track="frozen", heads="linear", out=str(top / "b"), threads=1)
    kept = {path.stem for path in (top / "b" / "weights").glob("*.safetensors")}
    assert kept == {r["key"] for r in store.read_records(top / "b")[0] if r["spec"]["weights_sha256"]}
    assert json.loads((top / "b" / "weights" / "unasked.json").read_bytes())
