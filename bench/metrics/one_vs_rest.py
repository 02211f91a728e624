"""Scores as binary questions, one class against the rest: AUC, ACC and each image's share of them. NumPy alone.

Leaderboards use these on thousands of saved scores and do not wait for scikit-learn to be imported. What a Record
states comes from :mod:`bench.metrics.classification`, which agrees with MedMNIST's evaluator to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def rank(values: Array) -> Array:
    """Ranks from 1 in ascending order; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    return middle[inverse.reshape(-1)]


def one_vs_rest(scores: Array, labels: Array, positive: int = 1) -> tuple[Array, Array]:
    """Split a task into binary ones, as MedMNIST's evaluator does.

    Args:
        scores: (N,), (N, 1) or (N, K) probabilities.
        labels: (N,) or (N, 1) class numbers, or (N, K) in {0, 1} for a multi-label task.
        positive: of a two-class task, the class that the column is of.

    Returns:
        Columns (N, C) and boolean targets (N, C); C is 1 for a two-class task (the positive class's score).

    Raises:
        ValueError: if the shapes do not fit each other.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if len(scores) != len(labels) or not labels.size or not scores.size:
        raise ValueError(f"{len(scores)} rows of scores for {len(labels)} labels")
    scores, labels = scores.reshape(len(scores), -1), labels.reshape(len(labels), -1)
    if labels.shape[1] > 1:
        if scores.shape != labels.shape:
            raise ValueError(f"scores {scores.shape} for multi-label targets {labels.shape}")
        return scores, labels > 0
    if scores.shape[1] <= 2:
        return (scores[:, -1:], labels == 1) if positive == 1 else (1.0 - scores[:, -1:], labels == positive)
    return scores, labels == np.arange(scores.shape[1])


def strata(labels: Array) -> Array:
    """The class of each image, (N,); zeros if multi-label."""
    flat = np.asarray(labels).reshape(len(labels), -1)
    return flat[:, 0] if flat.shape[1] == 1 else np.zeros(len(flat), dtype=np.int64)


def correct(scores: Array, labels: Array) -> Array:
    """How right each image is answered, (N,) in [0, 1]: 0 or 1, or the share of right labels if multi-label."""
    columns, targets = one_vs_rest(scores, labels)
    multi_label = np.asarray(labels).reshape(len(columns), -1).shape[1] > 1
    if multi_label or columns.shape[1] == 1:
        return ((columns > 0.5) == targets).mean(1)
    return (columns.argmax(1) == np.asarray(labels).reshape(-1)).astype(np.float64)


def auc(scores: Array, labels: Array) -> float:
    """Area under the ROC curve, one against the rest, mean over classes; NaN if no class can be scored."""
    columns, targets = one_vs_rest(scores, labels)
    return _mean([binary_auc(columns[:, k], targets[:, k]) for k in range(columns.shape[1])])


def majority_acc(labels: Array) -> float:
    """ACC of always giving the most frequent answer (per label if multi-label)."""
    labels = np.asarray(labels)
    labels = labels.reshape(len(labels), -1)
    if labels.shape[1] > 1:
        positive = (labels > 0).mean(0)
        return float(np.maximum(positive, 1 - positive).mean())
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels))


def _mean(values: Sequence[float] | Array) -> float:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if len(known) else float("nan")


def binary_auc(column: Array, target: Array) -> float:
    """Area under the ROC curve of one column of scores against its boolean targets; NaN without both classes."""
    positives = int(target.sum())
    negatives = len(target) - positives
    if not positives or not negatives:
        return float("nan")
    # Mann-Whitney: the rank sum of the positives, less its smallest possible value.
    return float((rank(column)[target].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auc_influence(scores: Array, labels: Array) -> Array:
    """What drawing each image once more adds to the AUC, (N,): DeLong's structural components (1988)."""
    columns, targets = one_vs_rest(scores, labels)
    total = np.zeros(len(columns))
    scored = 0
    for k in range(columns.shape[1]):
        target = targets[:, k]
        positives = int(target.sum())
        negatives = len(target) - positives
        if not positives or not negatives:
            continue
        scored += 1
        ranks = rank(columns[:, k])
        area = binary_auc(columns[:, k], target)
        total[target] += ((ranks[target] - rank(columns[target, k])) / negatives - area) / positives
        total[~target] += (1 - (ranks[~target] - rank(columns[~target, k])) / positives - area) / negatives
    return total / max(scored, 1)


def resampled_auc(scores: Array, labels: Array, weights: Array) -> Array:
    """AUC of each resampled test set, (n,), from how often each image is in it, (N, n)."""
    columns, targets = one_vs_rest(scores, labels)
    areas = np.stack([weighted_auc(columns[:, k], targets[:, k], weights) for k in range(columns.shape[1])])
    known = np.isfinite(areas)
    counts = known.sum(0)
    return np.where(counts > 0, np.where(known, areas, 0.0).sum(0) / np.maximum(counts, 1), np.nan)


def weighted_auc(column: Array, target: Array, weights: Array) -> Array:
    """AUC of one column under each set of weights, (n,): one sort of the scores serves all of them."""
    order = np.argsort(column, kind="stable")
    value, positive = column[order], target[order]
    weight = weights[order]
    # below[i] = weight of negatives among the i lowest scores
    below = np.zeros((len(order) + 1, weights.shape[1]), dtype=np.float32)
    np.cumsum(np.where(positive[:, None], np.float32(0), weight), axis=0, out=below[1:])
    starts = np.searchsorted(value, value[positive], side="left")
    ends = np.searchsorted(value, value[positive], side="right")
    beaten = (below[starts].astype(np.float64) + below[ends]) / 2  # an equal score counts one half
    drawn = weight[positive].astype(np.float64)
    pairs = drawn.sum(0) * below[-1]
    wins = np.einsum("ij,ij->j", drawn, beaten)
    return np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)


def acc(scores: Array, labels: Array) -> float:
    """The share of right answers; mean over labels if multi-label."""
    return float(correct(scores, labels).mean())


def acc_influence(scores: Array, labels: Array) -> Array:
    """What drawing each image once more adds to the ACC, (N,)."""
    right = correct(scores, labels)
    return right / len(right)


def resampled_acc(scores: Array, labels: Array, weights: Array) -> Array:
    """ACC of each resampled test set, (n,)."""
    right = correct(scores, labels)
    return right @ weights.astype(np.float64) / len(right)
