"""Intervals: percentiles of resampled figures, and Student's over seeds. Pure functions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from bench.metrics.one_vs_rest import Array


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
    """The seed of a test set's resamples: its name and labels, and nothing of the model, so that models are paired."""
    digest = hashlib.sha256(dataset.encode() + np.ascontiguousarray(labels, dtype=np.int64).tobytes())
    return int.from_bytes(digest.digest()[:8], "big")
