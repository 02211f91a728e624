"""Operating points: a threshold chosen on validation by a rule, and what a decision is worth. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench.metrics.calibration import operating_points, youden
from bench.metrics.one_vs_rest import Array


@dataclass(frozen=True, slots=True)
class Rule:
    """How the threshold is chosen on validation; at most one is given, and none is Youden's index.

    Attributes:
        sensitivity: the highest threshold with at least this sensitivity.
        specificity: the lowest threshold with at least this specificity.
        cost: the least expected cost, where a miss costs this many false alarms.
        prevalence: at which predictive values and costs are reported; None: that of the images.
    """

    sensitivity: float | None = None
    specificity: float | None = None
    cost: float | None = None
    prevalence: float | None = None

    @property
    def name(self) -> str:
        """What columns call figures at its threshold."""
        asked = (self.sensitivity, self.specificity, self.cost)
        return "at Youden" if asked == (None, None, None) else "at threshold"

    @property
    def said(self) -> str:
        """How the threshold is chosen, as the end of a sentence."""
        if self.sensitivity is not None:
            return f"the highest score with a sensitivity of {self.sensitivity:g} or more on validation"
        if self.specificity is not None:
            return f"the lowest score with a specificity of {self.specificity:g} or more on validation"
        if self.cost is not None:
            return f"the score with the least expected cost on validation, a miss costing {self.cost:g} false alarms"
        return "the score with the highest sensitivity + specificity on validation (of equal ones the most sensitive)"


YOUDEN = Rule()


def threshold(column: Array, target: Array, rule: Rule) -> float:
    """The threshold that a rule chooses: a score of at least this says yes.

    Args:
        column: (N,) scores of the positive class on validation.
        target: (N,) booleans.
        rule: how to choose.

    Returns:
        NaN without both classes; infinity (nobody is called) where no score reaches the specificity.
    """
    if not target.any() or target.all():
        return float("nan")
    if rule.sensitivity is None and rule.specificity is None and rule.cost is None:
        return youden(column, target)
    values, sensitivity, specificity = operating_points(column, target)
    if rule.sensitivity is not None:
        return float(values[np.flatnonzero(sensitivity >= rule.sensitivity - 1e-12)[0]])
    if rule.specificity is not None:
        return float(values[np.flatnonzero(specificity >= rule.specificity - 1e-12)[-1]])
    prevalence = float(target.mean()) if rule.prevalence is None else rule.prevalence
    cost = expected_cost(sensitivity, specificity, prevalence, rule.cost or 1.0)
    return float(values[np.flatnonzero(cost <= np.min(cost) + 1e-12)[-1]])


def expected_cost(sensitivity: Array | float, specificity: Array | float, prevalence: float, cost: float) -> Array:
    """Of one patient, in false alarms: misses cost ``cost`` each."""
    return np.asarray(prevalence * cost * (1 - sensitivity) + (1 - prevalence) * (1 - specificity))


def net_benefit(column: Array, target: Array, chances: Array, prevalence: float | None = None) -> Array:
    """Net benefit of treating whom the model gives a chance of at least each of ``chances`` (Vickers and Elkin, 2006).

    Args:
        column: (N,) probabilities of the positive class.
        target: (N,) booleans.
        chances: (T,) in [0, 1).
        prevalence: where it differs from that of the images.

    Returns:
        (T,) true positives less false ones, weighted by the odds of the chance, a patient.
    """
    share = float(target.mean()) if prevalence is None else prevalence
    yes = column[:, None] >= chances
    hit = yes[target].mean(0) if target.any() else np.zeros(len(chances))
    alarm = yes[~target].mean(0) if not target.all() else np.zeros(len(chances))
    return share * hit - (1 - share) * alarm * chances / (1 - chances)


def treat_all(prevalence: float, chances: Array) -> Array:
    """Net benefit of treating everybody; that of treating nobody is 0."""
    return prevalence - (1 - prevalence) * chances / (1 - chances)
