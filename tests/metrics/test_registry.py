"""A plug-in's metric end to end: trained, recorded, on the board, ranked, compared and checked; and what is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.metrics import register_metric, registry
from bench.record import store
from bench.registry import RegistryError
from bench.report.build import rebuild

HERE = Path(__file__).parent


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=folder, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with a finished run ``a``: two models, two seeds."""
    path = tmp_path_factory.mktemp("user")
    shutil.copy(HERE / "metric_plugin.py", path / "mine.py")
    (path / "bench.toml").write_text(
        '[plugins]\npaths = ["mine.py"]\n'
        '[sweep]\nmodels = "small"\ndatasets = "little"\nresolutions = [28]\nrecipe = "quick"\nepochs = 1\n'
        'seeds = [0, 1]\nkinds = ["accuracy"]\n[run]\nthreads = 1\ndownload = false\n'
    )
    done = bench(path, "run", "--out", "a")
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def of_records(run: Path) -> dict[str, list[float]]:
    """Model -> its worst miss of each seed, recomputed from the saved scores."""
    found: dict[str, list[float]] = {}
    for record in store.read_records(run)[0]:
        with np.load(run / "predictions" / f"{record['key']}.npz") as file:
            scores, labels = file["test_scores"], file["test_labels"].reshape(-1)
        value = max(1 - scores[i, label] for i, label in enumerate(labels))
        assert record["metrics"]["test_worst_miss"] == pytest.approx(value, rel=1e-12)
        found.setdefault(record["spec"]["model"], []).append(value)
    return found


def test_it_is_recorded_shown_and_ranked_without_the_plug_in(folder: Path) -> None:
    assert "worst_miss" not in registry.METRICS  # the board is made by this process, which has not loaded the plug-in
    means = {model: float(np.mean(values)) for model, values in of_records(folder / "a").items()}
    rebuild(folder / "a", figures=False)
    text = (folder / "a" / "LEADERBOARD.md").read_text()
    (table,) = [part for part in text.split("\n## ") if part.startswith("worst miss: ")]
    first = table[table.index("| ") :].partition("\n\n")[0]  # details follow
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in first.splitlines() if "---" not in line]
    heading, *lines = rows
    best = sorted(means, key=lambda model: means[model])  # lower is better
    assert [dict(zip(heading, line, strict=True))["model"] for line in lines] == best
    assert [dict(zip(heading, line, strict=True))["worst miss"] for line in lines] == [f"{means[m]:.2f}" for m in best]
    assert "significantly worse" in heading and "trainings" in table  # tested over the two seeds
    main = text.split("\n## Accuracy")[1]
    assert "| worst miss |" in main.split("\n\n")[2]
    assert "test_worst_miss_sd" in (folder / "a" / "leaderboard_accuracy.csv").read_text().splitlines()[0]
    assert '"label":"worst miss"' in (folder / "a" / "report.html").read_text()


def test_a_function_that_fails_costs_only_its_own_figure(folder: Path) -> None:
    for record in store.read_records(folder / "a")[0]:
        assert record["status"] == "ok" and record["metrics"]["test_broken"] is None
        log = (folder / "a" / "logs" / f"{record['key']}.log").read_text()
        assert "metric 'broken' failed and is left empty: ZeroDivisionError: planted" in log


def test_it_is_gated_and_compared(folder: Path) -> None:
    assert bench(folder, "baseline", "a", "--out", "base.json").returncode == 0
    same = bench(folder, "check", "a", "--baseline", "base.json", "--json", "same.json")
    assert same.returncode == 0, same.stdout
    (folder / "b").exists() or shutil.copytree(folder / "a", folder / "b")
    for path in (folder / "b" / "cells").glob("*.json"):
        record = json.loads(path.read_text())
        record["metrics"]["test_worst_miss"] += 0.3 + 0.001 * record["spec"]["seed"]
        path.write_text(json.dumps(record))
    worse = bench(folder, "check", "b", "--baseline", "base.json", "--json", "worse.json")
    assert worse.returncode == 1, worse.stdout
    found = [f for f in json.loads((folder / "worse.json").read_text())["findings"] if f["outcome"] == "regression"]
    assert {f["check"] for f in found} == {"worst miss"} and len(found) == 2
    assert all(f["message"].startswith("worst miss rose by 0.30") for f in found)
    compared = bench(folder, "compare", "a", "b", "--json", "compared.json")
    assert compared.returncode == 0, compared.stderr
    rows = [r for r in json.loads((folder / "compared.json").read_text())["accuracy"] if r["metric"] == "worst_miss"]
    assert len(rows) == 2


def test_a_metric_that_is_no_longer_recorded_is_missed(folder: Path) -> None:
    bench(folder, "baseline", "a", "--out", "base.json")
    shutil.copytree(folder / "a", folder / "c")
    for path in (folder / "c" / "cells").glob("*.json"):
        record = json.loads(path.read_text())
        del record["metrics"]["test_worst_miss"]
        path.write_text(json.dumps(record))
    assert bench(folder, "check", "c", "--baseline", "base.json", "--json", "lost.json").returncode == 4
    absent = [f for f in json.loads((folder / "lost.json").read_text())["findings"] if f["outcome"] == "absent"]
    assert len(absent) == 4
    assert all("did not record worst miss; run it with the plug-in" in finding["message"] for finding in absent)


@pytest.mark.parametrize(
    ("name", "said"), [("auc", "is a metric of medbench"), ("Mine!", "lower-case"), ("confusion", "is a metric of med")]
)
def test_a_name_that_cannot_be_used_is_refused(name: str, said: str) -> None:
    with pytest.raises(RegistryError, match=said):
        register_metric(name)(lambda labels, scores, task: 0.0)
