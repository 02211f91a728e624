"""Two classifiers on the same test images: is one better? Pure functions of saved scores, no torch.

Every comparison is of ``a`` with ``b``: a positive difference says that ``a`` is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.metrics.one_vs_rest import Array, auc, correct, influence, one_vs_rest
from bench.report.stats.bootstrap import RESAMPLES, resample

Z_95 = 1.959963984540054
# Up to so many discordant pairs McNemar's test is the exact binomial one: it costs nothing there.
EXACT_PAIRS = 1_000

Scores = Array | Sequence[Array]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference of two classifiers (``a`` less ``b``), its 95 % interval and the two-sided p of no difference."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class Components:
    """What each test image adds to the difference of two scores, so that differences of seeds can be averaged.

    Attributes:
        difference: of the two scores.
        of_image: (N,) what drawing the image once more would add to it.
        strata: (N,) the group each image was drawn from: its class, or all one group if multi-label.
    """

    difference: float
    of_image: Array
    strata: Array

    def variance(self) -> tuple[float, float]:
        """Return the variance that a new draw of test images would give, and its degrees of freedom.

        For two classes it is that of DeLong, DeLong and Clarke-Pearson (1988); for more, images are taken to be drawn
        class by class. A class of one image counts with its own square. Degrees of freedom after Welch and
        Satterthwaite; infinite where nothing varies.
        """
        total = squares = 0.0
        for stratum in np.unique(self.strata):
            own = self.of_image[self.strata == stratum]
            n = len(own)
            part = float(own[0] ** 2) if n == 1 else float(((own - own.mean()) ** 2).sum() * n / (n - 1))
            total += part
            squares += part**2 / max(n - 1, 1)
        return total, total**2 / squares if squares else math.inf


def delong(scores_a: Scores, scores_b: Scores, labels: Array) -> Comparison:
    """Compare two AUCs (one against the rest, mean over classes) measured on the same images, by DeLong's test.

    Args:
        scores_a: (N,), (N, 1) or (N, K) scores, or a sequence of such, one a seed: then means over seeds are compared,
            and the p-value is about these trained networks, not about training once more.
        scores_b: the same of the other classifier.
        labels: (N,) or (N, 1) classes, or (N, K) in {0, 1} if multi-label.

    Raises:
        ValueError: the shapes do not fit, or no class can be scored.
    """
    labels = np.asarray(labels)
    area_a, parts_a = _mean_influence(scores_a, labels)
    area_b, parts_b = _mean_influence(scores_b, labels)
    if not math.isfinite(area_a - area_b):
        raise ValueError("delong: no class has both images of its own and others")
    variance, _ = Components(area_a - area_b, parts_a - parts_b, strata(labels)).variance()
    return _normal(area_a - area_b, variance)


def auc_components(scores_a: Array, scores_b: Array, labels: Array) -> Components:
    """What :func:`delong` is made of, for one pair of scores."""
    (area_a, parts_a), (area_b, parts_b) = _mean_influence(scores_a, labels), _mean_influence(scores_b, labels)
    return Components(area_a - area_b, parts_a - parts_b, strata(labels))


def acc_components(scores_a: Array, scores_b: Array, labels: Array) -> Components:
    """The difference in ACC image by image; the images are one group, as in McNemar's test."""
    apart = correct(scores_a, labels) - correct(scores_b, labels)
    return Components(float(apart.mean()), (apart - apart.mean()) / len(apart), np.zeros(len(apart), dtype=np.int64))


def mcnemar(correct_a: Array, correct_b: Array) -> Comparison:
    """Compare two accuracies on the same images: exact binomial test on the images that only one answers rightly.

    Above ``EXACT_PAIRS`` such images the chi-square form with continuity correction. The interval is Agresti and Min's
    (2005): Wald's, with half an image added to each of the four cells.

    Args:
        correct_a: (N,) booleans, or 0 and 1.
        correct_b: the same of the other classifier.

    Raises:
        ValueError: lengths differ, nothing is there, or a value is neither 0 nor 1 (multi-label: use
            :func:`paired_bootstrap`).
    """
    a, b = np.asarray(correct_a).reshape(-1), np.asarray(correct_b).reshape(-1)
    if len(a) != len(b) or not len(a):
        raise ValueError(f"mcnemar: {len(a)} answers against {len(b)}")
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("mcnemar: answers are right or wrong (0 or 1); shares of labels need paired_bootstrap")
    a, b = a.astype(bool), b.astype(bool)
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n = len(a)
    low, high = _agresti_min(only_a, only_b, n)
    return Comparison((only_a - only_b) / n, low, high, _mcnemar_p(only_a, only_b))


