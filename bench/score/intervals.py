"""Intervals of the metrics that leaderboards do not test: a bootstrap over images (or patients) plus trainings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.metrics.calibration import ECE_BINS, confidences
from bench.metrics.classification import decide
from bench.metrics.one_vs_rest import Array, one_vs_rest
from bench.metrics.resampled import average_precision, log_loss
from bench.stats.bootstrap import seed_of_test_set
from bench.stats.cluster import resamples
from bench.stats.separation import Estimate

RESAMPLES = 200  # of a variance: known to 5 %
MOST = 2_000_000  # images x classes x trainings, beyond which it would take minutes; then there are none


def bootstrapped(
    dataset: str, labels: Array, trainings: Sequence[Sequence[Array]], task: str, positive: int, patients: Array | None
) -> list[dict[str, Estimate]]:
    """Variances of each model's metrics; empty where the test set is too large.

    Args:
        dataset: name; with the labels it decides the resamples, so that all models are seen on the same.
        labels: (N,) or (N, L).
        trainings: of each model its scores (N, C), one a training.
        task: of the test set.
        positive: of two classes, the one that sensitivity and AUPRC are of.
        patients: (N,) numbers, where images of one patient count together.
    """
    if sum(s.size for scores in trainings for s in scores) > MOST:
        return [{} for _ in trainings]
    weights = resamples(labels, patients, seed_of_test_set(dataset, labels), RESAMPLES)
    found = []
    for scores in trainings:
        drawn = [figures(labels, s, task, positive, weights) for s in scores]
        once = [figures(labels, s, task, positive, np.ones((len(labels), 1), np.float32)) for s in scores]
        found.append(
            {name: _estimate([d[name] for d in drawn], [float(o[name][0]) for o in once]) for name in drawn[0]}
        )
    return found


def _estimate(drawn: Sequence[Array], values: Sequence[float]) -> Estimate:
    k, samples = len(values), np.mean(drawn, axis=0)
    over_images = float(np.nanvar(samples, ddof=1))
    training = float(np.var(values, ddof=1)) / k if k > 1 else 0.0
    moments = over_images**2 / (len(samples) - 1) + training**2 / max(k - 1, 1)
    return Estimate(float(np.mean(values)), over_images + training, moments, over_images)


def figures(labels: Array, scores: Array, task: str, positive: int, weights: Array) -> dict[str, Array]:
    """Metrics of each resampled test set, (n,); with weights of 1 those of `classification_metrics`.

    Args:
        labels: (N,) or (N, L).
        scores: (N, C) probabilities.
        task: of the test set.
        positive: number of the class that AUPRC is of.
        weights: (N, n) how often each image is drawn.
    """
    total = weights.sum(0, dtype=np.float64)
    columns, targets = one_vs_rest(scores, labels)
    squares = (columns - targets) ** 2
    each = squares.mean(1) if task == "multi-label" else squares.sum(1)
    found = {
        "brier": each @ weights / total,
        "loss": log_loss(scores, labels, weights),
        "auprc": average_precision(scores, labels, weights, positive),
        "ece": _ece(scores, labels, weights, total),
    }
    return found | _of_decisions(
        labels, decide(np.asarray(scores, dtype=np.float64), task), task, scores.shape[1], weights
    )


def _ece(scores: Array, labels: Array, weights: Array, total: Array) -> Array:
    confidence, right = confidences(scores, labels)
    gaps = []
    for c, r in zip(confidence.T, right.T, strict=True):
        bins = np.clip(np.ceil(c * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
        off = (r.astype(np.float64) - c)[:, None] * weights
        gaps.append(sum(np.abs(off[bins == b].sum(0)) for b in np.unique(bins)) / total)
    found: Array = np.mean(gaps, axis=0)
    return found


def _of_decisions(labels: Array, decided: Array, task: str, classes: int, weights: Array) -> dict[str, Array]:
    """Metrics of the confusion matrix, from weighted counts (n,) of each class."""
    truth = np.asarray(labels)
    if task != "multi-label":
        truth, decided = (np.eye(classes, dtype=np.int64)[np.asarray(v).reshape(-1)] for v in (truth, decided))
    w = weights.astype(np.float64)
    hit, has, says, n = (truth * decided).T @ w, truth.T @ w, decided.T @ w, w.sum(0)
    rejected = n - has - says + hit
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivity = np.where(has > 0, hit / has, np.nan)
        specificity = np.where(n - has > 0, rejected / (n - has), np.nan)
        f1 = np.where(has > 0, 2 * hit / (has + says), np.nan)
        if task == "multi-label":
            spread = np.sqrt(has * says * (n - has) * (n - says))
            mcc = np.where(spread > 0, (hit * n - has * says) / spread, 0.0).mean(0)
        else:
            spread = np.sqrt((n**2 - (says**2).sum(0)) * (n**2 - (has**2).sum(0)))
            mcc = np.where(spread > 0, (hit.sum(0) * n - (has * says).sum(0)) / spread, 0.0)
        balanced = (sensitivity + specificity) / 2 if task == "multi-label" else sensitivity
        return {
            "balanced_acc": np.nanmean(balanced, axis=0), "f1_macro": np.nanmean(f1, axis=0), "mcc": mcc,
            "sensitivity_macro": np.nanmean(sensitivity, axis=0), "specificity_macro": np.nanmean(specificity, axis=0),
        }  # fmt: skip
