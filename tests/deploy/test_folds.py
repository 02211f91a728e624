"""Folds of one seed are one exported model: every network, and the mean of their probabilities."""

import json

import numpy as np
import pytest

import bench
from bench.data.cache import load_dataset
from bench.metrics.calibration import temperature, youden
from bench.record import store
from bench.record.paths import predictions_path, weights_path
from tests.runner.runs import PLUGIN, here


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Two folds of a small network, two seeds, and their export."""
    folder = tmp_path_factory.mktemp("folds")
    (folder / "bench.toml").write_text(f'[plugins]\npaths = ["{PLUGIN}"]\n[run]\nthreads = 1\n')
    arguments = ["--models", "place_plain", "--datasets", "place_data", "--resolutions", 28, "--kinds", "accuracy"]
    arguments += ["--recipe", "quick", "--epochs", 3, "--folds", 2, "--seeds", "0,1", "--keep-weights", "--out", "run"]
    code, said = here(folder, "run", *arguments)
    assert code == 0, said
    code, said = here(folder, "export-model", "run", "place_plain", "--out", "model")
    assert code == 0, said
    return folder


def test_every_fold_of_the_best_seed_is_in_it(exported):
    bundle = json.loads((exported / "model" / "model.json").read_text())
    records = {r["key"]: r for r in store.read_records(exported / "run")[0]}
    members = [records[member["key"]] for member in bundle["members"]]
    assert [r["spec"]["fold"] for r in members] == [0, 1] and len({r["spec"]["seed"] for r in members}) == 1
    best = max(records.values(), key=lambda r: (r["metrics"]["val_auc"], -r["spec"]["seed"]))
    assert members[0]["spec"]["seed"] == best["spec"]["seed"]
    for member in bundle["members"]:
        kept = weights_path(exported / "run", member["key"]).read_bytes()
        assert (exported / "model" / member["weights"]).read_bytes() == kept
    card = (exported / "model" / "README.md").read_text()
    assert all(f"Cell {r['key']}: seed {r['spec']['seed']}, fold {r['spec']['fold']}" in card for r in members)


def test_probabilities_are_the_mean_of_the_folds_and_the_threshold_is_of_all_their_validation_images(
    exported, monkeypatch
):
    monkeypatch.setenv("MEDBENCH_CACHE", str(exported / "cache"))
    model = bench.load_model(exported / "model", engine="torch")
    images = np.asarray(load_dataset("place_data", size=28).test.images)
    single = [scorer(images) for scorer in model._scorers]
    assert len(single) == 2 and not np.allclose(single[0], single[1])
    assert np.array_equal(model.scores(images), np.mean(single, axis=0))
    stored = [np.load(predictions_path(exported / "run", m.key)) for m in model.bundle.members]
    scores, labels = (np.concatenate([file[name] for file in stored]) for name in ("val_scores", "val_labels"))
    assert model.bundle.thresholds == pytest.approx([youden(scores[:, 1], np.ravel(labels))])
    assert model.bundle.temperature == pytest.approx(temperature(scores, labels))


def test_predict_uses_all_folds(exported):
    code, said = here(exported, "predict", "model", "place_data", "--out", "scores.csv")
    assert code == 0, said
    assert len((exported / "scores.csv").read_text().splitlines()) == 13


def test_a_fold_that_is_missing_is_named(exported):
    record = next(r for r in store.read_records(exported / "run")[0])
    path = exported / "run" / "cells" / f"{record['key']}.json"
    content = path.read_bytes()
    others = [p for p in path.parent.glob("*.json") if p != path]
    seeds = {p: json.loads(p.read_text())["spec"]["seed"] for p in others}
    gone = [p for p, seed in seeds.items() if seed != record["spec"]["seed"]]
    kept = {p: p.read_bytes() for p in (path, *gone)}
    for p in kept:
        p.unlink()
    try:
        code, said = here(exported, "export-model", "run", "place_plain", "--out", "half")
    finally:
        for p, text in kept.items():
            p.write_bytes(text)
    assert code == 2 and "1 of 2 folds are done" in said and content
