"""Do two models differ significantly on the same test images? All pairs at once, over images and over seeds.

A figure is a mean over seeds. Two things move it: other test images of the same classes, and another training. The
first is estimated from each image's influence on the figure (for a two-class AUC this is DeLong's test, 1988), paired
over the images; the second from the spread over seeds. Their variances add. With a single training of a model
the second is unknown: then a difference is one between two trained networks, and ``retrained`` is false.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np

from bench.metrics.one_vs_rest import Array, strata
from bench.metrics.registry import OverImages
from bench.stats.cluster import over_patients
from bench.stats.paired import holm, mcnemar
from bench.stats.ranking import ALPHA, letters, rank_intervals, tie_groups


@dataclass(frozen=True, slots=True)
class Sample:
    """One figure of one model on one test set.

    Attributes:
        values: the figure of each seed.
        influence: (N,) what drawing each image once more adds to the mean over seeds.
        right: (N,) how right each image was answered, of a figure that is its mean over images and one seed; only for
            McNemar's exact test.
        patients: (N,) number of each image's patient, where some have several images: they count together.
        overlap: of cross-validation, where ``values`` are those of the folds: test images for each training image.
    """

    values: tuple[float, ...]
    influence: Array
    right: Array | None = None
    patients: Array | None = None
    overlap: float | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))


@dataclass(frozen=True, slots=True)
class Contrast:
    """All pairs of K models: first less second, with the variance of that and what its degrees of freedom need.

    Attributes:
        moments: sum over the parts of a variance of ``part ** 2 / its degrees of freedom`` (Satterthwaite).
        training: the part of the variance that comes from training again.
        retrained: every model was trained more than once, so this is on training again. Where only some were, those
            trained once are given their spread, which is in the variance all the same.
    """

    difference: Array
    variance: Array
    moments: Array
    training: Array
    retrained: bool

    def of(self, at: Sequence[int]) -> Contrast:
        """Some of the models, in another order."""
        both = np.ix_(at, at)
        return Contrast(
            self.difference[both], self.variance[both], self.moments[both], self.training[both], self.retrained
        )

    def p_values(self) -> Array:
        """Two-sided p value of each pair, not corrected for their number; 1 where nothing differs."""
        from scipy.special import stdtr

        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.abs(self.difference) / np.sqrt(self.variance)
        p = 2 * stdtr(_degrees(self.variance, self.moments), -t)
        return np.where(self.difference == 0, 1.0, np.where(np.isnan(p), 1.0, p))

    def half_width(self, level: float = 0.95) -> Array:
        """Half the interval of each difference, not corrected for their number."""
        from scipy.special import stdtrit

        return stdtrit(_degrees(self.variance, self.moments), 0.5 + level / 2) * np.sqrt(self.variance)


@dataclass(frozen=True, slots=True)
class Estimate:
    """One model's figure and how far chance moves it.

    Attributes:
        value: mean over seeds (and over datasets).
        variance: over test images and trainings.
        moments: as in :class:`Contrast`.
        over_images: the part of the variance that comes from the test images.
    """

    value: float
    variance: float
    moments: float
    over_images: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval; of a value inside (0, 1) on the scale of its log-odds, so that it stays inside."""
        from scipy.special import expit, logit, stdtrit

        half = float(stdtrit(_degrees(np.array(self.variance), np.array(self.moments)), 0.5 + level / 2))
        half *= self.variance**0.5
        if not 0 < self.value < 1:
            return self.value - half, self.value + half
        middle, half = float(logit(self.value)), half / (self.value * (1 - self.value))
        return float(expit(middle - half)), float(expit(middle + half))


def _degrees(variance: Array, moments: Array) -> Array:
    """Satterthwaite's degrees of freedom of a sum of variances."""
    with np.errstate(divide="ignore", invalid="ignore"):
        degrees = np.clip(variance**2 / moments, 1.0, 1e9)
    return np.where(np.isfinite(degrees), degrees, 1e9)


