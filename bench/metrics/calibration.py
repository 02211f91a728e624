"""What a clinic asks of saved scores: an operating point chosen on validation, and how far to trust a probability.

Pure functions of scores and labels. Shapes and tasks are those of :func:`bench.stats.bootstrap.one_vs_rest`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.metrics.one_vs_rest import Array, one_vs_rest

ECE_BINS = 15
MAX_SCALE = 100.0  # a temperature lies between 1 / this and this
_TINY = 1e-12  # of a probability whose logarithm is taken


@dataclass(frozen=True, slots=True)
class Clinical:
    """One trained model on one test set.

    Attributes:
        thresholds: for each class (for two classes only the positive one): a score of at least this says yes. NaN
            where validation lacks the class or everything else.
        sensitivity: of each class on test at its threshold; NaN where test has none.
        specificity: likewise.
        positives: test images of each class.
        temperature: that validation asks for; above 1 the model was overconfident.
        ece: expected calibration error on test as the model gives it, and after scaling.
        brier: Brier score likewise.
    """

    thresholds: tuple[float, ...]
    sensitivity: tuple[float, ...]
    specificity: tuple[float, ...]
    positives: tuple[int, ...]
    temperature: float
    ece: tuple[float, float]
    brier: tuple[float, float]


def clinical(
    val_scores: Array, val_labels: Array, test_scores: Array, test_labels: Array, positive: int = 1
) -> Clinical:
    """Choose thresholds and temperature on validation and report them on test; ``positive`` of two classes.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    columns, targets = one_vs_rest(val_scores, val_labels, positive)
    tested, truth = one_vs_rest(test_scores, test_labels, positive)
    if columns.shape[1] != tested.shape[1]:
        raise ValueError(f"{columns.shape[1]} classes in validation and {tested.shape[1]} in test")
    thresholds = [youden(columns[:, k], targets[:, k]) for k in range(columns.shape[1])]
    found = [rates(tested[:, k], truth[:, k], t) for k, t in enumerate(thresholds)]
    scale = temperature(val_scores, val_labels)
    scaled = rescaled(test_scores, test_labels, scale)
    return Clinical(
        thresholds=tuple(thresholds),
        sensitivity=tuple(sensitivity for sensitivity, _ in found),
        specificity=tuple(specificity for _, specificity in found),
        positives=tuple(int(n) for n in truth.sum(0)),
        temperature=scale,
        ece=(ece(test_scores, test_labels), ece(scaled, test_labels)),
        brier=(brier(test_scores, test_labels), brier(scaled, test_labels)),
    )


def recorded(found: Clinical) -> dict[str, float]:
    """What a Record holds of it, by field; of several classes the means over those that have an operating point."""
    one = len(found.thresholds) == 1
    end = "youden" if one else "youden_macro"
    rates = {f"test_sensitivity_{end}": found.sensitivity, f"test_specificity_{end}": found.specificity}
    fields = {name: [v for v in values if not np.isnan(v)] for name, values in rates.items()}
    return {
        **({"threshold_youden": found.thresholds[0]} if one else {}),
        **{name: float(np.mean(values)) if values else float("nan") for name, values in fields.items()},
        "temperature": found.temperature,
        "test_ece_scaled": found.ece[1],
        "test_brier_scaled": found.brier[1],
    }


# --- the operating point ---------------------------------------------------------------------------------------


def operating_points(column: Array, target: Array) -> tuple[Array, Array, Array]:
    """The thresholds that tell images apart, from nobody called (infinity) to all, with sensitivity and specificity."""
    order = np.argsort(-column, kind="stable")
    value, hit = column[order], target[order]
    last = np.flatnonzero(np.append(value[1:] != value[:-1], True))  # of equal scores all or none say yes
    sensitivity = np.append(0.0, hit.cumsum()[last] / target.sum())
    return np.append(np.inf, value[last]), sensitivity, np.append(1.0, 1 - (~hit).cumsum()[last] / (~target).sum())


def youden(column: Array, target: Array) -> float:
    """The threshold with the highest sensitivity + specificity; of equal ones the most sensitive. NaN without both."""
    if not target.any() or target.all():
        return float("nan")
    values, sensitivity, specificity = operating_points(column, target)
    index = sensitivity + specificity
    return float(values[np.flatnonzero(index >= index.max() - 1e-12)[-1]])


