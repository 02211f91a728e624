"""Images of one patient are not independent: variances, intervals and resamples by patient. Pure functions.

Every figure here is a mean of parts of images, or (an AUC) moves with single images by known influences. Summed
within patients, these are independent: the variance of a figure is that of the patients' sums. For a two-class AUC it
is Obuchowski's (Biometrics 53:567, 1997), of differences too; for a difference of accuracies it is the clustered
McNemar test (Obuchowski, Statistics in Medicine 17:1495, 1998; Durkalski et al., 2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.metrics.calibration import wilson
from bench.metrics.one_vs_rest import Array, strata

Z_95 = 1.959963984540054
RESAMPLES = 1_000


def codes_of(patients: Sequence[str] | Array | None) -> Array | None:
    """A number for each image's patient, (N,); None where no patient has two images. An unknown one is one alone."""
    if patients is None or not len(patients):
        return None
    names = np.asarray(patients).astype(str)
    alone = np.where(names == "", np.char.add("#", np.arange(len(names)).astype(str)), np.char.add("p", names))
    _, codes = np.unique(alone, return_inverse=True)
    return codes if len(set(codes.tolist())) < len(codes) else None


def over_patients(influence: Array, groups: Array, patients: Array) -> tuple[Array, int]:
    """The (K, K) covariance of K figures over another draw of patients, and its degrees of freedom.

    Args:
        influence: (N, K) what drawing each image once more adds to each figure.
        groups: (N,) the group that each image was drawn from: its class for an AUC, one for all for an ACC.
        patients: (N,) numbers from 0.

    Returns:
        The covariance, and one less than the number of patients in the group that has fewest.
    """
    kinds = np.unique(groups)
    sums, held = [], []
    for kind in kinds:
        members = groups == kind
        rows = influence[members]
        if len(rows) > 1:  # of a single image nothing is known but itself
            rows = rows - rows.mean(0)
        own = np.zeros((int(patients.max()) + 1, influence.shape[1]))
        np.add.at(own, patients[members], rows)
        sums.append(own)
        held.append(len(np.unique(patients[members])))
    everyone = len(np.unique(patients))
    total = np.zeros((influence.shape[1],) * 2)
    for i, (own, n) in enumerate(zip(sums, held, strict=True)):
        total += own.T @ own * _corrected(n)
        for other in sums[i + 1 :]:
            cross = own.T @ other * _corrected(everyone)
            total += cross + cross.T
    return total, max(min(held) - 1, 1)


def _corrected(n: int) -> float:
    return n / max(n - 1, 1)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of images (a sensitivity) with its 95 % interval over other images, or other patients."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class TwoRates:
    """Sensitivity and specificity with what other patients would move them by.

    Attributes:
        covariance: of (sensitivity, specificity), (2, 2).
    """

    sensitivity: Share
    specificity: Share
    covariance: Array


def share(right: Array, patients: Array | None = None) -> Share:
    """The mean of values in [0, 1], with Wilson's interval for as many independent images as it is worth.

    Where images of a patient are alike, n images count as n / d with the design effect d, the clustered variance over
    the binomial one, which is 1 or more. Where all values are equal, a patient counts once.
    """
    n = len(right)
    if not n:
        return Share(float("nan"), float("nan"), float("nan"))
    p = float(np.mean(right))
    worth = float(n)
    if patients is not None:
        variance = float(over_patients(right[:, None] / n, np.zeros(n), patients)[0][0, 0])
        plain = p * (1 - p) / n
        several = len(np.unique(patients))
        worth = n / max(variance / plain, 1.0) if plain > 0 and variance > 0 else float(several)
    return Share(p, *wilson(p, worth))


def two_rates(yes: Array, target: Array, patients: Array | None = None) -> TwoRates:
    """Sensitivity and specificity of answers.

    Args:
        yes: (N,) in [0, 1]: the share of trained models that say yes.
        target: (N,) booleans.
        patients: (N,) numbers, where images of one patient are to count together.
    """
    right = np.where(target, yes, 1.0 - yes)
    number = np.arange(len(yes)) if patients is None else patients
    found = [share(right[of], None if patients is None else patients[of]) for of in (target, ~target)]
    influence = np.zeros((len(yes), 2))
    for column, of in enumerate((target, ~target)):
        if of.any():
            influence[of, column] = (right[of] - right[of].mean()) / of.sum()
    covariance = over_patients(influence, np.where(target, 1, 0), number)[0]
    return TwoRates(found[0], found[1], covariance)


@dataclass(frozen=True, slots=True)
class Ratios:
    """Likelihood ratios, and predictive values at a prevalence, each with its 95 % interval over images or patients."""

    lr_positive: Share
    lr_negative: Share
    ppv: Share
    npv: Share


def ratios(rates: TwoRates, prevalence: float) -> Ratios:
    """Likelihood ratios (Simel et al., 1991) and by Bayes' rule what they make of a prevalence; NaN where undefined."""
    se, sp = rates.sensitivity.value, rates.specificity.value
    cov = rates.covariance
    positive = _log_ratio(se, 1 - sp, cov[0, 0], cov[1, 1], -cov[0, 1])
    negative = _log_ratio(1 - se, sp, cov[0, 0], cov[1, 1], -cov[0, 1])
    ill = _after(prevalence, negative)
    without = Share(1 - ill.value, 1 - ill.high, 1 - ill.low)
    return Ratios(positive, negative, _after(prevalence, positive), without)


def _log_ratio(over: float, under: float, var_over: float, var_under: float, cov: float) -> Share:
    """``over / under`` with the interval of its logarithm; a ratio with 0 below is infinite, with no interval."""
    if not (np.isfinite(over) and np.isfinite(under)) or over == under == 0:
        return Share(float("nan"), float("nan"), float("nan"))
    if over == 0 or under == 0:
        return Share(0.0 if over == 0 else float("inf"), float("nan"), float("nan"))
    variance = var_over / over**2 + var_under / under**2 - 2 * cov / (over * under)
    half = Z_95 * float(np.sqrt(max(variance, 0.0)))
    return Share(over / under, over / under * float(np.exp(-half)), over / under * float(np.exp(half)))


def _after(prevalence: float, ratio: Share) -> Share:
    """The probability after an answer with this likelihood ratio."""
    odds = prevalence / (1 - prevalence)

    def probability(value: float) -> float:
        return 1.0 if value == float("inf") else odds * value / (1 + odds * value)

    return Share(probability(ratio.value), probability(ratio.low), probability(ratio.high))


def resamples(labels: Array, patients: Array | None, seed: int, n: int = RESAMPLES) -> Array:
    """How often each image is in each of ``n`` resampled test sets, (N, n) float32.

    Patients are drawn with all their images; without patients images are drawn, each class as often as it is there.
    """
    generator = np.random.default_rng(seed)
    units = np.arange(len(labels)) if patients is None else patients
    kinds = strata(labels) if patients is None else np.zeros(len(labels), dtype=np.int64)
    weights = np.zeros((len(labels), n), dtype=np.float32)
    for kind in np.unique(kinds):
        own = np.unique(units[kinds == kind])
        drawn = generator.integers(len(own), size=(n, len(own))) + len(own) * np.arange(n)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=n * len(own)).reshape(n, len(own)).T
        members = kinds == kind
        weights[members] = counts[np.searchsorted(own, units[members])]
    return weights


def resolvable(standard_error: float, power: float = 0.8) -> float:
    """The difference that a two-sided 5 % test finds with this power, from the standard error of one."""
    from scipy.special import ndtri

    return float((Z_95 + ndtri(power)) * standard_error)
