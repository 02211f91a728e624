"""`bench score`: others' predictions give their own figures, a board, and the tests of our own runs; without torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from bench.cli.main import main
from bench.errors import StoreError
from bench.metrics.classification import classification_metrics
from bench.metrics.resampled import figures
from bench.record import store
from bench.score.judge import bootstrapped, score
from bench.score.run import write_run

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT.parent / "shared" / "data" / "published_predictions"
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"needs the published predictions in {PUBLISHED}")
# What the authors state: AUC from a single-precision softmax, and ACC.
RESNET18 = {0: (0.8668546, 0.808), 1: (0.8627820, 0.795), 2: (0.8908730, 0.814)}


def judged(*arguments: object, out: Path) -> dict:
    assert main(["score", *map(str, arguments), "--out", str(out), "--json", str(out / "v.json")]) == 0
    return json.loads((out / "v.json").read_text())


def metrics_of(out: Path) -> dict:
    records, problems = store.read_records(out)
    assert not problems
    return {(r["spec"]["model"], r["spec"]["seed"]): r["metrics"] for r in records}


@needs_published
def test_the_published_resnet18_to_the_digit(tmp_path, capsys):
    files = [PUBLISHED / f"breastmnist_resnet18_s28/seed{seed}.csv" for seed in RESNET18]
    judged(*files, "--single-precision", out=tmp_path / "single")
    for (_, seed), metrics in metrics_of(tmp_path / "single").items():
        auc, acc = RESNET18[seed]
        assert round(metrics["test_auc"], 7) == auc and round(metrics["test_acc"], 3) == acc
    # What the files say with all their digits, and what single precision made of it.
    capsys.readouterr()
    judged(*files, out=tmp_path / "double")
    aucs = [metrics["test_auc"] for metrics in metrics_of(tmp_path / "double").values()]
    assert sorted(round(auc, 4) for auc in aucs) == [0.8628, 0.8668, 0.8918]
    assert "a single-precision softmax of the same log-odds gives 0.8909 instead of 0.8918" in capsys.readouterr().out


@needs_published
def test_six_models_on_breastmnist(tmp_path):
    folder = PUBLISHED / "ensembles/breastmnist"
    truth = np.load(folder / "y_true_flat.npy")
    files = sorted(folder.glob("*_test_preds.npy"))
    found = judged(*files, "--labels", folder / "y_true_flat.npy", "--dataset", "breastmnist", out=tmp_path / "r")
    assert set(found) == {"models", "pairs"} and len(found["models"]) == 6 and len(found["pairs"]) % 15 == 0
    accs = {p["b"]: p for p in found["pairs"] if p["metric"] == "acc" and p["a"] == "EfficientNetV2M"}
    pair = accs["SoftVoting"]
    assert set(pair) == {"a", "b", "metric", "difference", "low", "high", "p", "p_corrected"}
    assert pair["p"] == pytest.approx(binomtest(1, 11).pvalue) and round(pair["p"], 4) == 0.0117
    assert pair["p_corrected"] > 0.05  # "92.95 % beats 87.18 %" is one of 15 pairs
    assert pair["difference"] == pytest.approx(0.8718 - 0.9295, abs=5e-5)
    for file in files:
        name, scores = file.name.removesuffix("_test_preds.npy"), np.load(file)
        auc = found["models"][name]["auc"]
        assert auc["value"] == pytest.approx(roc_auc_score(truth, scores[:, 1]), abs=1e-12)
        assert auc["low"] < auc["value"] < auc["high"]
        assert set(auc) == {"value", "low", "high"}


@needs_published
def test_intervals_cover_the_spread_between_seeds(tmp_path):
    """ResNet-50 on DermaMNIST at 224 px: ACC 0.8823, 0.8544, 0.8399; an interval over images alone is +-0.015."""
    files = [f for name in ("baseline_resnet_derma", "res224", "res224_tta", "tta")
             for f in sorted((PUBLISHED / "dermamnist_3seeds").glob(f"{name}_seed*.npz"))]  # fmt: skip
    found = judged(*files, "--dataset", "dermamnist", out=tmp_path / "r")
    accs = [m["test_acc"] for (model, _), m in metrics_of(tmp_path / "r").items() if model == "res224"]
    assert max(accs) - min(accs) == pytest.approx(0.042, abs=5e-4)
    acc = found["models"]["res224"]["acc"]
    assert acc["low"] < min(accs) and max(accs) < acc["high"]
    pairs = {(p["a"], p["b"], p["metric"]): p for p in found["pairs"]}
    assert pairs["baseline_resnet_derma", "res224", "auc"]["p_corrected"] < 0.001
    flips = pairs["res224", "res224_tta", "acc"]
    assert flips["difference"] < 0 and flips["low"] < 0 < flips["high"]  # small beside the spread of trainings


@needs_published
def test_our_own_runs_are_opponents_on_the_same_images(tmp_path, capsys):
    files = [PUBLISHED / f"breastmnist_resnet18_s28/seed{seed}.csv" for seed in RESNET18]
    found = judged(*files, "--beside", ROOT / "results/breast-retina", out=tmp_path / "r")
    ours = "resnet18 (breast-retina, 64)"
    records, _ = store.read_records(ROOT / "results/breast-retina")
    aucs = [r["metrics"]["test_auc"] for r in records if r["kind"] == "accuracy" and r["spec"]["model"] == "resnet18"
            and r["spec"]["dataset"] == "breastmnist" and r["spec"]["resolution"] == 64]  # fmt: skip
    assert found["models"][ours]["auc"]["value"] == pytest.approx(np.mean(aucs), abs=1e-9)
    assert any({p["a"], p["b"]} == {"breastmnist_resnet18_s28", ours} for p in found["pairs"])
    assert "on the same test images" in capsys.readouterr().out
    board = (tmp_path / "r/LEADERBOARD.md").read_text()
    assert f"`{ours}`" in board and "scores from files, trained elsewhere" in board
    assert "their protocol is not that of the other files" in board and "instead of 0.8918" in board
    assert "Published figures" not in board  # the protocol of scores from files is unknown


def predictions(folder: Path, seed: int, n: int = 60) -> Path:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    p = np.clip(0.35 + 0.3 * labels + rng.normal(0, 0.2, n), 0.01, 0.99)
    path = folder / f"net{seed % 10}_seed{seed // 10}.csv"
    path.write_text(
        "id,label,score\n"
        + "".join(f"{i},{y},{s!r}\n" for i, (y, s) in enumerate(zip(labels, p.tolist(), strict=True)))
    )
    return path


def test_the_run_directory_is_an_ordinary_one(tmp_path, capsys):
    files = [predictions(tmp_path, seed) for seed in (1, 11, 2, 12)]
    judged(*files, out=tmp_path / "r")
    run = str(tmp_path / "r")
    for command in (
        ["leaderboard", run], ["report", run, "--no-figures"], ["baseline", run, "--out", str(tmp_path / "b.json")],
        ["check", run, "--baseline", str(tmp_path / "b.json")], ["compare", f"{run}:net1", f"{run}:net2"],
        ["export", run, str(tmp_path / "r.csv")], ["merge", str(tmp_path / "merged"), run],
    ):  # fmt: skip
        assert main(command) == 0, command
    text = capsys.readouterr().out
    assert "0 px" not in text and "None" not in text
    assert len(store.read_records(tmp_path / "merged")[0]) == 4
    # The same again replaces; a run of `bench run` is refused.
    judged(*files, out=tmp_path / "r")
    assert len(store.read_records(tmp_path / "r")[0]) == 4
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/run.json").write_text('{"command": "bench run"}')
    with pytest.raises(StoreError, match="is a run of `bench run`; scores of others go into a directory of their own"):
        score([str(files[0])], None, out=tmp_path / "ours")
    assert main(["score", str(files[0]), "--beside", run.replace("/r", "/none")]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_one_directory_holds_several_test_sets_and_each_once(tmp_path, capsys):
    files = [predictions(tmp_path, seed) for seed in (1, 2)]
    for dataset in ("ward7", "ward9"):
        judged(*files, "--dataset", dataset, out=tmp_path / "r")
    assert len(store.read_records(tmp_path / "r")[0]) == 4
    assert "Mean over 2 datasets (ward7, ward9)" in capsys.readouterr().out
    found = judged(files[0], "--dataset", "ward7", out=tmp_path / "r")
    assert len(store.read_records(tmp_path / "r")[0]) == 3 and set(found["models"]) == {"net1"}
    assert "1 earlier result on ward7; other datasets stay" in capsys.readouterr().out
    assert len(list((tmp_path / "r/predictions").iterdir())) == 3


def test_worse_scores_fail_the_check(tmp_path):
    files = [predictions(tmp_path, seed, n=400) for seed in (1, 11)]
    judged(*files, out=tmp_path / "a")
    assert main(["baseline", str(tmp_path / "a"), "--out", str(tmp_path / "b.json")]) == 0
    for file in files:
        rows = [line.split(",") for line in file.read_text().splitlines()[1:]]
        file.write_text("id,label,score\n" + "".join(f"{i},{y},{1 - float(s)}\n" for i, y, s in rows))
    judged(*files, out=tmp_path / "c")
    assert main(["check", str(tmp_path / "c"), "--baseline", str(tmp_path / "b.json")]) == 1


def test_a_file_that_cannot_be_used_writes_nothing(tmp_path, capsys):
    assert main(["score", str(tmp_path / "none.csv"), "--out", str(tmp_path / "r")]) == 2
    assert "none.csv: there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_writing_needs_a_place(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="a file, not a run directory"):
        score([str(predictions(tmp_path, 1))], None, out=tmp_path / "file" / "r")
    assert callable(write_run)


# Everything of the training stack is out of reach, as in an installation without the extra `train`.
BLOCKED = """
import json, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "timm", "fvcore", "medmnist", "datasets", "safetensors",
                                  "pandas", "matplotlib", "PIL", "requests", "pynvml", "pyarrow"}:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)
