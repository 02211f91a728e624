"""Which weights stay when a run ends: real runs of networks that train in no time."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from bench.deploy import kept
from bench.deploy.bundle import DeployError
from bench.deploy.which import members_of
from bench.plan.plan import make_plan
from bench.record import store
from bench.record.paths import predictions_path, weights_path
from bench.record.store import StoreError
from bench.report.build import read_report
from bench.sweep.config import load
from tests.runner.runs import here

PLUGIN = """
import numpy as np
from torch import nn

from bench.registry import Split, register_dataset, register_model


@register_model(family="mine")
def good(num_classes, in_chans, img_size):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(in_chans, num_classes))


@register_model(family="mine")
def blind(num_classes, in_chans, img_size):
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(in_chans, num_classes)

        def forward(self, x):
            return self.head(0 * x.mean((2, 3)))

    return Blind()


class Bright:
    def __init__(self, info): ...
    def files(self, size): return ()
    def fingerprint(self, size, root): return "1"
    def load(self, size, root):
        labels = np.arange(60) % 2
        pixels = np.random.default_rng(0).integers(0, 120, (60, size, size, 1)).astype(np.uint8)
        pixels += (100 * labels).astype(np.uint8)[:, None, None, None]
        parts = {"train": slice(0, 30), "val": slice(30, 44), "test": slice(44, 60)}
        return {name: Split(pixels[part], labels[part]) for name, part in parts.items()}


for name in ("bright", "also"):
    register_dataset(name, task="binary-class", classes=("dark", "light"), channels=1, sizes=(28,))(Bright)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where both networks were run on both datasets: ``run``, and ``said``, what the command printed."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "bench.toml").write_text('[plugins]\npaths = ["mine.py"]\n[run]\nthreads = 1\n')
    (folder / "said").write_text(_run(folder, "run", "--seeds", "0"))
    return folder


def _run(folder: Path, out: str, *arguments: str, datasets: str = "bright,also", side: int = 28) -> str:
    always = ["--models", "good,blind", "--datasets", datasets, "--resolutions", str(side), "--kinds", "accuracy"]
    code, said = here(folder, "run", *always, "--recipe", "quick", "--out", out, *arguments)
    assert code == 0, said
    return str(said)


def _there(out: Path) -> list[tuple[str, str]]:
    """Model and dataset of all weights that lie there."""
    weights = {path.stem for path in (out / "weights").glob("*.safetensors")}
    return sorted((r["spec"]["model"], r["spec"]["dataset"]) for r in store.read_records(out)[0] if r["key"] in weights)


def test_the_recommended_model_stays_on_all_datasets_and_can_be_exported(folder: Path) -> None:
    said = (folder / "said").read_text()
    line = re.search(r"Weights of good are kept \(2 cells, .*\. Next: bench (.*)", said)
    assert line and line[1].strip() == "export-model run --dataset also", said
    assert _there(folder / "run") == [("good", "also"), ("good", "bright")]
    code, exported = here(folder, *line[1].split(), "--out", "model", "--no-onnx")
    assert code == 0, exported
    assert json.loads((folder / "model" / "model.json").read_text())["dataset"] == "also"


def test_a_model_whose_label_names_its_version_stays(folder: Path, tmp_path: Path) -> None:
    """Two versions of a plug-in in one run: the board calls their networks ``good (1a2b)`` and ``good (ffff)``."""
    out = shutil.copytree(folder / "run", tmp_path / "run")
    for record in store.read_records(out)[0]:
        if record["spec"]["model"] != "good":
            continue
        key = record["key"][::-1]
        later = {**record, "key": key, "spec": {**record["spec"], "model_plugin_sha256": "f" * 64}}
        with np.load(predictions_path(out, record["key"])) as arrays:
            store.write_record(out, later, {**arrays, "test_scores": arrays["test_scores"][::-1]})
        weights_path(out, key).write_bytes(weights_path(out, record["key"]).read_bytes())
        kept.note_unasked(out, {key}, ())
    line = kept.keep_recommended(out, read_report(out)[0])
    assert re.match(r"Weights of good \([0-9a-f]{8}\) are kept \(2 cells, ", line), line
    assert _there(out) == [("good", "also"), ("good", "bright")]
    assert len(members_of(out, dataset="also")) == 1


def test_each_board_keeps_its_own_pick(folder: Path) -> None:
    """Sets of different sizes share no board: a user's own set is not dropped for the one on the first board."""
    said = _run(folder, "apart", datasets="bright,phantom_local[train=40]", side=32)
    assert " are kept (2 cells, " in said and {dataset for _, dataset in _there(folder / "apart")} == {
        "bright", "phantom_local[train=40]"}  # fmt: skip
    for dataset in ("bright", "phantom_local[train=40]"):
        [record] = members_of(folder / "apart", dataset=dataset)
        assert record["spec"]["dataset"] == dataset
    with pytest.raises(DeployError, match=r"has no result on nothing; datasets: bright, phantom_local\[train=40\]"):
        members_of(folder / "apart", dataset="nothing")


def test_where_no_weights_lie_the_command_that_keeps_them_is_said(folder: Path, tmp_path: Path) -> None:
    """Not first which of two datasets is meant, then that neither has weights."""
    out = shutil.copytree(folder / "run", tmp_path / "run", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(StoreError, match=r"were not kept; to train again and keep them: bench run --models good,.*"):
        members_of(out)
    [record] = [r for r in store.read_records(folder / "run")[0] if r["spec"]["model"] == "good"][:1]
    weights_path(out, record["key"]).write_bytes(b"")
    assert [r["key"] for r in members_of(out)] == [record["key"]], "the one whose weights are there"


def test_what_was_asked_for_stays(folder: Path, tmp_path: Path) -> None:
    """Also what a later command asks for: weights that were not kept are trained again."""
    out = shutil.copytree(folder / "run", tmp_path / "run")
    _run(folder, str(out), "--keep-weights")
    _run(folder, str(out), "--seeds", "1")
    every = [(model, dataset) for model in ("blind", "good") for dataset in ("also", "bright")]
    assert _there(out) == sorted([*every, ("good", "also"), ("good", "bright")])


def test_unasked_weights_have_a_limit_and_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"sweep.models": "resnet18", "sweep.datasets": "phantom_local", "sweep.resolutions": "32",
             "sweep.seeds": "0,1", "run.device": "cpu"}  # fmt: skip
    plan = make_plan(load(None, None, flags))
    trainings = {key for key, cell in plan.cells.items() if cell.kind == "accuracy"}
    first = min(trainings)
    assert load(None, None, flags).sweep.run.keep_weights == "recommended"
    assert kept.unasked(plan, {first}, plan.cells.keys(), "recommended") == trainings - {first}
    assert kept.unasked(plan, set(), {first}, "recommended") == {first}
    assert not kept.unasked(plan, set(), plan.cells.keys(), False)
    monkeypatch.setattr(kept, "MOST_BYTES", 60 << 20)  # two of resnet18 are 89 MiB
    assert not kept.unasked(plan, set(), plan.cells.keys(), "recommended")