def sample(of: OverImages, scores: Sequence[Array], labels: Array, patients: Array | None = None) -> Sample:
    """A metric of one model from the scores of each seed."""
    values = tuple(of.value(s, labels) for s in scores)
    influence = np.mean([of.influence(s, labels) for s in scores], axis=0)
    exact = of.answers if len(scores) == 1 and patients is None else None
    return Sample(values, influence, exact(scores[0], labels) if exact else None, patients)


def contrast(samples: Sequence[Sample], groups: Array) -> Contrast:
    """Compare all pairs of models on one test set.

    Args:
        samples: one a model, all on the same images in the same order.
        groups: (N,) the group that each image was drawn from (:func:`groups_of`).
    """
    means = np.array([s.mean for s in samples])
    if samples[0].overlap is not None:
        return _over_folds(samples, samples[0].overlap)
    variance = np.zeros((len(samples), len(samples)))
    moments = np.zeros_like(variance)
    for gram, degrees in _over_images(samples, groups):
        own = np.diag(gram)
        part = np.maximum(own[:, None] + own[None, :] - 2 * gram, 0.0)
        variance += part
        moments += part**2 / degrees
    training, moment = _over_seeds(samples)
    retrained = all(len(s.values) > 1 for s in samples)
    return Contrast(means[:, None] - means[None, :], variance + training, moments + moment, training, retrained)


def _over_folds(samples: Sequence[Sample], overlap: float) -> Contrast:
    """All pairs over folds whose training sets overlap: Nadeau and Bengio's corrected variance (2003, section 4)."""
    values = np.stack([s.values for s in samples])  # (K, folds)
    apart = values[:, None, :] - values[None, :, :]
    folds = values.shape[1]
    variance = (1 / folds + overlap) * apart.var(axis=2, ddof=1)
    return Contrast(apart.mean(axis=2), variance, variance**2 / (folds - 1), np.zeros_like(variance), True)


def estimates(samples: Sequence[Sample], groups: Array) -> list[Estimate]:
    """Each model's own figure with both variances; that over trainings is its own.

    A model that was trained once is given the spread of the others together, if any was trained again.

    Args:
        samples: one a model, all on the same images in the same order.
        groups: (N,) the group that each image was drawn from (:func:`groups_of`).
    """
    if (overlap := samples[0].overlap) is not None:
        return [_estimate_over_folds(s, groups, overlap) for s in samples]
    seeds = np.array([len(s.values) for s in samples])
    own = np.array([float(np.var(s.values, ddof=1)) if len(s.values) > 1 else 0.0 for s in samples])
    degrees = int((seeds - 1).sum())
    training = np.where(seeds > 1, own, float(((seeds - 1) * own).sum()) / max(degrees, 1)) / seeds
    moments = training**2 / np.where(seeds > 1, seeds - 1, max(degrees, 1))
    images = np.zeros(len(samples))
    for gram, freedom in _over_images(samples, groups):
        images += np.diag(gram)
        moments += np.diag(gram) ** 2 / freedom
    parts = zip(samples, (images + training).tolist(), moments.tolist(), images.tolist(), strict=True)
    return [Estimate(s.mean, variance, moment, image) for s, variance, moment, image in parts]


def _estimate_over_folds(one: Sample, groups: Array, overlap: float) -> Estimate:
    folds = len(one.values)
    variance = (1 / folds + overlap) * float(np.var(one.values, ddof=1))
    images = sum(float(gram[0, 0]) for gram, _ in _over_images([one], groups))
    return Estimate(one.mean, variance, variance**2 / (folds - 1), images)


def estimate(of: OverImages, scores: Sequence[Array], labels: Array, patients: Array | None = None) -> Estimate:
    """A metric of one model by itself, from the scores of each seed."""
    return estimates([sample(of, scores, labels, patients)], groups_of(of, labels))[0]


def mean_estimate(of: Sequence[Estimate]) -> Estimate:
    """One model's mean over several datasets, taken as they are (not as a sample of more)."""
    n = len(of)
    return Estimate(
        sum(e.value for e in of) / n,
        sum(e.variance for e in of) / n**2,
        sum(e.moments for e in of) / n**4,
        sum(e.over_images for e in of) / n**2,
    )


