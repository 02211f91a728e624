"""Tests that stand alone: McNemar's on the answers of two models, and Holm's correction. Pure functions, no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from bench.metrics.one_vs_rest import Array

Z_95 = 1.959963984540054
# Up to so many discordant pairs McNemar's test is the exact binomial one: it costs nothing there.
EXACT_PAIRS = 1_000


def mcnemar(correct_a: Array, correct_b: Array) -> float:
    """Two-sided p that two models differ in accuracy: exact binomial test on the images that only one answers rightly.

    Above ``EXACT_PAIRS`` such images the chi-square form with continuity correction.

    Args:
        correct_a: (N,) booleans, or 0 and 1.
        correct_b: the same of the other model.

    Raises:
        ValueError: lengths differ, nothing is there, or a value is neither 0 nor 1.
    """
    a, b = np.asarray(correct_a).reshape(-1), np.asarray(correct_b).reshape(-1)
    if len(a) != len(b) or not len(a):
        raise ValueError(f"mcnemar: {len(a)} answers against {len(b)}")
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("mcnemar: answers are right or wrong, 0 or 1")
    a, b = a.astype(bool), b.astype(bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    apart = only_a + only_b
    if apart > EXACT_PAIRS:
        return math.erfc(math.sqrt(max(abs(only_a - only_b) - 1, 0) ** 2 / apart / 2))
    return min(1.0, 2 * mcnemar_worse(min(only_a, only_b), max(only_a, only_b)))


def mcnemar_worse(only_current: int, only_baseline: int) -> float:
    """One-sided exact p that ``current`` is worse, from the images that only one of the two answers rightly."""
    from scipy.special import bdtr  # light, unlike scipy.stats

    apart = only_current + only_baseline
    return float(bdtr(only_current, apart, 0.5)) if apart else 1.0


def holm(p_values: Sequence[float] | Array) -> Array:
    """Adjust p-values by Holm (1979): rejecting those <= alpha errs at all with probability <= alpha, however they
    depend on one another. NaN stays NaN and does not count as a test.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(np.isfinite(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    stepped = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1.0) if len(order) else stepped
    return adjusted