def mcnemar_worse(only_current: int, only_baseline: int) -> float:
    """One-sided exact p that ``current`` is worse, from the images that only one of the two answers rightly."""
    from scipy.special import bdtr  # light, unlike scipy.stats

    apart = only_current + only_baseline
    return float(bdtr(only_current, apart, 0.5)) if apart else 1.0


def paired_bootstrap(
    scores_a: Array, scores_b: Array, labels: Array, metric: str = "auc", dataset: str = "", n: int = RESAMPLES
) -> Comparison:
    """Compare AUC or ACC on the same resampled test images, stratified by class (plain if multi-label).

    Args:
        scores_a: (N,), (N, 1) or (N, K).
        scores_b: the same of the other classifier.
        labels: as in :func:`delong`.
        metric: ``auc`` or ``acc``.
        dataset: name; with the labels it seeds the resamples, as in all other intervals of a report.
        n: resamples; p is at least 2 / (n + 1).

    Raises:
        ValueError: the shapes do not fit, or another metric.
    """
    if metric not in ("auc", "acc"):
        raise ValueError(f"paired_bootstrap: metric {metric!r}; it compares auc or acc")
    a, b = resample(dataset, labels, [np.asarray(scores_a), np.asarray(scores_b)], n)
    moved = a.auc_samples - b.auc_samples if metric == "auc" else a.acc_samples - b.acc_samples
    moved = moved[np.isfinite(moved)]
    difference = a.auc - b.auc if metric == "auc" else a.acc - b.acc
    low, high = (float(q) for q in np.quantile(moved, (0.025, 0.975)))
    # An exact tie counts for both sides; sums of weights in another order differ in the last bits.
    beyond = min(int((moved <= 1e-12).sum()), int((moved >= -1e-12).sum()))
    return Comparison(difference, low, high, min(1.0, 2 * (beyond + 1) / (len(moved) + 1)))


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


def strata(labels: Array) -> Array:
    """The class of each image, (N,); zeros if multi-label."""
    flat = np.asarray(labels).reshape(len(labels), -1)
    return flat[:, 0] if flat.shape[1] == 1 else np.zeros(len(flat), dtype=np.int64)


def _mean_influence(scores: Scores, labels: Array) -> tuple[float, Array]:
    """AUC and each image's influence on it, (N,); means over seeds if there are several."""
    seeds: list[Array] = list(scores) if isinstance(scores, (list, tuple)) else [np.asarray(scores)]
    if not seeds:
        raise ValueError("delong: no scores")
    for one in seeds:
        one_vs_rest(np.asarray(one), labels)  # says what does not fit
    areas = [auc(one, labels) for one in seeds]
    return float(np.mean(areas)), np.mean([influence(np.asarray(one), labels)[0] for one in seeds], axis=0)


def _normal(difference: float, variance: float) -> Comparison:
    if variance <= 0:
        return Comparison(difference, difference, difference, 1.0 if difference == 0 else 0.0)
    deviation = math.sqrt(variance)
    return Comparison(
        difference,
        difference - Z_95 * deviation,
        difference + Z_95 * deviation,
        math.erfc(abs(difference) / deviation / math.sqrt(2)),
    )


def _mcnemar_p(only_a: int, only_b: int) -> float:
    apart = only_a + only_b
    if apart > EXACT_PAIRS:
        corrected = max(abs(only_a - only_b) - 1, 0) ** 2 / apart
        return math.erfc(math.sqrt(corrected / 2))
    return min(1.0, 2 * mcnemar_worse(min(only_a, only_b), max(only_a, only_b)))


def _agresti_min(only_a: int, only_b: int, n: int) -> tuple[float, float]:
    a, b, total = only_a + 0.5, only_b + 0.5, n + 2.0
    middle = (a - b) / total
    half = Z_95 * math.sqrt((a + b) - (a - b) ** 2 / total) / total
    return max(-1.0, middle - half), min(1.0, middle + half)
