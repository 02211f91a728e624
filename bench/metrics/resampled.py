"""Figures that are no means over images, on resampled test sets: average precision, log loss, quadratic kappa.

Pure functions of scores, labels and how often each image is drawn. What Records state comes from
:mod:`bench.metrics.classification`; with weights of 1 these give the same figures.
"""

from __future__ import annotations

import numpy as np

from bench.metrics.one_vs_rest import Array, one_vs_rest

_BLOCK = 1 << 24  # weights at once


def average_precision(scores: Array, labels: Array, weights: Array, positive: int = 1) -> Array:
    """Average precision of each resampled test set, (n,): of the positive class, or the mean one against the rest.

    Args:
        scores: as in :func:`bench.metrics.one_vs_rest.one_vs_rest`, and so are ``labels``.
        labels: (N,) or (N, K).
        weights: (N, n) how often each image is drawn.
        positive: of two classes, the one it is of.
    """
    columns, targets = one_vs_rest(scores, labels, positive)
    step = max(1, _BLOCK // max(len(columns), 1))
    parts = []
    for start in range(0, weights.shape[1], step):
        block = weights[:, start : start + step]
        each = np.stack([_average_precision(c, t, block) for c, t in zip(columns.T, targets.T, strict=True)])
        known = np.isfinite(each)
        with np.errstate(invalid="ignore"):
            parts.append(np.where(known, each, 0.0).sum(0) / known.sum(0))
    found: Array = np.concatenate(parts)
    return found


def _average_precision(column: Array, target: Array, weights: Array) -> Array:
    order = np.argsort(-column, kind="stable")
    value = column[order]
    last = np.append(value[1:] != value[:-1], True)  # of equal scores all or none are called
    drawn = weights[order].astype(np.float64)
    called = drawn.cumsum(0)[last]
    hit = (drawn * target[order, None]).cumsum(0)[last]
    gained = np.diff(hit, axis=0, prepend=0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(called > 0, hit / called, 0.0)
        found: Array = (gained * precision).sum(0) / hit[-1]
    return found


def log_loss(scores: Array, labels: Array, weights: Array) -> Array:
    """Mean negative log-likelihood of each resampled test set, (n,), in nats; over labels too if multi-label."""
    columns, targets = one_vs_rest(scores, labels)
    if columns.shape[1] == 1 or np.asarray(labels).reshape(len(labels), -1).shape[1] > 1:
        given = np.where(targets, columns, 1.0 - columns)
    else:
        given = columns[targets][:, None]
    each = -np.log(np.clip(given, np.finfo(np.float64).tiny, None)).mean(1)
    found: Array = each @ weights / weights.sum(0)
    return found


def quadratic_kappa(scores: Array, labels: Array, weights: Array) -> Array:
    """Cohen's kappa with quadratic weights (1968) of each resampled test set, (n,); NaN where all grades are one."""
    truth = np.asarray(labels).reshape(-1).astype(np.int64)
    answer = np.asarray(scores).argmax(1)
    drawn = weights.astype(np.float64)
    total = drawn.sum(0)
    observed = ((truth - answer) ** 2) @ drawn / total
    t, a = truth @ drawn / total, answer @ drawn / total
    expected = (truth**2) @ drawn / total + (answer**2) @ drawn / total - 2 * t * a
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(expected > 0, 1.0 - observed / expected, np.nan)
    return found
