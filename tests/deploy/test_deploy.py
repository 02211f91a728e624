"""``bench export-model``, ``bench predict`` and ``bench.load_model``, against Records, numpy and onnxruntime."""

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import bench
from bench import registry
from bench.cli import main
from bench.data.cache import open_entry
from bench.deploy.bundle import Bundle, DeployError, read_bundle
from bench.deploy.onnx_file import OnnxError, write_onnx
from bench.ops import cross_selective_scan, selective_scan
from bench.record import store
from bench.record.cells import AccuracyCell, Context, cell_key
from bench.record.paths import predictions_path, weights_path
from bench.sweep.recipes import resolve
from bench.train.accuracy import run_accuracy

MODEL = "timm:test_resnet"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images of two sizes in two classes, a run that was trained on them, and its export."""
    top = tmp_path_factory.mktemp("deploy")
    draw = np.random.default_rng(0)
    for number in range(60):
        name = ("sick", "well")[number % 2]
        side = 40 + 8 * (number % 3)
        pixels = draw.integers(60, 160 if name == "well" else 200, (side, side), dtype=np.uint8)
        path = top / "images" / name / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDBENCH_CACHE", str(top / "cache"))
        _train(top)
        assert main.main(["export-model", str(top / "run"), _key(top)[:8], "--out", str(top / "model")]) == 0
        yield top
    torch.use_deterministic_algorithms(False)


def _train(top: Path) -> None:
    info = registry.dataset_info(f"folder:{top}/images")
    cell = AccuracyCell(
        model=MODEL, dataset=info.name, size=32, resolution=32, resize="bilinear", seed=0, precision="fp32",
        recipe=resolve("quick", epochs=1, batch_size=16), data_fingerprint=info.open().fingerprint(32, None),
    )  # fmt: skip
    result = run_accuracy(cell, Context("cpu", 1, None, None, top / "run", lambda event: None, keep_weights=True))
    record = {
        "schema": store.SCHEMA, "key": cell_key(cell), "kind": "accuracy", "status": "ok", "reason": "",
        "environment": {"threads": 1}, "metrics": result.metrics, "spec": cell.spec(),
    }  # fmt: skip
    store.write_record(top / "run", record, result.arrays)


def _key(top: Path) -> str:
    return next((top / "run" / "cells").glob("*.json")).stem


def _stored(top: Path) -> dict[str, Any]:
    with np.load(predictions_path(top / "run", _key(top))) as arrays:
        return dict(arrays)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_files_score_as_in_the_record_to_the_bit(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = _stored(study)
    files = [str(study / "images" / name) for name in stored["test_names"]]
    out = study / "scores.csv"
    assert main.main(["predict", str(study / "model"), *files, "--out", str(out)]) == 0
    rows = _rows(out)
    assert list(rows[0]) == ["path", "sick", "well", "sick_calibrated", "well_calibrated", "decision", "warning"]
    found = np.array([[float(row["sick"]), float(row["well"])] for row in rows])
    assert np.array_equal(found, stored["test_scores"])
    record = store.read_record(study / "run" / "cells" / f"{_key(study)}.json")
    at = {"sick": 0, "well": 1}[record["metrics"]["positive_class"]]
    yes = found[:, at] >= record["metrics"]["threshold_youden"]
    assert [row["decision"] for row in rows] == [("sick", "well")[at if hit else 1 - at] for hit in yes]
    logits = np.log(found) / record["metrics"]["temperature"]
    scaled = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose([float(row["sick_calibrated"]) for row in rows], scaled[:, 0], atol=1e-9)
    assert {row["warning"] for row in rows} == {""}
    assert "written:" in capsys.readouterr().out


def test_an_earlier_export_is_replaced_whole(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No network of another export stays beside the new one: neither ONNX nor folds; other files do."""
    pytest.importorskip("onnxruntime")
    folder = shutil.copytree(study / "model", tmp_path / "model")
    assert (folder / "model.onnx").is_file()
    for name in ("model-fold1.safetensors", "model-fold1.onnx", "notes.txt", "model-mine.onnx"):
        (folder / name).write_text("x")
    assert main.main(["export-model", str(study / "run"), _key(study)[:8], "--out", str(folder), "--no-onnx"]) == 0
    assert "the earlier export in" in capsys.readouterr().out
    there = {path.name for path in folder.iterdir()}
    assert there == {"model.safetensors", "model.json", "README.md", "notes.txt", "model-mine.onnx"}
    assert not read_bundle(folder).members[0].onnx