sys.meta_path.insert(0, Block())
from bench.cli.main import main
codes = [main(command) for command in json.loads(sys.argv[1])]
assert not [n for n in sys.modules if n.split(".")[0] in ("torch", "timm", "fvcore")]
print("codes", *codes)
"""


def blocked(*commands: list[str]) -> tuple[str, str]:
    """What the commands print and say, all in one process without the training stack; ends with their exit codes."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", BLOCKED, json.dumps(commands)]
    ran = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout, ran.stderr


def test_without_torch_and_the_training_stack(tmp_path):
    files = [str(predictions(tmp_path, seed)) for seed in (1, 2)]
    run, packed = str(tmp_path / "r"), str(tmp_path / "r.medbench.zip")
    said, errors = blocked(
        ["score", *files, "--out", run, "--json", str(tmp_path / "v.json")], ["leaderboard", run],
        ["compare", f"{run}:net1", f"{run}:net2"], ["list", "models"], ["claims"],
        ["submit", run, "--author", "me", "--out", packed], ["verify", packed],
        ["run", "--models", "resnet18", "--datasets", "breastmnist", "--out", str(tmp_path / "t"), "--epochs", "1"],
        ["report", run],
    )  # fmt: skip
    assert said.splitlines()[-1] == "codes 0 0 0 0 0 0 0 2 2", said + errors
    assert "pip install 'medbench[train]'" in errors and "pip install 'medbench[score]'" in errors
    assert (tmp_path / "r/report.html").is_file()


