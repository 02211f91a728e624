"""Intervals of the metrics that leaderboards do not test: a bootstrap over images (or patients) plus trainings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.metrics.one_vs_rest import Array
from bench.metrics.resampled import figures
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
