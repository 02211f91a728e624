"""Accuracy metrics as pure functions of labels, scores and task.

``acc`` and ``auc`` follow MedMNIST's official evaluator (``medmnist.evaluator``, package 3.0.2) operation by
operation, so they equal it to the last bit of float64 on the same scores; the rest are computed from the same arrays.

Conventions
-----------
Scores are probabilities (float64). ``(N, C)``, one column per class; for ``binary-class`` the *last* column is the
probability of class 1, and ``(N,)`` or ``(N, 1)`` are accepted as that column alone; for ``multi-label`` there is one
column a label. ``ordinal-regression`` is scored as multi-class, as the evaluator does.

Decisions: arg-max (the first of equals) for multi-class and ordinal, and *greater than* 0.5 for binary and multi-label.

What a split lacks: a class with no positive or no negative image has no ROC curve and is left out of the mean
AUC (``auc_classes`` says how many were in it; the evaluator's mean is undefined there). A class absent from the labels
is left out of the macro averages; a class that is present and never predicted has precision and F1 of 0. A metric that
is defined for no class is NaN, never an exception.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, cohen_kappa_score, roc_auc_score

from bench.metrics import registry
from bench.metrics.one_vs_rest import Array
from bench.metrics.resampled import decide, figures, log_loss
from bench.registry import TASKS, nearest

Floats = npt.NDArray[np.float64]


def classification_metrics(labels: Array, scores: Array, task: str, positive: int = 1) -> dict[str, Any]:
    """Compute every accuracy metric.

    Args:
        labels: (N,) or (N, 1) class indices; (N, L) in {0, 1} for ``multi-label``.
        scores: (N, C) probabilities; see the module's conventions.
        task: one of :data:`bench.registry.TASKS`.
        positive: number of the class that ``sensitivity``, ``specificity`` and ``auprc`` of a binary task are of.

    Returns:
        ``acc``, ``auc``, ``auc_classes``, ``auprc`` (average precision; the mean over classes or labels that occur,
        one against the rest, if there are more than two), ``balanced_acc``, ``f1_macro``, ``mcc``, ``precision_macro``,
        ``sensitivity_macro``, ``specificity_macro``, ``ece``, ``brier``, ``nll`` and ``confusion`` (C x C counts,
        truth by row; for multi-label L tables [[TN, FP], [FN, TP]]). Binary tasks add ``sensitivity`` and
        ``specificity`` of the positive class, ordinal ones ``qwk`` (quadratic weighted kappa) and ``mae`` (in grades).
        Metrics of plug-ins stand beside them by name (:mod:`bench.metrics.registry`).

    Raises:
        ValueError: shapes, labels or scores that do not fit the task, naming what is wrong.
    """
    truth, probabilities = _checked(labels, scores, task)
    predicted = decide(probabilities, task)
    auc, auc_classes = _auc(truth, probabilities, task)
    others = figures(truth, probabilities, task, positive, np.ones((len(truth), 1)))
    found: dict[str, Any] = {"acc": accuracy(truth, probabilities, task), "auc": auc, "auc_classes": auc_classes}
    found |= {"nll" if name == "loss" else name: float(values[0]) for name, values in others.items()}
    found |= registry.of_plugins(truth, probabilities, task)
    if task == "multi-label":
        found["confusion"] = [confusion_matrix(t, p, 2).tolist() for t, p in zip(truth.T, predicted.T, strict=True)]
        return found
    confusion = confusion_matrix(truth, predicted, probabilities.shape[1])
    found["confusion"] = confusion.tolist()
    if task == "binary-class":
        rest = 1 - positive
        found["sensitivity"] = _ratio(confusion[positive, positive], confusion[positive].sum())
        found["specificity"] = _ratio(confusion[rest, rest], confusion[rest].sum())
    if task == "ordinal-regression":
        varied = len(np.unique(np.concatenate([truth, predicted]))) > 1
        found["qwk"] = float(cohen_kappa_score(truth, predicted, weights="quadratic")) if varied else float("nan")
        found["mae"] = float(np.abs(truth - predicted).mean())
    return found


def accuracy(labels: Array, scores: Array, task: str) -> float:
    """Return the official accuracy; for multi-label the mean over labels at the threshold 0.5."""
    truth, probabilities = _checked(labels, scores, task)
    predicted = decide(probabilities, task)
    if task != "multi-label":
        return float(accuracy_score(truth, predicted))
    total = 0.0
    for label in range(truth.shape[1]):
        total += float(accuracy_score(truth[:, label], predicted[:, label]))
    return total / int(truth.shape[1])


def auc(labels: Array, scores: Array, task: str) -> float:
    """Return the official area under the ROC curve: of class 1 for binary, else the mean one-versus-rest."""
    return _auc(*_checked(labels, scores, task), task)[0]


def _auc(truth: Array, probabilities: Floats, task: str) -> tuple[float, int]:
    if task == "binary-class":
        value = _roc_auc(truth, probabilities[:, -1])
        return value, int(not np.isnan(value))
    total, defined = 0.0, 0
    for column in range(probabilities.shape[1]):
        positives = truth[:, column] if task == "multi-label" else (truth == column).astype(float)
        value = _roc_auc(positives, probabilities[:, column])
        if not np.isnan(value):
            total += value
            defined += 1
    return (total / defined if defined else float("nan")), defined


def _roc_auc(positives: Array, score: Floats) -> float:
    if positives.min() == positives.max():
        return float("nan")
    return float(roc_auc_score(positives, score))


def confusion_matrix(truth: Array, predicted: Array, n_classes: int) -> npt.NDArray[np.int64]:
    """Count (C, C), truth by row and prediction by column, whether or not a class occurs."""
    counts = np.bincount(truth * n_classes + predicted, minlength=n_classes**2)
    return np.asarray(counts, dtype=np.int64).reshape(n_classes, n_classes)


def negative_log_likelihood(labels: Array, scores: Array, task: str) -> float:
    """Mean negative log-likelihood in nats; over images and labels for multi-label. A probability of 0 costs 708."""
    truth, probabilities = _checked(labels, scores, task)
    return float(log_loss(probabilities, truth, np.ones((len(truth), 1)))[0])


def _checked(labels: Array, scores: Array, task: str) -> tuple[Array, Floats]:
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}{nearest(task, TASKS)}; tasks: {', '.join(TASKS)}")
    probabilities = np.asarray(scores, dtype=np.float64)
    probabilities = probabilities[:, None] if probabilities.ndim == 1 else probabilities
    if probabilities.ndim != 2 or not probabilities.size:
        raise ValueError(f"scores should have shape (N, C) with N >= 1, but have {np.shape(scores)}")
    if task == "binary-class" and probabilities.shape[1] == 1:
        probabilities = np.concatenate([1.0 - probabilities, probabilities], axis=1)
    wanted = probabilities.shape if task == "multi-label" else (len(probabilities),)
    truth = np.asarray(labels)
    if truth.ndim == 2 and task != "multi-label" and truth.shape[1] == 1:
        truth = truth[:, 0]
    if truth.ndim == 1 and task == "multi-label" and wanted[1] == 1:
        truth = truth[:, None]
    if truth.shape != wanted:
        raise ValueError(
            f"{task}: labels should have shape {wanted} for scores {np.shape(scores)}, but have {np.shape(labels)}"
        )
    if not np.isfinite(probabilities).all():
        bad = int((~np.isfinite(probabilities)).any(axis=1).sum())
        raise ValueError(f"scores of {bad} of {len(probabilities)} images are not finite")
    truth = truth.astype(np.int64)
    top = 1 if task in ("multi-label", "binary-class") else probabilities.shape[1] - 1
    if truth.min() < 0 or truth.max() > top:
        raise ValueError(f"{task}: labels should lie in 0..{top}, but go from {truth.min()} to {truth.max()}")
    return truth, probabilities


def _ratio(part: int, whole: int) -> float:
    return float(part / whole) if whole else float("nan")
