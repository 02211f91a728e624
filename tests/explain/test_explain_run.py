"""``bench explain`` on a run and without one, and what it says where it cannot."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import registry
from bench.cli import main
from bench.data.cache import open_entry
from bench.explain.cam import Choice
from bench.explain.run import _caption
from bench.explain.which import cell_of, find_cells
from bench.plan.plan import make_plan
from bench.record import store
from bench.record.cells import AccuracyCell, Context, cell_key
from bench.record.paths import record_path, weights_path
from bench.record.store import StoreError
from bench.registry import plugins
from bench.runner.jobs import run_info
from bench.sweep import config
from bench.sweep.recipes import resolve
from bench.train.accuracy import build_model, pipeline, run_accuracy
from bench.train.loop import scores_of
from bench.train.weights import load

DATASET = "phantom_local-seen"
COMMAND = "bench run --models 'timm:test_vit' --datasets phantoms --out somewhere"


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A phantom of few images, under its own name; a cache of its own."""
    info = replace(registry.datasets["phantom_local"], name=DATASET, groups=(), n_train=64, n_val=32, n_test=48)
    monkeypatch.setitem(registry.datasets._info, DATASET, info)
    monkeypatch.setattr("bench.datasets.phantoms.Phantom.__init__", _named_otherwise)
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)


def _named_otherwise(self: Any, info: Any) -> None:
    self.info, self.kind = info, "phantom_local"


def trained(out: Path, model: str, **changes: Any) -> AccuracyCell:
    cell = AccuracyCell(
        model=model, dataset=DATASET, size=32, resolution=32, resize="native", seed=0, precision="fp32",
        recipe=resolve("quick", epochs=1, batch_size=16),
        data_fingerprint=registry.datasets[DATASET].open().fingerprint(32, None), **changes,
    )  # fmt: skip
    result = run_accuracy(cell, Context("cpu", 1, None, None, out, lambda event: None, keep_weights=True))
    write(out, cell_key(cell), spec=cell.spec(), metrics=result.metrics, arrays=result.arrays)
    return cell


def write(out: Path, key: str, arrays: Any = None, **changes: Any) -> None:
    record = {
        "schema": store.SCHEMA, "key": key, "kind": "accuracy", "status": "ok", "reason": "", "metrics": {},
        "environment": {}, "spec": {"model": "m", "dataset": "d", "resolution": 32, "seed": 0},
    }  # fmt: skip
    store.write_record(out, {**record, **changes}, arrays)


def explain(*arguments: Any) -> int:
    return main.main(["explain", *map(str, arguments)])


def test_cells_of_a_run_become_pictures_and_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    cells = [trained(out, "timm:test_resnet"), trained(out, "timm:test_vit")]
    keys = [cell_key(cell) for cell in cells]
    assert explain(out, keys[0][:7], keys[1], "--images", 3, "--per-class", 1) == 0
    told = capsys.readouterr().out
    assert all(str(out / "explain" / key) in told for key in keys)
    written = {path.relative_to(out / "explain"): path.read_bytes() for path in sorted(out.glob("explain/**/*.*"))}
    for cell, key in zip(cells, keys, strict=True):
        names = {path.name for path in written if path.parts[0] == key}
        assert names == {"receptive_field.png", "explain.json", "fields.npz"} | {n for n in names if "looks_" in n}
        _check_numbers(out, cell, key)
    assert {path.name for path in written if len(path.parts) == 1} == {"receptive_fields.png"}
    # The same again: the same bytes.
    assert explain(out, keys[0], "--images", 3, "--per-class", 1) == 0
    assert {path: (out / "explain" / path).read_bytes() for path in written} == written