def groups_of(of: OverImages, labels: Array) -> Array:
    """The group that each test image counts as drawn from, (N,): its class, or one for all, as the metric says."""
    return strata(labels) if of.by_class else np.zeros(len(labels), dtype=np.int64)


def _over_images(samples: Sequence[Sample], groups: Array) -> Iterator[tuple[Array, int]]:
    """What another draw of images would move the figures by, or where patients are known, another draw of those."""
    influence = np.stack([s.influence for s in samples], axis=1)
    if samples[0].patients is None:
        yield from over_images(influence, groups)
    else:
        yield over_patients(influence, groups, samples[0].patients)


def over_images(influence: Array, groups: Array) -> Iterator[tuple[Array, int]]:
    """Yield for each group of images the (K, K) covariance that a new draw would give, and its degrees of freedom.

    For a two-class AUC the sum is DeLong, DeLong and Clarke-Pearson's (1988); for more classes, images are taken to be
    drawn class by class. A group of one image counts with its own square.

    Args:
        influence: (N, K) what drawing each image once more adds to each of K figures.
        groups: (N,) the group of each image.
    """
    for group in np.unique(groups):
        rows = influence[groups == group]
        n = len(rows)
        if n > 1:  # of a single image nothing is known but itself
            rows = rows - rows.mean(0)
        yield rows.T @ rows * (n / max(n - 1, 1)), max(n - 1, 1)


def over_trainings(values: Sequence[Sequence[float]]) -> tuple[Array, Array, int]:
    """Variance of each mean over seeds that comes from training again, as (pooled, of its own, degrees of the pooled).

    A spread over three seeds can be tiny by chance, and over many pairs some are: with each model's own spread (Welch)
    11 % of simulated A/A sweeps had a false difference. So a model's spread counts as no less than that of all models
    together; a larger one counts as it is, with its own few degrees of freedom.

    Args:
        values: of each model its figure in each seed.
    """
    seeds = np.array([len(own) for own in values])
    degrees = int((seeds - 1).sum())
    own = np.array([float(np.var(v, ddof=1)) if len(v) > 1 else 0.0 for v in values])
    together = float(((seeds - 1) * own).sum()) / max(degrees, 1)
    larger = own > together * (1 + 1e-9)  # not by rounding alone
    return np.where(larger, 0.0, together) / seeds, np.where(larger, own, 0.0) / seeds, degrees


def _over_seeds(samples: Sequence[Sample]) -> tuple[Array, Array]:
    """Variance of each difference that comes from training again, and its share of the moments."""
    pooled, single, degrees = over_trainings([s.values for s in samples])
    each = single**2 / np.array([max(len(s.values) - 1, 1) for s in samples])
    off = 1 - np.eye(len(samples))
    common = pooled[:, None] + pooled[None, :]  # one estimate, so its errors do not average out
    variance = (common + single[:, None] + single[None, :]) * off
    moments = (common**2 / max(degrees, 1) + each[:, None] + each[None, :]) * off
    return variance, moments


def mean_contrast(contrasts: Sequence[Contrast]) -> Contrast:
    """The same models compared by their mean over several datasets, taken as they are (not as a sample of more)."""
    n = len(contrasts)
    return Contrast(
        difference=np.mean([c.difference for c in contrasts], axis=0),
        variance=np.sum([c.variance for c in contrasts], axis=0) / n**2,
        moments=np.sum([c.moments for c in contrasts], axis=0) / n**4,
        training=np.sum([c.training for c in contrasts], axis=0) / n**2,
        retrained=all(c.retrained for c in contrasts),
    )


def same_images(of: Sequence[Estimate]) -> Estimate:
    """One model's mean over variants of one dataset (other splits of the same images), as if they erred all alike.

    How far variants share images and errors is not known, so nothing averages out: the mean is as uncertain as its
    parts are on average (an upper bound of its variance).
    """
    if len(of) == 1:
        return of[0]
    variance, moments = _alike([np.array(e.variance) for e in of], [np.array(e.moments) for e in of])
    images = float(np.mean([e.over_images**0.5 for e in of])) ** 2
    return Estimate(sum(e.value for e in of) / len(of), float(variance), float(moments), images)


