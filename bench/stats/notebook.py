"""Arrays in, verdicts out: the tests of the leaderboards for scores that lie in memory, as in a notebook.

Labels are (N,) class numbers, or (N, L) in {0, 1} where an image has several; scores are probabilities, (N,) or (N, 1)
of class 1, or (N, C); of a model with several trainings a list of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from bench.metrics.one_vs_rest import Array, one_vs_rest
from bench.metrics.registry import TESTED, OverImages
from bench.stats.bootstrap import interval, seed_of_test_set
from bench.stats.cluster import codes_of, resamples
from bench.stats.leader import LeaderTest, against_leader
from bench.stats.paired import holm
from bench.stats.separation import Contrast, all_pairs, compared, contrast, estimates, groups_of, sample

Scores = Array | Sequence[Array]  # of one training, or of several


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its 95 % interval and standard error (of the figure, before the log-odds scale of the interval)."""

    value: float
    low: float
    high: float
    standard_error: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Figure of ``a`` less figure of ``b``, its 95 % interval, two-sided p, and p corrected for all pairs (Holm)."""

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_corrected: float


@dataclass(frozen=True, slots=True)
class Compared:
    """Models on one test set.

    Attributes:
        models: name to its figure.
        pairs: all pairs, in the order given.
        leader: every other model against the best one.
        letters: models that share a letter are not significantly different (all pairs, Holm).
        ranks: the places that each model can have.
        retrained: every model was trained more than once, so the claims are on training again too.
    """

    models: dict[str, Interval]
    pairs: tuple[Difference, ...]
    leader: LeaderTest
    letters: dict[str, str]
    ranks: dict[str, tuple[int, int]]
    retrained: bool


@dataclass(frozen=True, slots=True)
class DeLong:
    """Two AUCs on the same images (DeLong, DeLong and Clarke-Pearson, 1988).

    Attributes:
        auc_a: of the first.
        auc_b: of the second.
        variance_a: of the first AUC over test images.
        variance_b: of the second.
        covariance: of the two.
        z: difference in standard errors; 0 where nothing differs.
        p: two-sided, normal.
    """

    auc_a: float
    auc_b: float
    variance_a: float
    variance_b: float
    covariance: float
    z: float
    p: float


def delong(labels: Array, a: Array, b: Array, patients: Sequence[str] | Array | None = None) -> DeLong:
    """Compare two AUCs of a two-class test set, with the normal distribution of the paper.

    Args:
        labels: (N,) in {0, 1}.
        a: (N,) or (N, 2) scores of the first model; any monotone scale.
        b: the same of the second.
        patients: (N,) the patient of each image; where some have several, the variances are Obuchowski's (1997).

    Raises:
        ValueError: lengths differ, labels are not two classes, or one of them is missing.
    """
    labels = np.asarray(labels).reshape(-1)
    if set(np.unique(labels).tolist()) != {0, 1}:
        raise ValueError("delong: labels are 0 and 1, and both must occur")
    columns = [one_vs_rest(s, labels)[0] for s in (a, b)]
    if any(c.shape[1] != 1 for c in columns):
        raise ValueError("delong: scores of two classes, (N,) or (N, 2); compare() takes more")
    of = _tested("auc")
    samples = [sample(of, [c], labels, codes_of(patients)) for c in columns]
    table = contrast(samples, groups_of(of, labels))
    own = estimates(samples, groups_of(of, labels))
    variance = float(table.variance[0, 1])
    difference = samples[0].mean - samples[1].mean
    z = difference / variance**0.5 if variance > 0 else 0.0
    from scipy.special import ndtr

    covariance = (own[0].variance + own[1].variance - variance) / 2
    p = float(2 * ndtr(-abs(z))) if variance > 0 else 1.0
    return DeLong(samples[0].mean, samples[1].mean, own[0].variance, own[1].variance, covariance, z, p)


def compare(
    labels: Array, models: Mapping[str, Scores], metric: str = "auc", patients: Sequence[str] | Array | None = None
) -> Compared:
    """Compare models on one test set as a leaderboard does.

    A figure is the mean over a model's trainings. The variances over test images (paired) and over trainings add; the
    degrees of freedom are Satterthwaite's (:mod:`bench.stats.separation`).

    Args:
        labels: of the test set.
        models: name to scores; a list of arrays where it was trained several times.
        metric: one that is tested over images, ``auc`` or ``acc``.
        patients: (N,) the patient of each image; where some have several, their images count together.

    Raises:
        ValueError: fewer than two models, an unknown metric, or shapes that do not fit.
    """
    if len(models) < 2:
        raise ValueError("compare: two models or more are needed")
    of, labels = _tested(metric), np.asarray(labels)
    trainings = [[s] if isinstance(s, np.ndarray) else list(map(np.asarray, s)) for s in models.values()]
    samples = [sample(of, scores, labels, codes_of(patients)) for scores in trainings]
    names = list(models)
    table, p = compared(of, samples, labels)
    judged = all_pairs(names, table, p)
    figures = {}
    for name, found in zip(names, estimates(samples, groups_of(of, labels)), strict=True):
        figures[name] = Interval(found.value, *found.interval(), found.variance**0.5)
    return Compared(
        figures, differences(names, table, p), against_leader(names, table, p), judged.letters(), judged.ranks(),
        table.retrained,
    )  # fmt: skip


def bootstrap_interval(
    labels: Array,
    scores: Array,
    metric: str = "auc",
    n: int = 1000,
    name: str = "",
    patients: Sequence[str] | Array | None = None,
) -> Interval:
    """Bootstrap interval of one training's figure (percentiles): images drawn class by class, or whole patients.

    Args:
        labels: of the test set.
        scores: of one training.
        metric: ``auc`` or ``acc``.
        n: resamples.
        name: of the test set; equal names and labels give equal resamples, so that models are seen on the same ones.
        patients: (N,) the patient of each image; where some have several images, patients are drawn with all of them.
    """
    of, labels = _tested(metric), np.asarray(labels)
    weights = resamples(labels, codes_of(patients), seed_of_test_set(name, labels), n)
    samples = of.resampled(np.asarray(scores), labels, weights)
    return Interval(of.value(np.asarray(scores), labels), *interval(samples), float(np.nanstd(samples, ddof=1)))


def differences(names: Sequence[str], table: Contrast, p: Array) -> tuple[Difference, ...]:
    """All pairs in the order given, from their uncorrected p values (K, K)."""
    at, half = list(combinations(range(len(names)), 2)), table.half_width()
    corrected = holm([p[i, j] for i, j in at])
    found = []
    for (i, j), adjusted in zip(at, corrected, strict=True):
        d, h = float(table.difference[i, j]), float(half[i, j])
        found.append(Difference(names[i], names[j], d, d - h, d + h, float(p[i, j]), float(adjusted)))
    return tuple(found)


def _tested(metric: str) -> OverImages:
    known = {one.name: one.images for one in TESTED if one.images}
    if metric not in known:
        raise ValueError(f"metric {metric!r}: over images are tested {', '.join(known)}")
    return known[metric]
