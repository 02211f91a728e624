"""Operating points and calibration against scikit-learn, scipy, statsmodels and what the worker records."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, confusion_matrix, roc_curve
from statsmodels.stats.proportion import proportion_confint

from bench.metrics import calibration as module
from bench.metrics import classification
from bench.metrics.calibration import brier, clinical, ece, reliability, rescaled, temperature, wilson, youden


def binary(n: int, seed: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random(n) < 0.3).astype(int)
    return expit(sharpness * generator.normal(1.5 * labels - 0.75)), labels


def several(n: int, classes: int, seed: int, sharpness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=n)
    return softmax(sharpness * (generator.normal(size=(n, classes)) + np.eye(classes)[labels]), axis=1), labels


@pytest.mark.parametrize("decimals", [1, 12])  # 1: many equal scores
@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_is_where_scikit_learns_curve_is_farthest_from_chance(seed: int, decimals: int):
    scores, labels = binary(120, seed)
    scores = scores.round(decimals)
    false, true, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    found = youden(scores, labels == 1)
    best = np.flatnonzero(np.isclose(true - false, (true - false).max()))
    assert found == thresholds[best[-1]]  # the last is the most sensitive


def test_sensitivity_and_specificity_are_of_the_validation_threshold_on_test():
    val, test = binary(200, 1), binary(300, 2)
    found = clinical(*val, *test)
    (tn, fp), (fn, tp) = confusion_matrix(test[1], test[0] >= youden(val[0], val[1] == 1))
    assert found.sensitivity == (tp / (tp + fn),)
    assert found.specificity == (tn / (tn + fp),)
    assert found.positives == (tp + fn,)
    two_columns = np.stack([1 - val[0], val[0]], 1), val[1], np.stack([1 - test[0], test[0]], 1), test[1]
    assert clinical(*two_columns) == found


def test_each_class_of_several_has_a_threshold_of_its_own():
    val, test = several(300, 4, 1), several(400, 4, 2)
    found = clinical(*val, *test)
    for k in range(4):
        threshold = youden(val[0][:, k], val[1] == k)
        assert found.thresholds[k] == threshold
        assert found.sensitivity[k] == (test[0][test[1] == k, k] >= threshold).mean()
        assert found.specificity[k] == (test[0][test[1] != k, k] < threshold).mean()


def test_what_validation_lacks_has_no_operating_point():
    scores, labels = several(100, 3, 3)
    labels = np.where(labels == 2, 1, labels)
    found = clinical(scores, labels, scores, labels)
    assert np.isnan(found.thresholds[2]) and np.isnan(found.sensitivity[2])
    assert np.isfinite(found.sensitivity[:2]).all()
    with pytest.raises(ValueError, match="3 classes in validation and 4 in test"):
        clinical(scores, labels, *several(10, 4, 0))


@pytest.mark.parametrize("task", ["binary-class", "multi-class", "multi-label"])
def test_calibration_is_what_the_worker_records(task: str):
    if task == "binary-class":
        scores, labels = binary(300, 5)
    elif task == "multi-class":
        scores, labels = several(300, 5, 6)
    else:
        generator = np.random.default_rng(7)
        scores, labels = generator.random((300, 6)), (generator.random((300, 6)) < 0.2).astype(int)
    recorded = classification.classification_metrics(labels, scores, task)
    assert ece(scores, labels) == pytest.approx(recorded["ece"], abs=1e-12)
    assert brier(scores, labels) == pytest.approx(recorded["brier"], abs=1e-12)


def test_brier_and_reliability_are_scikit_learns():
    scores, labels = binary(2_000, 8)
    assert brier(scores, labels) == pytest.approx(brier_score_loss(labels, scores))
    confident = np.maximum(scores, 1 - scores)
    right, mean = calibration_curve((scores > 0.5) == labels, confident, n_bins=15)
    found = reliability(scores, labels)
    kept = found.count > 0
    np.testing.assert_allclose(found.right[kept], right)
    np.testing.assert_allclose(found.confidence[kept], mean)
    assert found.count.sum() == 2_000


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 4.0])
def test_the_temperature_is_the_one_of_scipys_minimiser(sharpness: float):
    scores, labels = several(400, 4, 9, sharpness)
    logits = np.log(scores)
    expected = minimize_scalar(
        lambda t: -log_softmax(logits / t, axis=1)[np.arange(400), labels].mean(), bounds=(0.01, 100), method="bounded",
        options={"xatol": 1e-9},
    ).x  # fmt: skip
    found = temperature(scores, labels)
    assert found == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(rescaled(scores, labels, found), softmax(logits / found, axis=1))


def test_temperature_of_two_classes_and_of_labels():
    scores, labels = binary(500, 10, sharpness=3.0)
    found = temperature(scores, labels)
    logits = np.log(scores / (1 - scores))
    expected = minimize_scalar(lambda t: np.logaddexp(0, (1 - 2 * labels) * logits / t).mean(), bounds=(0.01, 100)).x
    assert found == pytest.approx(expected, rel=1e-3)
    np.testing.assert_allclose(rescaled(scores, labels, found)[:, -1], expit(logits / found))
    many = np.stack([scores, scores], 1), np.stack([labels, labels], 1)
    assert temperature(*many) == pytest.approx(found)
    assert rescaled(*many, found).shape == (500, 2)


def test_scaling_mends_an_overconfident_model_and_changes_no_answer():
    val, test = several(2_000, 3, 11, 4.0), several(2_000, 3, 12, 4.0)
    found = clinical(*val, *test)
    assert found.temperature > 2
    assert found.ece[1] < found.ece[0] / 3
    assert found.brier[1] < found.brier[0]
    scaled = rescaled(*test, found.temperature)
    np.testing.assert_array_equal(scaled.argmax(1), test[0].argmax(1))


@pytest.mark.parametrize("scores", [np.eye(3)[[0, 1, 2, 0]], np.full((4, 3), 1 / 3)])
def test_extreme_scores_have_a_bounded_temperature(scores: np.ndarray):
    found = temperature(scores, np.array([0, 1, 2, 0]))
    assert 1 / module.MAX_SCALE <= found <= module.MAX_SCALE
    assert np.isfinite(rescaled(scores, np.array([0, 1, 2, 0]), found)).all()


@pytest.mark.parametrize(("right", "n"), [(0, 20), (17, 20), (20, 20), (1, 156)])
def test_wilson_is_statsmodels(right: int, n: int):
    assert wilson(right / n, n) == pytest.approx(proportion_confint(right, n, method="wilson"))
    assert all(np.isnan(wilson(float("nan"), 0)))


@pytest.mark.parametrize(
    ("named", "heads"),
    [
        ({"classes": ["melanoma", "nevus", "scar"]}, ["melanoma (n=10)", "nevus (n=20)", "scar (n=5)"]),
        ({}, ["0 (n=10)", "1 (n=20)", "2 (n=5)"]),  # an older record
        ({"classes": ["melanoma"]}, ["0 (n=10)", "1 (n=20)", "2 (n=5)"]),
    ],
)
def test_classes_are_called_by_their_names_where_records_say_them(run: Any, named: dict[str, Any], heads: list[str]):
    from bench.metrics.calibration import Clinical
    from bench.report.build import Report
    from bench.report.clinical.points import _per_class

    run.accuracy("resnet18", "dermamnist", 0.8)["metrics"].update(named)
    (row,) = Report(run.records).rows
    row.clinical = [Clinical((0.5,) * 3, (0.9,) * 3, (0.8,) * 3, (10, 20, 5), 1.0, (0.1, 0.1), (0.2, 0.2))]
    _, table = _per_class([row], 3)
    assert [column.name for column in table.columns[2:]] == heads