def test_onnx_scores_the_same_without_torch(study: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert read_bundle(study / "model").checks["onnx_against_pytorch"] < 1e-4
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'torchvision', 'safetensors'): sys.modules[name] = None\n"
        "from unittest import mock; import importlib.util as u; real = u.find_spec\n"
        "hidden = lambda name, *a: None if name in ('torch', 'timm') else real(name, *a)\n"
        "mock.patch('bench.deploy.loaded.find_spec', hidden).start()\n"
        "import bench, json; model = bench.load_model(sys.argv[1])\n"
        "print(json.dumps([model.engine, [p.probabilities['sick'] for p in model.predict(sys.argv[2:])]]))\n"
    )
    stored = _stored(study)
    files = [str(study / "images" / name) for name in stored["test_names"]]
    command = [sys.executable, "-c", code, str(study / "model"), *files]
    made = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stderr
    engine, found = json.loads(made.stdout)
    assert engine == "onnx"
    assert np.abs(np.array(found) - stored["test_scores"][:, 0]).max() < 1e-4


def test_folders_tables_arrays_and_datasets_are_read(study: Path, tmp_path: Path) -> None:
    model = bench.load_model(study / "model")
    whole = model.predict(study / "images")
    assert len(whole) == 60 and whole[0].path.endswith("images/sick/00.png")
    table = tmp_path / "list.csv"
    table.write_text(f"id,file\n1,{study}/images/sick/00.png\n2,{study}/images/none.png\n")
    first, missing = model.predict(table)
    assert first.probabilities.keys() == {"sick", "well"} and not missing.probabilities
    assert "none.png" in missing.warnings[0] and missing.decision == ""
    dataset = f"folder:{study}/images"
    entry = open_entry(registry.dataset_info(dataset), 32, resize="bilinear")
    np.savez(tmp_path / "some.npz", test_images=np.asarray(entry.splits["test"].images)[..., 0])
    arrays, split = model.predict(tmp_path / "some.npz"), model.predict(dataset)
    scores = [[p.probabilities["sick"] for p in found] for found in (arrays, split)]
    assert scores[0] == scores[1] == _stored(study)["test_scores"][:, 0].tolist()
    assert not any("pixels" in text for one in split for text in one.warnings), "they were decoded to 32 pixels here"


def test_images_unlike_the_training_images_are_told(study: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((300, 20), 255, np.uint8)).save(tmp_path / "white.png")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8) + np.uint8([200, 20, 20])).save(tmp_path / "red.png")
    (tmp_path / "text.png").write_text("no image")
    red, text, white = bench.load_model(study / "model").predict(tmp_path)
    assert "has colours; the training images are gray" in red.warnings[0] and not red.probabilities
    assert "not a readable image" in text.warnings[0]
    said = " ".join(white.warnings)
    assert white.probabilities and "has 20 x 300 pixels; the training images 40 x 40 to 56 x 56" in said
    assert "mean gray value of 255" in said and "contrast of 0" in said


def test_the_card_says_where_the_model_is_from_and_what_it_does(study: Path) -> None:
    text = (study / "model" / "README.md").read_text()
    record = store.read_record(study / "run" / "cells" / f"{_key(study)}.json")
    for said in (f"# {MODEL} for images", _key(study), f"| {record['metrics']['test_auc']:.3f} (", "## Licence",
                 "positive class is **well** (a guess", "| seed 0 | "):  # fmt: skip
        assert said in text, said


