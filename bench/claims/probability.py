"""How probable is it that a published improvement is false? From two figures, the test set's size, and a correlation.

Two models answer the same n test images; a and b are their accuracies. With phi, the correlation of their answers
(right or wrong, image by image), the probability that only the first is right is

    p10 = a (1 - b) - phi sqrt(a (1 - a) b (1 - b)),   and   p01 = p10 - (a - b)

that only the second is. Of the n (p10 + p01) images on which they differ, the first wins n p10. With Jeffreys' prior
its share of wins is Beta(n p10 + 1/2, n p01 + 1/2), and the claim is false where that share is below one half. This is
McNemar's test (1947) in its Bayesian form: what published figures leave open of its table is phi. An AUC of two classes
has Hanley and McNeil's variance (1982), and phi is the correlation of the two AUCs. Pure functions.
"""

from __future__ import annotations

from math import sqrt

import numpy as np

from bench.metrics.one_vs_rest import Array


def largest_phi(a: float, b: float) -> float:
    """The largest correlation that answers with accuracies ``a`` and ``b`` can have; 1 where they are equal."""
    spread = sqrt(a * (1 - a) * b * (1 - b))
    return (min(a, b) - a * b) / spread if spread > 0 else 0.0


def false_acc(a: float, b: float, n: int, phi: float, training: float = 0.0) -> float:
    """Probability that an accuracy ``a`` > ``b`` on ``n`` images is no improvement, 0 to 1.

    Args:
        a: accuracy of the model that is claimed to be better.
        b: accuracy of the other.
        n: test images, the same for both.
        phi: correlation of the answers; more than :func:`largest_phi` counts as that.
        training: variance of the difference over trainings; 0 speaks of the two trained networks only.
    """
    from scipy.special import betainc

    spread = sqrt(a * (1 - a) * b * (1 - b))
    shared = min(phi, largest_phi(a, b)) * spread
    first, second = max(a * (1 - b) - shared, 0.0), max(b * (1 - a) - shared, 0.0)
    over_images = float(betainc(n * first + 0.5, n * second + 0.5, 0.5))
    if training <= 0:
        return over_images
    return max(over_images, _normal(a - b, (first + second - (a - b) ** 2) / n + training))


def auc_variance(auc: float, positives: int, negatives: int) -> float:
    """Variance of an AUC over test images (Hanley and McNeil, 1982, from the exponential distribution)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    own = auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2)
    return own / (positives * negatives)


def false_auc(a: float, b: float, positives: int, negatives: int, phi: float, training: float = 0.0) -> float:
    """Probability that an AUC ``a`` > ``b`` of two classes is no improvement, 0 to 1; arguments as in false_acc."""
    va, vb = auc_variance(a, positives, negatives), auc_variance(b, positives, negatives)
    return _normal(a - b, va + vb - 2 * phi * sqrt(va * vb) + max(training, 0.0))


def _normal(difference: float, variance: float) -> float:
    from scipy.special import ndtr

    if variance <= 0:
        return 0.0 if difference > 0 else 0.5 if difference == 0 else 1.0
    return float(ndtr(-difference / sqrt(variance)))


def measured_phi(right_a: Array, right_b: Array) -> float:
    """Correlation of two models' answers, (N,) right or wrong; NaN where one of them is always right or wrong."""
    a, b = np.asarray(right_a, dtype=np.float64), np.asarray(right_b, dtype=np.float64)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])