def same_images_contrast(of: Sequence[Contrast]) -> Contrast:
    """The same of all pairs: models compared by their mean over variants of one dataset."""
    if len(of) == 1:
        return of[0]
    variance, moments = _alike([c.variance for c in of], [c.moments for c in of])
    training = np.mean([np.sqrt(c.training) for c in of], axis=0) ** 2
    difference = np.mean([c.difference for c in of], axis=0)
    return Contrast(difference, variance, moments, training, all(c.retrained for c in of))


def _alike(variances: Sequence[Array], moments: Sequence[Array]) -> tuple[Array, Array]:
    """Variance of a mean whose parts are perfectly correlated, and its moments for the fewest degrees of any part."""
    variance = np.mean([np.sqrt(v) for v in variances], axis=0) ** 2
    with np.errstate(divide="ignore", invalid="ignore"):
        fewest = np.max([np.nan_to_num(m / v**2, posinf=0.0) for m, v in zip(moments, variances, strict=True)], axis=0)
    return variance, variance**2 * fewest


def mcnemar_values(samples: Sequence[Sample], p: Array) -> Array:
    """Replace the p values of pairs of which each answered every image right or wrong once by McNemar's exact test."""
    exact = p.copy()
    once = [i for i, s in enumerate(samples) if s.right is not None and np.isin(s.right, (0.0, 1.0)).all()]
    for i, j in combinations(once, 2):
        first, second = samples[i].right, samples[j].right
        if first is not None and second is not None:
            exact[i, j] = exact[j, i] = mcnemar(first, second)
    return exact


def compared(of: OverImages, samples: Sequence[Sample], labels: Array) -> tuple[Contrast, Array]:
    """All pairs of models by one metric, and their p values (K, K): McNemar's exact ones where there are such."""
    pairs = contrast(samples, groups_of(of, labels))
    return pairs, mcnemar_values(samples, pairs.p_values()) if of.answers else pairs.p_values()


# --- all pairs -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Verdict:
    """Which pairs of models differ significantly.

    Attributes:
        models: names, best first.
        contrast: of the pairs, in that order.
        p: (K, K) corrected for the number of pairs (Holm, 1979).
    """

    models: tuple[str, ...]
    contrast: Contrast
    p: Array
    groups: tuple[tuple[int, ...], ...] | None = field(init=False)

    def __post_init__(self) -> None:
        self.groups = tie_groups(self.better)

    @property
    def better(self) -> Array:
        """(K, K): the first is significantly better than the second."""
        return (self.contrast.difference > 0) & (self.p < ALPHA)

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return len(self.models) * (len(self.models) - 1) // 2

    @property
    def significant(self) -> int:
        """How many pairs differ significantly."""
        return int(self.better.sum())

    def letters(self) -> dict[str, str]:
        """The tie groups of each model; empty where they are too many to be named."""
        if self.groups is None:
            return {}
        return dict(zip(self.models, letters(self.groups, len(self.models)), strict=True))

    def ranks(self) -> dict[str, tuple[int, int]]:
        """The ranks each model can have."""
        return dict(zip(self.models, rank_intervals(self.better), strict=True))


def all_pairs(models: Sequence[str], pairs: Contrast, p: Array | None = None) -> Verdict:
    """Compare all pairs as one family: with 95 % confidence none of the differences found is false.

    Args:
        models: K names.
        pairs: of the models in that order.
        p: (K, K) uncorrected p values where another test gives them (McNemar's); by default those of ``pairs``.
    """
    alone = pairs.p_values() if p is None else p
    upper = np.triu_indices(len(models), 1)
    corrected = np.ones_like(alone)
    corrected[upper] = holm(alone[upper])
    corrected = np.minimum(corrected, corrected.T)
    totals = pairs.difference.sum(1)  # K times the distance from the mean: the order of the figures
    order = sorted(range(len(models)), key=lambda i: (-totals[i], models[i]))
    return Verdict(tuple(models[i] for i in order), pairs.of(order), corrected[np.ix_(order, order)])
