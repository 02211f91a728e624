"""Subgroups and shortcuts on made-up scores, against scikit-learn and DeLong's variance of separate groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import roc_auc_score

from bench.metrics.operating import YOUDEN
from bench.report.build import Report
from bench.report.clinical.shortcuts import shortcuts
from bench.report.clinical.subgroups import by_value, gaps
from bench.report.rows import Row


def made(run: Any, tmp_path: Path, of_view: float, of_label: float, patients: bool = False) -> tuple[Report, Row, Any]:
    """One model whose score follows the view and the label as told; view goes with the label."""
    generator = np.random.default_rng(3)
    labels = np.repeat([0, 1], 150)
    view = np.where(generator.random(300) < 0.85, labels, 1 - labels)
    sex = generator.integers(0, 2, 300)
    logits = of_view * view + of_label * labels + generator.normal(size=300)
    scores = 1 / (1 + np.exp(-logits))
    arrays = {
        "val_scores": scores, "val_labels": labels, "test_group_view": np.array(["pa", "ap"])[view],
        "test_group_sex": np.array(["F", "M"])[sex], "test_group_age": (20 + np.arange(300) % 60).astype(str),
    }  # fmt: skip
    if patients:
        arrays["test_patients"] = np.array([f"p{i // 3}" for i in range(300)])
    record = run.accuracy(
        "net", "set0", scores=scores, labels=labels, classes=["no_icu", "icu"], positive_class="icu",
        positive_class_guessed=False, test_sensitivity=0.5, subgroups=["sex", "age"],
    )  # fmt: skip
    run.arrays[record["key"]] |= arrays
    run.write(tmp_path)
    report = Report(run.records, {}, tmp_path / "predictions")
    return report, report.rows[0], (scores, labels, view, sex)


def text_of(report: Report) -> str:
    return "\n".join(str(block) for section in report.sections for block in section.blocks)


def test_a_model_that_learned_the_view_is_warned_of_on_top(run: Any, tmp_path: Path) -> None:
    report, row, (scores, labels, view, _) = made(run, tmp_path, of_view=3.0, of_label=0.0)
    (found,) = [s for s in shortcuts(row) if s.column == "view"]
    within = [roc_auc_score(view[labels == k], scores[labels == k]) for k in (0, 1)]
    pairs = [(view[labels == k] == 0).sum() * (view[labels == k] == 1).sum() for k in (0, 1)]
    assert found.learned == pytest.approx(np.average(within, weights=pairs))
    assert found.alone == pytest.approx(roc_auc_score(labels, view))
    assert found.label == pytest.approx(roc_auc_score(labels, scores))
    strata = [roc_auc_score(labels[view == v], scores[view == v]) for v in (0, 1)]
    pairs = [(labels[view == v] == 0).sum() * (labels[view == v] == 1).sum() for v in (0, 1)]
    assert found.within == pytest.approx(np.average(strata, weights=pairs))
    top = str(report.sections[0].blocks[0])
    assert "Shortcut: `net` on `set0`: its score tells `view` ap within a class" in top
    assert f"AUC of the label is {found.within:.3f} within `view`" in top


def test_a_model_that_learned_the_disease_is_not(run: Any, tmp_path: Path) -> None:
    report, row, _ = made(run, tmp_path, of_view=0.0, of_label=3.0)
    assert not [s for s in shortcuts(row) if s.warns]
    assert "Shortcut:" not in text_of(report) and "Shortcuts (AUCs on the test images, `net`)" in text_of(report)


def test_each_group_has_its_own_auc_and_the_gap_is_delongs_of_two_groups(run: Any, tmp_path: Path) -> None:
    report, row, (scores, labels, _, sex) = made(run, tmp_path, of_view=0.5, of_label=1.0)
    text = text_of(report)
    areas = []
    for k, name in enumerate("FM"):
        areas.append(roc_auc_score(labels[sex == k], scores[sex == k]))
        assert f"'sex {name}', '{(sex == k).sum()}'" in text and f"'{areas[k]:.3f}'" in text
    assert "'age below 40'" in text and "'age 60 and above'" in text
    (gap,) = [g for g in gaps(row, YOUDEN) if g.column == "sex" and g.figure == "AUC"]
    assert gap.difference == pytest.approx(abs(areas[0] - areas[1]))
    variance, least = 0.0, 10**9
    for k in (0, 1):
        positive, negative = scores[(sex == k) & (labels == 1)], scores[(sex == k) & (labels == 0)]
        wins = (positive[:, None] > negative).astype(float)
        variance += wins.mean(1).var(ddof=1) / len(positive) + wins.mean(0).var(ddof=1) / len(negative)
        least = min(least, len(positive), len(negative))
    assert gap.p == pytest.approx(2 * t.sf(gap.difference / variance**0.5, least - 1))
    assert "Largest gaps of `net`: AUC" in text


def test_groups_with_few_images_say_so_and_patients_are_counted(run: Any, tmp_path: Path) -> None:
    _, row, _ = made(run, tmp_path, of_view=0.5, of_label=1.0, patients=True)
    assert row.evidence is not None
    where = np.array(["F"] * 6 + ["M"] * 294)
    run.arrays[run.records[0]["key"]]["test_group_sex"] = where
    run.write(tmp_path)
    text = text_of(Report(run.records, {}, tmp_path / "predictions"))
    assert "'sex F', '6', '2', '0.0 %', 'too small'" in text
    assert "Test: 300 images of 100 patients" in text


def test_numbers_are_binned_at_their_terciles_and_gaps_are_a_group() -> None:
    names, where = by_value(np.array([str(n) for n in range(30)] + ["", ""]))
    assert names == ["below 10", "10 to below 20", "20 and above", "not stated"]
    np.testing.assert_array_equal(np.bincount(where), [10, 10, 10, 2])
    names, where = by_value(np.array(["b", "", "a", "b"]))
    assert names == ["a", "b", "not stated"] and where.tolist() == [1, 2, 0, 1]
