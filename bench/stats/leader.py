"""Which models are significantly worse than the leader? The one question of a leaderboard's main column.

Every other model is compared with the leader and with nothing else, on the figure that ranks (a mean over datasets).
The variance of a difference is that over test images, paired, plus that over trainings (:mod:`bench.stats.separation`);
p values are two-sided.

The leader is chosen by the results that then test it, so the K - 1 comparisons are not those with a control fixed
beforehand (Dunnett, 1955): with Holm's factors K - 1, K - 2, ... one of K equal models would be called worse in 13 %
of sweeps of 8 models and in 29 % of 30 (the distribution of a range). Any of the m models still in question could have
led, so the smallest p that is left counts m (m - 1) / 2 times, once for each pair of them: Holm's (1979) steps with
Shaffer's (1986) factors. That keeps 5 % (``tests/simulations``) and costs less than correcting all pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.metrics.one_vs_rest import Array
from bench.stats.ranking import ALPHA
from bench.stats.separation import Contrast


@dataclass(frozen=True, slots=True)
class AgainstLeader:
    """One model compared with the leader.

    Attributes:
        model: its name.
        difference: its figure less the leader's; 0 or less.
        low: lower end of the 95 % interval of the difference, over test images and trainings, of this comparison alone.
        high: the upper end.
        p: two-sided, of this comparison alone.
        p_corrected: for all comparisons with the leader and for the choice of the leader.
        worse: significantly worse than the leader (``p_corrected`` < 0.05).
        training: share of the difference's variance that comes from training again, 0 to 1.
        reason: why not, if not; empty where it is worse.
    """

    model: str
    difference: float
    low: float
    high: float
    p: float
    p_corrected: float
    worse: bool
    training: float
    reason: str


@dataclass(frozen=True, slots=True)
class LeaderTest:
    """All models against the leader.

    Attributes:
        leader: the model with the best figure.
        others: the other models, best first.
        comparisons: how many p values the correction is for (``tables`` times the number of others).
        retrained: every model was trained more than once; else the claim is on the trained networks at hand, or rests
            on the spread of other models.
    """

    leader: str
    others: tuple[AgainstLeader, ...]
    comparisons: int
    retrained: bool

    @property
    def worse(self) -> tuple[str, ...]:
        """Models that are significantly worse than the leader."""
        return tuple(other.model for other in self.others if other.worse)

    def of(self, model: str) -> AgainstLeader | None:
        """The comparison of one model; None for the leader and for models that were not tested."""
        return next((other for other in self.others if other.model == model), None)


def against_leader(
    models: Sequence[str], pairs: Contrast, p: Array | None = None, tables: int = 1, digits: int = 3
) -> LeaderTest:
    """Compare every model with the leader.

    Args:
        models: K names; of models with equal figures the first leads.
        pairs: of the models in that order, larger is better (:func:`bench.stats.separation.contrast`, or
            :func:`bench.stats.separation.mean_contrast` over datasets).
        p: (K, K) uncorrected p values where another test gives them (McNemar's); by default those of ``pairs``.
        tables: how many tables are read together, each with a leader of its own (one a dataset): they share the 5 %.
        digits: decimals of figures in ``reason``.

    Raises:
        ValueError: no models, or another number of them than in ``pairs``.
    """
    k = len(models)
    if not k or pairs.difference.shape != (k, k):
        raise ValueError(f"against_leader: {k} models, but pairs of shape {pairs.difference.shape}")
    totals = pairs.difference.sum(1)  # K times the distance from the mean: the order of the figures
    order = sorted(range(k), key=lambda i: (-totals[i], i))
    first, rest = order[0], order[1:]
    alone = (pairs.p_values() if p is None else p)[first, rest]
    corrected = selected_leader(alone, tables)
    half = pairs.half_width()[first, rest]
    with np.errstate(invalid="ignore", divide="ignore"):
        training = np.nan_to_num(pairs.training / pairs.variance)[first, rest]
    others = []
    for at, i in enumerate(rest):
        difference = float(pairs.difference[i, first])
        low, high = difference - float(half[at]), difference + float(half[at])
        worse = bool(corrected[at] < ALPHA and difference < 0)
        found = AgainstLeader(
            models[i], difference, low, high, float(alone[at]), float(corrected[at]), worse, float(training[at]), ""
        )
        others.append(found if worse else explained(found, len(rest) * tables, digits))
    return LeaderTest(models[first], tuple(others), len(rest) * tables, pairs.retrained)


def selected_leader(p: Array, tables: int = 1) -> Array:
    """Correct the p values of K - 1 comparisons with a leader that the same data chose.

    Args:
        p: (K - 1,) two-sided p values.
        tables: how many such tables share the level.

    Returns:
        (K - 1,) corrected p values, at most 1.
    """
    left = np.arange(len(p), 0, -1)  # comparisons not yet decided; with the leader, left + 1 models
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * (left * (left + 1) // 2 * tables)), 1.0)
    return corrected


def explained(found: AgainstLeader, comparisons: int, digits: int) -> AgainstLeader:
    """The same with the reason why it is not significantly worse, and what would decide it."""
    if found.difference == 0:
        reason = "its figure equals the leader's"
    elif found.p >= ALPHA:
        reason = (
            f"the 95 % interval of the difference, {found.low:+.{digits}f} to {found.high:+.{digits}f}, contains 0"
            if found.low <= 0 <= found.high
            else f"p = {found.p:.2g}"
        )
    else:
        reason = f"p = {found.p:.2g} by itself, {found.p_corrected:.2g} corrected for {comparisons} comparisons"
    if found.difference == 0:
        return replace(found, reason=reason)
    if not found.training:
        return replace(found, reason=f"{reason}; single seed, so of training again nothing is known")
    share, source = max((found.training, "trainings"), (1 - found.training, "test images"))
    more = "seeds" if source == "trainings" else "images"
    return replace(
        found, reason=f"{reason}; {source} are {100 * share:.0f} % of its variance: more {more} would help most"
    )