def _check_numbers(out: Path, cell: AccuracyCell, key: str) -> None:
    facts = json.loads((out / "explain" / key / "explain.json").read_bytes())
    assert (facts["key"], facts["model"], facts["resolution"], facts["images"]) == (key, cell.model, 32, 3)
    with np.load(out / "explain" / key / "fields.npz") as maps:
        assert set(maps.files) == {f"{s}/{stage['name']}" for stage in facts["stages"] for s in
                                   ("at initialisation", "trained")}  # fmt: skip
        assert all(maps[name].sum() == pytest.approx(1, abs=1e-4) for name in maps.files)
    for stage in facts["stages"]:
        assert 0 < stage["trained"]["radius_50_px"] <= stage["trained"]["radius_95_px"] < 32
    # What is shown is what the kept weights say of that image.
    info = registry.datasets[DATASET]
    model, channels_last = build_model(cell, info, torch.device("cpu"))
    model.load_state_dict(load(out, key))
    split = open_entry(info, 32, cache_dir=out).splits["test"]
    reader = pipeline(split, cell, info, "native", torch.device("cpu"), channels_last, cell.recipe)
    scores = scores_of(model, reader, info.task, "fp32")
    assert facts["looks"]
    for look in facts["looks"]:
        assert look["score"] == pytest.approx(scores[look["image"], look["predicted"]], abs=1e-5)
        assert look["right"] == (look["predicted"] == split.labels[look["image"]])
        assert look["group"] == split.labels[look["image"]]


def test_a_folder_that_is_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("nowhere", "abc") == 2
    assert "nowhere is not a run directory: it has no cells/ and no run.json" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "aa11")
    weights_path(tmp_path, "aa11").parent.mkdir()
    weights_path(tmp_path, "aa11").write_bytes(b"")
    assert explain(tmp_path, "aa11", "--device", "cuda:1") == 2
    assert "--device cuda:1: torch finds no CUDA device; use --device cpu" in capsys.readouterr().err


def test_captions_say_what_was_asked_and_answered() -> None:
    info = registry.datasets[DATASET]
    chosen = Choice(image=7, group=0, present=True, predicted=1, score=0.876, right=False)
    assert _caption(chosen, info) == f"#7, wrong\npredicted {info.classes[1][:18]} 0.88"
    several = replace(info, task="multi-label", positive="")
    assert _caption(chosen._replace(present=False), several) == "#7, absent\nscore 0.88"


def test_which_cell_is_meant_and_what_it_lacks(tmp_path: Path) -> None:
    for key, changes in {
        "aa11": {}, "aa12": {}, "bb": {"kind": "efficiency"}, "cc": {"status": "diverged"},
        "dd": {"kind": "transfer", "spec": {"model": "m", "source_key": "aa11"}},
    }.items():  # fmt: skip
        write(tmp_path, key, **changes)
    command = f"to train again and keep them: {COMMAND} --keep-weights"
    store.write_json(tmp_path / "run.json", {"command": f"bench plan\n{COMMAND}"})
    for wanted, message in {
        "aa": "'aa' is ambiguous: it matches 2 cells of .* \\(aa11, aa12\\)",
        "zz": f"has no cell 'zz'; no weights were kept; {command}",
        "": "has no cell ''",
        "all": f"no weights were kept; {command}",
        "bb": r"cell bb \(m\) is an efficiency cell and trains nothing",
        "cc": r"cell cc \(m\) has status diverged: no trained network",
        "dd": r"cell dd \(m\) is a transfer cell and trains nothing; explain its source, aa11",
        "aa11": rf"missing .*weights/aa11.safetensors: the weights of cell aa11 \(m\) were not kept; {command}",
    }.items():
        with pytest.raises(StoreError, match=message):
            find_cells(tmp_path, [wanted])
    # Of several commands the one that trained it; of a run that was moved the place where it lies now.
    other = "bench run --models n --out elsewhere"
    about = {"command": f"{COMMAND}\n{other}", "planned": {COMMAND: ["aa11"], other: ["zz"]}}
    store.write_json(tmp_path / "run.json", about)
    with pytest.raises(StoreError, match=f"to train again and keep them: {COMMAND} --keep-weights --out \\.$"):
        find_cells(tmp_path, ["aa11"])
    with pytest.raises(StoreError, match=f"one of:\n  {COMMAND} .*\n  {other} --keep-weights --out \\.$"):
        find_cells(tmp_path, ["all"])
    store.write_json(tmp_path / "run.json", {"command": "bench run", "sweep": {"run": {"out": str(tmp_path)}}})
    with pytest.raises(StoreError, match=r"to train again and keep them: bench run --keep-weights$"):
        find_cells(tmp_path, ["aa11"])
    weights_path(tmp_path, "aa12").parent.mkdir()
    weights_path(tmp_path, "aa12").write_bytes(b"")
    with pytest.raises(StoreError, match=r"name a cell of .*these have weights:\n  aa12 m on d at 32 px, seed 0"):
        find_cells(tmp_path, [])
    assert [record["key"] for record in find_cells(tmp_path, ["all"])] == ["aa12"]


