"""Cross-validation on boards: means over folds, images together, and Nadeau and Bengio's test between models."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from bench.report.build import Report

FOLDS = 4


def fill(run: Any, models: dict[str, float], lost: tuple[str, int] | None = None) -> dict[str, list[Any]]:
    """Scores and labels of every fold of each model; folds differ in size."""
    found: dict[str, list[Any]] = {}
    for number, (model, sharp) in enumerate(models.items()):
        generator = np.random.default_rng(number)
        for fold in range(FOLDS):
            labels = np.arange(40 + fold) % 2
            scores, val = (1 / (1 + np.exp(-generator.normal(sharp * labels, 1))) for _ in range(2))
            found.setdefault(model, []).append((scores, labels))
            if lost == (model, fold):
                continue
            made = run.accuracy(
                model, "set0", scores=scores, labels=labels, of={"fold": fold, "folds": FOLDS},
                classes=["no", "yes"], positive_class="yes", positive_class_guessed=False, test_sensitivity=0.5,
            )  # fmt: skip
            patients = np.array([f"{fold} {i // 2}" for i in range(len(labels))])
            run.arrays[made["key"]] |= {"val_scores": val, "val_labels": labels, "test_patients": patients}
            if fold:  # in the first fold nothing stands in this column, so it was not saved
                run.arrays[made["key"]]["test_group_died"] = np.array(["yes", ""] * len(labels))[: len(labels)]
    return found


def test_a_row_is_the_mean_of_its_folds_and_pairs_are_tested_over_folds(run: Any, tmp_path: Path) -> None:
    found = fill(run, {"a": 2.0, "b": 0.8})
    run.write(tmp_path)
    report = Report(run.records, {}, tmp_path / "predictions")
    assert len(report.rows) == 2 and not report.problems
    areas = {m: np.array([roc_auc_score(y, s) for s, y in folds]) for m, folds in found.items()}
    a = min(report.rows, key=lambda row: row.model)
    assert a.mean("test_auc") == pytest.approx(areas["a"].mean()) and (a.folds, a.seeds) == (FOLDS, 1)
    assert a.evidence is not None and a.evidence.images == "166 images of 84 patients"
    assert a.evidence.columns["died"].tolist()[:41] == [""] * 40 + ["yes"]
    apart = areas["a"] - areas["b"]
    p = 2 * t.sf(apart.mean() / np.sqrt((1 / FOLDS + 1 / (FOLDS - 1)) * apart.var(ddof=1)), FOLDS - 1)
    (test,) = report.boards[0].significance.datasets["auc"].values()
    assert test.others[0].model == "b" and test.others[0].p == pytest.approx(p)
    together = roc_auc_score(np.concatenate([y for _, y in found["b"]]), np.concatenate([s for s, _ in found["b"]]))
    text = "\n".join(str(block) for section in report.sections for block in section.blocks)
    assert f"'{together:.3f}'" in text and f"'{areas['b'].mean():.3f}'" in text
    assert "4 folds of all images" in text and "sensitivity at Youden, images together (yes)" in text
    report.write(tmp_path)
    line = next(csv.DictReader((tmp_path / "leaderboard_accuracy.csv").open()))
    assert (line["seeds"], line["folds"], line["n_test"]) == ("1", "4", "166")


def test_a_seed_without_all_folds_has_no_mean_and_says_so(run: Any, tmp_path: Path) -> None:
    fill(run, {"a": 2.0, "b": 0.8}, lost=("b", 2))
    run.write(tmp_path)
    report = Report(run.records, {}, tmp_path / "predictions")
    a, b = sorted(report.rows, key=lambda row: row.model)
    assert a.mean("test_auc") is not None and b.mean("test_auc") is None
    assert report.problems == ["b on set0: no seed has all 4 folds; no interval is given"]
