"""What a test set can tell: AUC and ACC with intervals from resampled test images. Pure functions of saved scores.

The resamples depend on the dataset's name and labels only, so that every model of one test set is seen on the same
resampled images and the difference of two models is a paired comparison.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.metrics.one_vs_rest import Array, auc, correct, influence, one_vs_rest

RESAMPLES = 1_000
# Above this many (image, class) pairs the AUC is resampled through its first-order expansion: exact resampling would
# take minutes over a full sweep, and the two agree to a few percent of the interval's width there (tested).
EXACT_LIMIT = 12_000


@dataclass(frozen=True, slots=True)
class Replicates:
    """AUC and ACC of one model: on the test set as it is, and on each of ``RESAMPLES`` resampled test sets."""

    auc: float
    acc: float
    auc_samples: Array
    acc_samples: Array


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


def resample(dataset: str, labels: Array, models: Sequence[Array], n: int = RESAMPLES) -> list[Replicates]:
    """Bootstrap AUC and ACC of several models on one test set, stratified by class (plain if multi-label).

    Args:
        dataset: name; it makes the resamples of two datasets with equal labels independent.
        labels: (N,) or (N, K), as in :func:`one_vs_rest`.
        models: scores of each model, (N, K).
        n: resamples.
    """
    flat = np.asarray(labels).reshape(len(labels), -1)
    strata = flat[:, 0] if flat.shape[1] == 1 else np.zeros(len(flat), dtype=np.int64)
    generator = np.random.default_rng(seed_of_test_set(dataset, labels))
    width = max((one_vs_rest(scores, labels)[0].shape[1] for scores in models), default=1)
    if len(flat) * width <= EXACT_LIMIT:
        weights = _weights(strata, n, generator)
        return [_exact(scores, labels, weights) for scores in models]
    return _expanded(models, labels, strata, n, generator)


def _weights(strata: Array, n: int, generator: np.random.Generator) -> Array:
    """How often each image is drawn in each resample, (N, n) float32; each stratum keeps its size."""
    weights = np.empty((len(strata), n), dtype=np.float32)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        drawn = generator.integers(len(members), size=(n, len(members))) + len(members) * np.arange(n)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=n * len(members))
        weights[members] = counts.reshape(n, len(members)).T
    return weights


def _exact(scores: Array, labels: Array, weights: Array) -> Replicates:
    columns, targets = one_vs_rest(scores, labels)
    per_class = [_weighted_auc(columns[:, k], targets[:, k], weights) for k in range(columns.shape[1])]
    right = correct(scores, labels)
    return Replicates(
        auc=auc(scores, labels),
        acc=float(right.mean()),
        auc_samples=_column_means(np.stack(per_class)),
        acc_samples=right @ weights.astype(np.float64) / len(right),
    )


def _column_means(values: Array) -> Array:
    """Mean over axis 0 of what is defined; NaN where nothing is."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(0)
    counts = known.sum(0)
    means: Array = np.where(counts > 0, total / np.maximum(counts, 1), np.nan)
    return means


def _weighted_auc(column: Array, target: Array, weights: Array) -> Array:
    """AUC of each resample, (n,): one sort of the scores serves all of them."""
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
    samples: Array = np.where(pairs > 0, wins / np.maximum(pairs, 1), np.nan)
    return samples


def _expanded(
    models: Sequence[Array], labels: Array, strata: Array, n: int, generator: np.random.Generator
) -> list[Replicates]:
    """First-order bootstrap: each image's influence on AUC and ACC times a standard normal weight."""
    moves = np.stack([part for scores in models for part in influence(scores, labels)], axis=1)
    for stratum in np.unique(strata):
        members = strata == stratum
        moves[members] -= moves[members].mean(0)
    moved = np.zeros((n, moves.shape[1]))
    for start in range(0, len(moves), 4096):  # bounds the memory; the draws do not depend on the models
        part = moves[start : start + 4096]
        moved += generator.standard_normal((n, len(part)), dtype=np.float32) @ part
    found = []
    for i, scores in enumerate(models):
        area, accuracy = auc(scores, labels), float(correct(scores, labels).mean())
        areas, accuracies = area + moved[:, 2 * i], accuracy + moved[:, 2 * i + 1]
        found.append(Replicates(area, accuracy, areas.clip(0, 1), accuracies.clip(0, 1)))
    return found