def test_a_record_of_another_version_is_told(tmp_path: Path) -> None:
    cell = AccuracyCell("m", "d", 28, 28, "native", resolve("quick"), 0, "fp32", "f", normalisation=((0.5,), (0.2,)))
    record = {"key": cell_key(cell), "spec": json.loads(json.dumps(cell.spec()))}
    assert cell_key(cell_of(record)) == cell_key(cell)
    with pytest.raises(StoreError, match="trained by a version that trains differently"):
        cell_of({**record, "key": "0" * 20})
    with pytest.raises(StoreError, match="does not say how it was trained"):
        cell_of({**record, "spec": {**record["spec"], "invented": 1}})


def test_damaged_weights_and_scores_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = cell_key(trained(tmp_path, "timm:test_resnet"))
    scores = tmp_path / "predictions" / f"{key}.npz"
    scores.write_bytes(scores.read_bytes()[:100])
    assert explain(tmp_path, key) == 2
    assert f"delete {record_path(tmp_path, key)} and run again" in capsys.readouterr().err
    weights_path(tmp_path, key).write_bytes(b"no weights")
    assert explain(tmp_path, key) == 2
    assert f"{key}.safetensors is damaged" in capsys.readouterr().err


PLUGIN = """
import timm
from bench.registry import register_model

@register_model()
def my_vit(num_classes, in_chans, img_size):
    return timm.create_model("test_vit", num_classes=num_classes, in_chans=in_chans, img_size=img_size)
"""
TOML = """
plugins.paths = ["mine.py"]
[run]
data_root = "data"
[sweep]
models = "my_vit"
datasets = ["csv:cxr/labels.csv[label=finding]"]
resolutions = [32]
kinds = ["accuracy"]
recipe = "quick"
[recipe]
epochs = 1
batch_size = 16
"""


def test_a_run_is_explained_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its table, data root and plug-in were named relative to the folder it was started in."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (here / "cxr").mkdir(parents=True)
    (here / "data").mkdir()
    elsewhere.mkdir()
    rows = [f"{i}.png,{'abc'[i % 2]}" for i in range(60)]
    for i in range(60):
        Image.fromarray(np.full((40, 40), 60 * (i % 2) + i, np.uint8)).save(here / "cxr" / f"{i}.png")
    (here / "cxr" / "labels.csv").write_text("\n".join(["image,finding", *rows]))
    (here / "mine.py").write_text(PLUGIN)
    (here / "bench.toml").write_text(TOML)
    monkeypatch.chdir(here)
    loaded = config.load()
    plan = make_plan(loaded)
    ((key, cell),) = plan.cells.items()
    out = here / "run"
    result = run_accuracy(cell, Context("cpu", 1, None, None, out, lambda event: None, keep_weights=True))
    write(out, key, spec=cell.spec(), metrics=result.metrics, arrays=result.arrays)
    store.write_json(out / "run.json", run_info(loaded, plan, "bench run", {}))
    registry.models.forget(str(here / "mine.py"))  # as in a new process
    plugins._imported.clear()
    monkeypatch.chdir(elsewhere)
    assert explain(Path("..", "here", "run"), "all", "--images", 2, "--per-class", 1) == 0
    assert (out / "explain" / key / "explain.json").is_file() and Path.cwd() == elsewhere

    info = store.read_run(out)
    del info["folder"], info["plugin_base"]  # as versions before wrote it
    store.write_json(out / "run.json", info)
    monkeypatch.chdir(here)
    assert explain("run", "all", "--images", 2, "--per-class", 1) == 0
