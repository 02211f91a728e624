"""Accuracy metrics against MedMNIST's evaluator, scikit-learn and closed forms."""

import warnings
from typing import Any

import numpy as np
import pytest
from medmnist.evaluator import getACC, getAUC
from sklearn import metrics as sk

from bench.metrics.calibration import ECE_BINS, brier, ece
from bench.metrics.classification import (
    accuracy,
    auc,
    classification_metrics,
    negative_log_likelihood,
)

OFFICIAL_TASK = {"multi-label": "multi-label, binary-class"}
CASES = [("multi-class", 9), ("ordinal-regression", 5), ("binary-class", 2), ("multi-label", 14)]


def draw(task: str, classes: int, n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and softmax or sigmoid scores (float64 of float32 logits) with some skill and many ties."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    if task == "multi-label":
        labels = (rng.random((n, classes)) < 0.2).astype(np.int64)
        logits = np.round(logits + labels, 1)
        return labels, 1 / (1 + np.exp(-logits.astype(np.float64)))
    labels = rng.integers(0, classes, n)
    logits = np.round(logits + np.eye(classes, dtype=np.float32)[labels], 1)
    exponent = np.exp(logits.astype(np.float64))
    return labels, exponent / exponent.sum(1, keepdims=True)


@pytest.mark.parametrize(("task", "classes"), CASES)
@pytest.mark.parametrize("seed", range(5))
def test_acc_and_auc_equal_the_official_evaluator_to_the_last_bit(task: str, classes: int, seed: int) -> None:
    labels, scores = draw(task, classes, seed=seed)
    stored = labels if task == "multi-label" else labels[:, None].astype(np.uint8)  # the form of the .npz files
    assert accuracy(labels, scores, task) == getACC(stored, scores, OFFICIAL_TASK.get(task, task))
    assert auc(labels, scores, task) == getAUC(stored, scores, OFFICIAL_TASK.get(task, task))


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_binary_scores_may_be_one_column_as_the_evaluator_allows(shape: tuple[int, ...]) -> None:
    labels, scores = draw("binary-class", 2)
    positive = scores[:, 1].reshape(shape)
    assert accuracy(labels, positive, "binary-class") == getACC(labels, positive, "binary-class")
    assert auc(labels, positive, "binary-class") == getAUC(labels, positive, "binary-class")


def test_a_binary_score_of_exactly_one_half_is_class_zero_as_in_the_evaluator() -> None:
    labels, scores = np.array([0, 1, 1]), np.array([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8]])
    assert accuracy(labels, scores, "binary-class") == getACC(labels, scores, "binary-class") == 2 / 3


