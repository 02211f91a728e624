"""The baseline file: what it keeps, how small it is, and what it says when it is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from bench.cli.main import main
from bench.metrics.one_vs_rest import auc, correct
from bench.report.compare import snapshot
from bench.report.compare.scores import chosen, from_text, pack_scores, to_text


def class_scores(n: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=n)
    logits = generator.normal(size=(n, classes)) * 3 + 2 * np.eye(classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), labels


@pytest.mark.parametrize("classes", [2, 5, 11])
def test_packed_scores_give_the_same_auc_and_acc(classes: int):
    scores, labels = class_scores(1000, classes)
    packed = pack_scores("d", scores, labels)
    assert packed.log_odds.dtype == np.float16
    areas = [roc_auc_score(labels == k, scores[:, k]) for k in range(classes)]
    assert auc(packed.probabilities(), labels) == pytest.approx(np.mean(areas), abs=2e-5)
    assert correct(packed.probabilities(), labels).mean() == pytest.approx(correct(scores, labels).mean(), abs=1e-3)


def test_certain_scores_stay_in_order():
    scores = np.array([0.0, 1e-30, 1e-6, 0.5, 1 - 1e-6, 1 - 1e-9, 1.0])
    found = pack_scores("d", scores, np.array([0, 1, 0, 1, 0, 1, 1])).probabilities()[:, 0]
    assert (np.diff(found) > 0)[1:].all()  # 1e-30 and 0 are one; everything else keeps its place
    assert found[3] == 0.5
    with pytest.raises(ValueError, match="not between 0 and 1"):
        pack_scores("d", scores * 2, np.zeros(7, dtype=int))


def test_a_large_test_set_is_thinned_by_class_and_always_alike():
    labels = np.repeat([0, 1, 2], [9000, 980, 20])
    kept = chosen("d", labels, 1000)
    np.testing.assert_array_equal(kept, chosen("d", labels, 1000))
    assert not np.array_equal(kept, chosen("e", labels, 1000))
    np.testing.assert_array_equal(np.bincount(labels[kept]), [900, 98, 10])  # 1000 x share, no class below 10
    assert len(chosen("d", labels, 10_000)) == 10_000


def test_arrays_as_text():
    for array in (np.arange(6, dtype=np.int16).reshape(2, 3), np.linspace(-1, 1, 7).astype(np.float16)):
        again = from_text(json.loads(json.dumps(to_text(array))))
        assert again.dtype == array.dtype
        np.testing.assert_array_equal(again, array)
    text = to_text(np.zeros(4, dtype=np.float16))
    for wrong in (
        {**text, "shape": [5]},
        {**text, "shape": [10**12]},
        {**text, "dtype": "object"},
        {**text, "data": "?"},
        {**text, "data": to_text(np.zeros(400_000, dtype=np.float16))["data"]},  # more than it says
        {},
    ):
        with pytest.raises(ValueError):
            from_text(wrong)


@pytest.fixture
def whole_run(full_run: Any) -> Any:
    """The fixture's run without the records whose scores are not saved."""
    full_run.records = [
        r for r in full_run.records if r["status"] != "ok" or r["kind"] != "accuracy" or r["key"] in full_run.arrays
    ]
    return full_run


def test_a_file_is_read_as_the_run_it_came_from(whole_run: Any, tmp_path: Path):
    out, file = whole_run.write(tmp_path / "run"), tmp_path / "base.json"
    taken = snapshot.take(out)
    size = snapshot.write(taken, file)
    again = snapshot.read(file)
    assert size == file.stat().st_size
    assert snapshot.to_bytes(again) == file.read_bytes()
    assert [e.asked for e in again.entries] == [e.asked for e in taken.entries]
    for before, after in zip(taken.entries, again.entries, strict=True):
        assert (before.exact, before.speed, before.memory, before.status) == (
            after.exact, after.speed, after.memory, after.status,
        )  # fmt: skip
        if before.scores:
            np.testing.assert_array_equal(before.scores.log_odds, after.scores.log_odds)


def test_one_line_a_cell_and_few_bytes(whole_run: Any, tmp_path: Path):
    """git's diff is one line for a changed cell; scores cost 2 bytes an image and column before compression."""
    snapshot.write(snapshot.take(whole_run.write(tmp_path / "run")), tmp_path / "base.json")
    lines = (tmp_path / "base.json").read_text().splitlines()
    cells = [json.loads(line.rstrip(",")) for line in lines if line.startswith('{"kind"')]
    assert len(cells) == len(whole_run.records)
    two_classes = next(c for c in cells if c["asked"].get("dataset") == "breastmnist" and "scores" in c)
    assert len(two_classes["scores"]["data"]) < 1.3 * 2 * 156


def test_messages(whole_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, file = whole_run.write(tmp_path / "run"), tmp_path / "base.json"
    assert main(["baseline", str(out), "--out", str(file)]) == 0
    text = capsys.readouterr().out
    assert f"{file}: " in text
    assert "without a result: nothing of them can get worse" in text
    content = json.loads(file.read_text())
    for change, message in (
        ({"cells": [{"kind": "accuracy"}]}, "damaged (KeyError: 'asked')"),
        ({"test_sets": {}}, "damaged (KeyError"),
        ({"medbench_baseline": 2}, "its schema is 2, ours 1"),
    ):
        file.write_text(json.dumps({**content, **change}))
        with pytest.raises(snapshot.BaselineError, match="make it with `bench baseline RUN --out"):
            snapshot.read(file)
        assert main(["check", str(out), "--baseline", str(file)]) == 2
        assert message in capsys.readouterr().err
    next((out / "predictions").glob("*.npz")).unlink()
    assert main(["baseline", str(out), "--out", str(file)]) == 2
    assert "no baseline of a damaged run" in capsys.readouterr().err
    assert main(["baseline", str(tmp_path / "none"), "--out", str(file)]) == 2
    assert "is not a run directory" in capsys.readouterr().err