def rates(column: Array, target: Array, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity where ``threshold`` or more says yes; NaN where there is nothing to count."""
    if np.isnan(threshold):
        return float("nan"), float("nan")
    yes = column >= threshold
    sensitivity = float(yes[target].mean()) if target.any() else float("nan")
    specificity = float((~yes[~target]).mean()) if not target.all() else float("nan")
    return sensitivity, specificity


def wilson(share: float, n: float) -> tuple[float, float]:
    """95 % interval of a share of ``n`` images (Wilson, 1927)."""
    if not n or np.isnan(share):
        return float("nan"), float("nan")
    z = 1.959963984540054
    middle, half = share + z**2 / (2 * n), z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return float((middle - half) / (1 + z**2 / n)), float((middle + half) / (1 + z**2 / n))


# --- calibration -----------------------------------------------------------------------------------------------


def confidences(scores: Array, labels: Array) -> tuple[Array, Array]:
    """What a reliability diagram counts: confidence and whether it was right, in columns (N, C).

    One column of the decision's probability for single-label tasks, one a label (its probability and its truth) else.
    """
    columns, targets = one_vs_rest(scores, labels)
    if _multi_label(labels):
        return columns, targets
    if columns.shape[1] == 1:
        yes = columns[:, 0] > 0.5
        return np.where(yes, columns[:, 0], 1 - columns[:, 0])[:, None], (yes == targets[:, 0])[:, None]
    chosen = columns.argmax(1)
    rows = np.arange(len(columns))
    return columns[rows, chosen][:, None], targets[rows, chosen][:, None]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Bins (lower, upper] of confidence: how many, how confident on average, how often right. Empty ones are NaN."""

    count: Array
    confidence: Array
    right: Array


def reliability(scores: Array, labels: Array, bins: int = ECE_BINS) -> Reliability:
    """The reliability diagram; the labels of a multi-label task are pooled."""
    confidence, right = (part.reshape(-1).astype(np.float64) for part in confidences(scores, labels))
    index = _bin(confidence, bins)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        return Reliability(
            count,
            np.bincount(index, weights=confidence, minlength=bins) / count,
            np.bincount(index, weights=right, minlength=bins) / count,
        )


def ece(scores: Array, labels: Array, bins: int = ECE_BINS) -> float:
    """Expected calibration error over equal bins (Guo et al. 2017, equation 3); mean over labels if multi-label."""
    confidence, right = confidences(scores, labels)
    gaps = [
        np.abs(np.bincount(_bin(c, bins), weights=r.astype(np.float64) - c, minlength=bins)).sum() / len(c)
        for c, r in zip(confidence.T, right.T, strict=True)
    ]
    return float(np.mean(gaps))


def _bin(confidence: Array, bins: int) -> Array:
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def brier(scores: Array, labels: Array) -> float:
    """Brier score: over classes summed (0 to 2), of class 1 for two classes, the mean over labels if multi-label."""
    columns, targets = one_vs_rest(scores, labels)
    squares = (columns - targets) ** 2
    return float(squares.mean() if _multi_label(labels) else squares.sum(1).mean())


def temperature(scores: Array, labels: Array) -> float:
    """The temperature that makes the scores most likely (Guo et al. 2017), by Newton's method on its inverse.

    The likelihood is convex in the inverse temperature. Probabilities are floored at 1e-12 before the logarithm.
    """
    z, truth = _logits(scores, labels)
    own = np.take_along_axis(z, truth[:, None], axis=1).mean()
    low, high, beta = 1 / MAX_SCALE, MAX_SCALE, 1.0
    for _ in range(60):
        p = _softmax(beta * z)
        expected = (p * z).sum(1)
        slope = float(expected.mean() - own)  # of the mean negative log-likelihood
        low, high = (beta, high) if slope < 0 else (low, beta)
        curve = float(((p * z**2).sum(1) - expected**2).mean())
        step = beta - slope / curve if curve > 0 else np.inf
        moved = step if low < step < high else float(np.sqrt(low * high))
        if abs(moved - beta) <= 1e-9 * beta:
            break
        beta = moved
    return 1 / beta


def rescaled(scores: Array, labels: Array, scale: float) -> Array:
    """Probabilities at temperature ``scale``, (N, C) as :func:`one_vs_rest` reads them."""
    z, _ = _logits(scores, labels)
    p = _softmax(z / scale)
    if _multi_label(labels):
        return p[:, 1].reshape(np.shape(labels))
    return p


def _logits(scores: Array, labels: Array) -> tuple[Array, Array]:
    """Log-probabilities (M, K) and classes (M,); every label of a multi-label task is a row of two classes."""
    columns, targets = one_vs_rest(scores, labels)
    if not _multi_label(labels) and columns.shape[1] > 1:
        return np.log(np.maximum(columns, _TINY)), targets.argmax(1)
    yes = columns.reshape(-1)
    pairs = np.stack([1 - yes, yes], axis=1)
    return np.log(np.maximum(pairs, _TINY)), targets.reshape(-1).astype(np.int64)


def _softmax(z: Array) -> Array:
    powers = np.exp(z - z.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _multi_label(labels: Array) -> bool:
    shape = np.shape(labels)
    return len(shape) > 1 and shape[1] > 1


def over_seeds(found: Sequence[Clinical], name: str) -> Array:
    """Mean over seeds of a field, NaN where a seed has none."""
    return np.mean([np.asarray(getattr(c, name), dtype=np.float64) for c in found], axis=0)