@pytest.mark.parametrize(("task", "classes"), [case for case in CASES if case[0] != "multi-label"])
def test_single_label_metrics_equal_sklearn(task: str, classes: int) -> None:
    labels, scores = draw(task, classes)
    predicted = scores.argmax(1)
    found = classification_metrics(labels, scores, task)
    confusion = sk.confusion_matrix(labels, predicted)
    specificities = [(predicted[labels != c] != c).mean() for c in range(classes)]
    assert found["confusion"] == confusion.tolist()
    assert found["balanced_acc"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted), rel=1e-13)
    assert found["f1_macro"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"), rel=1e-13)
    assert found["precision_macro"] == pytest.approx(sk.precision_score(labels, predicted, average="macro"), rel=1e-13)
    assert found["sensitivity_macro"] == pytest.approx(sk.recall_score(labels, predicted, average="macro"), rel=1e-13)
    assert found["specificity_macro"] == pytest.approx(np.mean(specificities), rel=1e-13)
    assert found["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, predicted), rel=1e-12)
    assert found["nll"] == pytest.approx(sk.log_loss(labels, scores), rel=1e-12)
    assert found["auc_classes"] == (1 if task == "binary-class" else classes)
    wanted = scores[:, 1] if task == "binary-class" else scores
    assert found["brier"] == pytest.approx(sk.brier_score_loss(labels, wanted), rel=1e-12)


def test_multi_label_metrics_are_means_over_labels() -> None:
    labels, scores = draw("multi-label", 6)
    predicted = (scores > 0.5).astype(int)
    found = classification_metrics(labels, scores, "multi-label")

    def mean(metric: object, values: np.ndarray = predicted) -> float:
        return float(np.mean([metric(labels[:, k], values[:, k]) for k in range(6)]))  # type: ignore[operator]

    assert found["confusion"] == sk.multilabel_confusion_matrix(labels, predicted).tolist()
    assert found["f1_macro"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"), rel=1e-13)
    assert found["precision_macro"] == pytest.approx(sk.precision_score(labels, predicted, average="macro"), rel=1e-13)
    assert found["sensitivity_macro"] == pytest.approx(sk.recall_score(labels, predicted, average="macro"), rel=1e-13)
    assert found["balanced_acc"] == pytest.approx(mean(sk.balanced_accuracy_score), rel=1e-13)
    assert found["mcc"] == pytest.approx(mean(sk.matthews_corrcoef), rel=1e-12)
    assert found["brier"] == pytest.approx(mean(sk.brier_score_loss, scores), rel=1e-12)
    assert found["nll"] == pytest.approx(mean(sk.log_loss, scores), rel=1e-12)


def test_ordinal_adds_kappa_and_distance_in_grades() -> None:
    labels, scores = draw("ordinal-regression", 5)
    found = classification_metrics(labels, scores, "ordinal-regression")
    predicted = scores.argmax(1)
    assert found["qwk"] == pytest.approx(sk.cohen_kappa_score(labels, predicted, weights="quadratic"))
    assert found["mae"] == pytest.approx(np.abs(labels - predicted).mean())


def test_binary_adds_sensitivity_and_specificity_of_class_one() -> None:
    labels, scores = draw("binary-class", 2)
    found = classification_metrics(labels, scores, "binary-class")
    predicted = scores[:, 1] > 0.5
    assert found["sensitivity"] == pytest.approx(sk.recall_score(labels, predicted))
    assert found["specificity"] == pytest.approx(sk.recall_score(1 - labels, ~predicted))


def test_calibration_error_closed_forms() -> None:
    # 10 images at confidence 0.8 of which 6 are right, 10 at 0.6 of which all are: (|6-8| + |10-6|) / 20.
    scores = np.array([[0.8, 0.2]] * 10 + [[0.4, 0.6]] * 10)
    labels = np.array([0] * 6 + [1] * 4 + [1] * 10)
    assert ece(scores, labels) == pytest.approx(0.3)
    certain = np.eye(3)[[0, 1, 2, 1]]
    assert ece(certain, np.array([0, 1, 2, 1])) == 0.0
    assert brier(certain, np.array([0, 1, 2, 1])) == 0.0
    # Two labels: the first said 0.1 and is never there, the second said 0.9 and always is.
    two = ece(np.array([[0.1, 0.9]] * 5), np.array([[0, 1]] * 5))
    assert two == pytest.approx(0.1)


def test_calibration_bins_are_closed_above() -> None:
    # 1/15 and just above it fall into different bins, so their errors of opposite sign do not cancel.
    edge = 1 / ECE_BINS
    scores = np.array([[edge] * 2, [edge + 1e-6] * 2])
    found = ece(scores, np.array([[0, 0], [1, 1]]))
    assert found == pytest.approx((edge + (1 - edge)) / 2, abs=1e-5)


def test_uniform_scores_over_four_classes() -> None:
    labels, scores = np.arange(8) % 4, np.full((8, 4), 0.25)
    found = classification_metrics(labels, scores, "multi-class")
    assert found["auc"] == 0.5
    assert found["nll"] == pytest.approx(np.log(4))
    assert found["brier"] == pytest.approx(0.75)
    assert (found["acc"], found["mcc"], found["sensitivity_macro"]) == (0.25, 0.0, 0.25)


def test_an_absent_class_is_left_out_and_counted() -> None:
    labels, scores = draw("multi-class", 4)
    keep = labels != 2
    labels, scores = labels[keep], scores[keep]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = classification_metrics(labels, scores, "multi-class")
    one_versus_rest = [sk.roc_auc_score(labels == c, scores[:, c]) for c in (0, 1, 3)]
    recalls = [(scores.argmax(1)[labels == c] == c).mean() for c in (0, 1, 3)]
    assert found["auc_classes"] == 3
    assert found["auc"] == pytest.approx(np.mean(one_versus_rest), rel=1e-14)
    assert found["sensitivity_macro"] == found["balanced_acc"] == pytest.approx(np.mean(recalls), rel=1e-14)


@pytest.mark.parametrize(("task", "classes"), CASES)
def test_one_image_gives_numbers_and_no_exception(task: str, classes: int) -> None:
    labels, scores = draw(task, classes, n=1)
    found = classification_metrics(labels, scores, task)
    assert np.isnan(found["auc"]) and found["auc_classes"] == 0
    assert 0 <= found["acc"] <= 1 and np.isfinite(found["nll"]) and np.isfinite(found["brier"])


def test_a_class_never_predicted_has_precision_zero() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([[0.9, 0.1]] * 4)
    found = classification_metrics(labels, scores, "binary-class")
    assert found["precision_macro"] == 0.25
    assert found["mcc"] == 0.0


def test_a_certain_mistake_costs_a_finite_loss() -> None:
    assert negative_log_likelihood(np.array([0]), np.array([[0.0, 1.0]]), "binary-class") == pytest.approx(
        708.4, abs=0.1
    )


@pytest.mark.parametrize(
    ("labels", "scores", "task", "message"),
    [
        ([0, 1], [[0.5, 0.5]], "multi-class", r"labels should have shape \(1,\)"),
        ([0, 5], [[0.5, 0.5]] * 2, "multi-class", r"labels should lie in 0\.\.1, but go from 0 to 5"),
        ([0, -1], [[0.5, 0.5]] * 2, "multi-class", "from -1 to 0"),
        ([[0, 2]], [[0.5, 0.5]], "multi-label", r"should lie in 0\.\.1"),
        ([0, 1], [[0.5, np.nan], [0.5, 0.5]], "binary-class", "scores of 1 of 2 images are not finite"),
        ([], np.zeros((0, 2)), "multi-class", r"shape \(N, C\) with N >= 1"),
        ([0], [[1.0, 0.0]], "multiclass", "did you mean 'multi-class'"),
    ],
)
def test_what_does_not_fit_is_named(labels: list[Any], scores: list[Any], task: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(np.array(labels), np.array(scores), task)