@pytest.mark.parametrize(("task", "classes"), [("binary-class", 2), ("multi-class", 4), ("multi-label", 3)])
def test_bootstrapped_metrics_are_those_of_the_record_on_every_resample(task, classes):
    """Weights of 1, and counts of a resample, against the recorded metrics of the repeated images."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (50, classes)) if task == "multi-label" else np.arange(50) % classes
    scores = rng.random((50, classes)) if task == "multi-label" else rng.dirichlet(np.ones(classes), 50)
    drawn = np.sort(rng.integers(0, 50, 50))
    weights = np.stack([np.ones(50), np.bincount(drawn, minlength=50)], axis=1).astype(np.float32)
    found = figures(labels, scores, task, 1, weights)
    for column, rows in ((0, np.arange(50)), (1, drawn)):
        stated = classification_metrics(labels[rows], scores[rows], task)
        stated["loss"] = stated["nll"]
        for name, values in found.items():
            assert values[column] == pytest.approx(stated[name], abs=1e-6), name
    (estimate,) = bootstrapped("x", labels, [[scores, scores[::-1]]], task, 1, None)
    assert set(estimate) == set(found) and all(e.variance >= e.over_images > 0 for e in estimate.values())


def test_every_figure_of_the_json_has_an_interval(tmp_path):
    found = judged(*[predictions(tmp_path, seed) for seed in (1, 11, 2)], out=tmp_path / "r")
    assert set(found["models"]["net1"]) >= {"auc", "acc", "balanced_acc", "f1_macro", "mcc", "ece", "brier", "auprc"}
    for figures_of in found["models"].values():
        for name, figure in figures_of.items():
            assert figure["low"] < figure["value"] < figure["high"], name