def test_what_cannot_be_exported_or_read_says_why(study: Path, tmp_path: Path, capsys: Any) -> None:
    def said(*arguments: Any) -> str:
        assert main.main(list(map(str, arguments))) == 2
        return str(capsys.readouterr().err)

    run, model = study / "run", study / "model"
    assert f"no finished cell 'resnet99'; give a key or a model: {MODEL}" in " ".join(
        said("export-model", run, "resnet99", "--out", tmp_path / "m").replace(str(run), "RUN").split()
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    assert "is not empty and no exported model" in said("export-model", run, MODEL, "--out", tmp_path / "full")
    assert "is not an exported model: it has no model.json" in said("predict", tmp_path, "x.png")
    assert "neither a file, a folder nor a dataset" in said("predict", model, "nowhere.png")
    weights = weights_path(run, _key(study))
    weights.rename(weights.with_suffix(".away"))
    assert "were not kept" in said("export-model", run, MODEL, "--out", tmp_path / "m")
    weights.with_suffix(".away").rename(weights)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in ("model.json", "model.safetensors"):
        (copy / file).write_bytes((model / file).read_bytes()[: None if file == "model.json" else -1])
    with pytest.raises(DeployError, match="is not the file that was exported"):
        bench.load_model(copy, engine="torch")
    (copy / "model.json").write_text('{"format": 7}')
    with pytest.raises(DeployError, match="has format 7"):
        read_bundle(copy)


# --- the scan in standard operators ------------------------------------------------------------------------------


class Scans(nn.Module):
    """Both of our operators in one network, of image (b,3,h,w) to (b,3)."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        sizes = {"proj": (4, 2 + 2 * 5, 3), "dt": (4, 3, 2), "bias": (4, 3), "A": (4, 3, 5), "D": (4, 3)}
        for name, shape in sizes.items():
            values = torch.randn(shape, generator=draw) / 2
            self.register_buffer(name, -values.abs() if name == "A" else values)

    def forward(self, x: Tensor) -> Tensor:
        y = cross_selective_scan(x.permute(0, 2, 3, 1), self.proj, self.dt, self.bias, self.A, self.D)
        u = y.flatten(1, 2).transpose(1, 2)
        B = u[:, None, :2]
        return selective_scan(u, u, self.A[0, :, :2], B, B, self.D[0], self.bias[0], True).mean(-1)


def _by_hand(model: Scans, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The recurrences of one image (3,h,w), step by step in float64."""
    p = {name: value.double().numpy() for name, value in model.named_buffers()}
    height, width = image.shape[1:]
    total = np.zeros((height, width, 3))
    for k in range(4):
        places = [(r, c) for r in range(height) for c in range(width)]
        places = sorted(places, key=lambda at: at[::-1]) if k % 2 else places
        h = np.zeros((3, 5))
        for r, c in places[:: -1 if k >= 2 else 1]:
            x = image[:, r, c]
            low, B, C = np.split(p["proj"][k] @ x, [2, 7])
            step = np.log1p(np.exp(p["dt"][k] @ low + p["bias"][k]))
            h = np.exp(step[:, None] * p["A"][k]) * h + (step * x)[:, None] * B
            total[r, c] += h @ C + p["D"][k] * x
    u, h, out = total.reshape(-1, 3), np.zeros((3, 2)), []
    for x in u:
        step = np.log1p(np.exp(x + p["bias"][0]))
        h = np.exp(step[:, None] * p["A"][0, :, :2]) * h + (step * x)[:, None] * x[:2]
        out.append(h @ x[:2] + p["D"][0] * x)
    return np.mean(out, axis=0)


def test_scans_become_standard_operators(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    model, images = Scans().eval(), np.random.default_rng(1).normal(size=(3, 3, 5, 4)).astype(np.float32)
    write_onnx(model, (3, 5, 4), tmp_path / "scans.onnx")
    graph = onnx.load(tmp_path / "scans.onnx")
    assert {opset.domain for opset in graph.opset_import} == {""}
    assert [node.op_type for node in graph.graph.node].count("Scan") == 2
    (found,) = runtime.InferenceSession(tmp_path / "scans.onnx").run(None, {"images": images})
    expected = np.stack([_by_hand(model, image.astype(np.float64)) for image in images])
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_an_onnx_form_says_so(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")

    class Guesses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(OnnxError, match="has no ONNX form"):
        write_onnx(Guesses(), (3, 4, 4), tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_several_labels_are_decided_one_by_one() -> None:
    bundle = Bundle(
        model="m", dataset="d", task="multi-label", classes=("a", "b", "c"), positive_class="",
        positive_class_guessed=False, size=4, resolution=4, resize="native", any_size=False, channels=1, in_chans=1,
        mean=(0.5,), std=(0.5,), decoding={}, precision="fp32", batch_size=1, threads=1, thresholds=(0.2, 0.9, 0.5),
        temperature=2.0, members=(), training_images=None,  # type: ignore[arg-type]
    )  # fmt: skip
    scores = np.array([[0.3, 0.8, 0.5], [0.1, 0.1, 0.1]])
    assert bundle.decisions(scores) == ["a;c", ""]
    odds = np.exp(np.log(scores / (1 - scores)) / 2)
    assert np.allclose(bundle.calibrated(scores), odds / (1 + odds))
