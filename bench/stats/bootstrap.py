"""What a test set can tell: metrics with intervals from resampled test images. Pure functions of saved scores.

The resamples depend on the dataset's name and labels only, so that every model of one test set is seen on the same
resampled images and the difference of two models is a paired comparison.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bench.metrics.one_vs_rest import Array, one_vs_rest, strata
from bench.metrics.registry import TESTED, Metric

RESAMPLES = 1_000
# Above this many (image, class) pairs the AUC is resampled through its first-order expansion: exact resampling would
# take minutes over a full sweep, and the two agree to a few percent of the interval's width there (tested).
EXACT_LIMIT = 12_000


class Replicates(NamedTuple):
    """A metric of one model: on the test set as it is, and on each of ``RESAMPLES`` resampled test sets."""

    value: float
    samples: Array


def interval(samples: Array, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of ``samples``, those that are undefined left out."""
    tail = (1 - level) / 2
    known = samples[np.isfinite(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def t_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of ``values`` (seeds); NaN for fewer than two."""
    if len(values) < 2:
        return float("nan"), float("nan")
    from scipy.special import stdtrit  # light, unlike scipy.stats

    half = float(stdtrit(len(values) - 1, 0.5 + level / 2)) * float(np.std(values, ddof=1)) / len(values) ** 0.5
    middle = float(np.mean(values))
    return middle - half, middle + half


def seed_of_test_set(dataset: str, labels: Array) -> int:
    """The seed of a test set's resamples: its name and labels, and nothing of the model."""
    digest = hashlib.sha256(dataset.encode() + np.ascontiguousarray(labels, dtype=np.int64).tobytes())
    return int.from_bytes(digest.digest()[:8], "big")


def resample(
    dataset: str, labels: Array, models: Sequence[Array], n: int = RESAMPLES, metrics: Sequence[Metric] = TESTED
) -> list[dict[str, Replicates]]:
    """Bootstrap the metrics of several models on one test set, stratified by class (plain if multi-label).

    Args:
        dataset: name; it makes the resamples of two datasets with equal labels independent.
        labels: (N,) or (N, K), as in :func:`bench.metrics.one_vs_rest.one_vs_rest`.
        models: scores of each model, (N, K).
        n: resamples.
        metrics: those that are functions of single images.

    Returns:
        For each model the replicates of each metric, by name.
    """
    groups = strata(labels)
    generator = np.random.default_rng(seed_of_test_set(dataset, labels))
    asked = [(metric.name, metric.images) for metric in metrics if metric.images]
    width = max((one_vs_rest(scores, labels)[0].shape[1] for scores in models), default=1)
    if len(groups) * width <= EXACT_LIMIT:
        weights = _weights(groups, n, generator)
        return [
            {name: Replicates(of.value(s, labels), of.resampled(s, labels, weights)) for name, of in asked}
            for s in models
        ]
    # First-order bootstrap: each image's influence on a metric times a standard normal weight.
    pairs = [(scores, name, of) for scores in models for name, of in asked]
    moved = iter(
        _moved(np.stack([of.influence(scores, labels) for scores, _, of in pairs], axis=1), groups, n, generator)
    )
    found: list[dict[str, Replicates]] = []
    for scores in models:
        own = {}
        for name, of in asked:
            value = of.value(scores, labels)
            own[name] = Replicates(value, (value + next(moved)).clip(0, 1))
        found.append(own)
    return found


def _weights(groups: Array, n: int, generator: np.random.Generator) -> Array:
    """How often each image is drawn in each resample, (N, n) float32; each stratum keeps its size."""
    weights = np.empty((len(groups), n), dtype=np.float32)
    for stratum in np.unique(groups):
        members = np.flatnonzero(groups == stratum)
        drawn = generator.integers(len(members), size=(n, len(members))) + len(members) * np.arange(n)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=n * len(members))
        weights[members] = counts.reshape(n, len(members)).T
    return weights


def _moved(influences: Array, groups: Array, n: int, generator: np.random.Generator) -> Array:
    """What resampling adds to each of K metrics, (K, n), to first order."""
    for stratum in np.unique(groups):
        members = groups == stratum
        influences[members] -= influences[members].mean(0)
    moved = np.zeros((n, influences.shape[1]))
    for start in range(0, len(influences), 4096):  # bounds the memory; the draws do not depend on the models
        part = influences[start : start + 4096]
        moved += generator.standard_normal((n, len(part)), dtype=np.float32) @ part
    return moved.T
