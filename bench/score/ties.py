"""Ties by saturation: scores that rounding made equal, so that the AUC depends on how they were computed.

A single-precision softmax gives P(class 1) in steps of 6e-8 near one: sure answers get one score, and each pair of a
positive and a negative image among them counts one half instead of zero or one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.metrics.one_vs_rest import Array, binary_auc, one_vs_rest

SHOWN = 5e-5  # an AUC that moves by less shows the same four digits
NEAR = 1e-3  # of zero or one: saturated


@dataclass(frozen=True, slots=True)
class Ties:
    """Pairs of a positive and a negative image that have one score.

    Attributes:
        pairs: how many, over all classes.
        saturated: how many of them lie within 0.001 of zero or one.
        low: AUC if each such pair were ordered wrongly.
        high: AUC if each were ordered rightly.
        auc: AUC, each counted one half.
        complement: two classes: AUC by 1 - P(class 0), which has its digits where P(class 1) has none; else NaN.
        single: AUC of the same log-odds through a single-precision softmax.
    """

    pairs: int
    saturated: int
    low: float
    high: float
    auc: float
    complement: float
    single: float

    @property
    def matters(self) -> bool:
        """The fourth digit of the AUC depends on it."""
        return self.high - self.low > 2 * SHOWN and self.saturated > 0

    def sentence(self, who: str) -> str:
        """What to tell; empty where nothing moves the fourth digit."""
        told = []
        if self.matters:
            told.append(
                f"{self.saturated:,} pairs of a positive and a negative image have one score near 0 or 1 (ties by "
                f"saturation): the AUC {self.auc:.4f} could be {self.low:.4f} to {self.high:.4f}"
            )
        if np.isfinite(self.complement) and abs(self.complement - self.auc) > SHOWN:
            told.append(f"by 1 - P(class 0), which keeps more digits, it is {self.complement:.4f}")
        if np.isfinite(self.single) and abs(self.single - self.auc) > SHOWN:
            told.append(
                f"a single-precision softmax of the same log-odds gives {self.single:.4f} instead of {self.auc:.4f}"
            )
        return f"{who}: {'; '.join(told)}" if told else ""


def ties(scores: Array, labels: Array) -> Ties:
    """Count ties between positive and negative images.

    Args:
        scores: (N, C) probabilities.
        labels: (N,) classes, or (N, L) in {0, 1}.
    """
    columns, targets = one_vs_rest(scores, labels)
    pairs = saturated = 0
    areas, spread = [], []
    for column, target in zip(columns.T, targets.T, strict=True):
        positives, negatives = int(target.sum()), int((~target).sum())
        if not positives or not negatives:
            continue
        values, inverse = np.unique(column, return_inverse=True)
        up = np.bincount(inverse, weights=target, minlength=len(values))
        both = up * (np.bincount(inverse, minlength=len(values)) - up)
        pairs += int(both.sum())
        saturated += int(both[(values < NEAR) | (values > 1 - NEAR)].sum())
        spread.append(float(both.sum()) / (positives * negatives) / 2)
        areas.append(binary_auc(column, target))
    area, half = (float(np.mean(v)) if v else float("nan") for v in (areas, spread))
    two = np.shape(scores)[1] == 2 and np.ndim(labels) == 1
    other, single = (
        (binary_auc(column, targets[:, 0]) for column in (-scores[:, 0], single_precision(scores)[:, 1]))
        if two
        else (float("nan"), float("nan"))
    )
    return Ties(pairs, saturated, area - half, area + half, area, other, single)


def single_precision(scores: Array) -> Array:
    """Probabilities (N, C) as a single-precision softmax of their logarithms gives them, in float64.

    The logarithm of the column nearest one is taken from the others, so that digits beyond single precision count.
    """
    with np.errstate(divide="ignore"):
        logs = np.log(scores)
        top = scores.argmax(1)
        rows = np.arange(len(scores))
        rest = scores.copy()
        rest[rows, top] = 0.0
        logs[rows, top] = np.log1p(-np.minimum(rest.sum(1), 1 - 1e-16))
    logits = logs.astype(np.float32)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return (powers / powers.sum(1, keepdims=True, dtype=np.float32)).astype(np.float64)
