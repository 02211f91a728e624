"""Did it get worse? One-sided evidence for accuracy, speed and memory, and how many such questions a run may ask.

Pure functions. An effect is how much worse the current run is: points of AUC or ACC, or a share of speed or memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.metrics.one_vs_rest import Array
from bench.metrics.registry import Metric
from bench.report.compare.scores import Scores
from bench.stats.paired import Z_95, mcnemar_worse
from bench.stats.separation import groups_of, over_images, over_trainings

# Peak memory differs from run to run by this much (standard deviation, relative): on the CPU
# resident memory of a process on the CPU (0.031 over 35 Cells of two sweeps of one version, by `bench compare`), the
# allocator's own count on a GPU, which repeats but for the libraries' workspaces.
MEMORY_NOISE_REL = {"cpu": 0.031, "cuda": 0.005}
# A side: with five, the smallest two-sided p is 0.8 %, and one disturbed round decides.
LEAST_ROUNDS = 6
ENOUGH_CELLS = 8  # from which the Cells' own ratios tell how far two runs lie apart
NORMAL_MAD = 1.4826  # standard deviation of normal values over their median absolute deviation
MAD_EFFICIENCY = 0.37  # samples of a standard deviation that say as much as one of the median absolute deviation
_EXACT_ROUNDS = 25  # up to here a side, Mann-Whitney's exact distribution


@dataclass(frozen=True, slots=True)
class Evidence:
    """The answer to one question.

    Attributes:
        effect: how much worse; negative is better.
        limit: a smaller effect does not count: the minimum asked for, or the noise floor where that is higher.
        p: of this effect or a worse one if nothing had changed.
        p_better: the same of the other direction.
        least_p: the smallest p that so many samples can give.
        spread: standard deviation of the effect, where it is estimated, with its degrees of ``freedom``.
    """

    effect: float
    limit: float
    p: float
    p_better: float
    least_p: float = 0.0
    spread: float | None = None
    freedom: float = math.inf

    @property
    def two_sided(self) -> float:
        """The p of so large an effect in either direction."""
        return min(1.0, 2 * min(self.p, self.p_better))

    def half_width(self) -> float | None:
        """Half the width of the effect's 95 % interval."""
        from scipy.special import stdtrit  # light, unlike scipy.stats

        if self.spread is None:
            return None
        return self.spread * (float(stdtrit(self.freedom, 0.975)) if math.isfinite(self.freedom) else Z_95)

    @property
    def beyond(self) -> bool:
        """Whether the effect is one that counts."""
        return self.effect >= self.limit


# --- accuracy --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parts:
    """What the test images and the seeds of one row say about a metric (current less baseline).

    Attributes:
        seeds: the difference of each seed.
        variance: that a new draw of test images would give to the mean over seeds, with ``freedom``.
        only: for one seed and answers that are right or wrong: images that only the current, only the baseline answers.
    """

    seeds: tuple[float, ...]
    variance: float
    freedom: float
    only: tuple[int, int] | None = None

    @property
    def difference(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.seeds))


def parts(pairs: Sequence[tuple[Scores, Scores]], metric: Metric) -> Parts:
    """Compare (current, baseline) of each seed on their common test images.

    Args:
        pairs: at least one; all of one test set.
        metric: one that is tested over images.
    """
    of = metric.images
    assert of is not None
    labels = pairs[0][0].labels
    sides = [(now.probabilities(), before.probabilities()) for now, before in pairs]
    seeds = tuple(of.value(now, labels) - of.value(before, labels) for now, before in sides)
    apart = np.mean([of.influence(now, labels) - of.influence(before, labels) for now, before in sides], axis=0)
    drawn = [(float(gram[0, 0]), n) for gram, n in over_images(apart[:, None], groups_of(of, labels))]
    variance, squares = sum(part for part, _ in drawn), sum(part**2 / n for part, n in drawn)
    only = None
    if of.answers and len(pairs) == 1 and labels.ndim == 1:
        now_right, before_right = (of.answers(side, labels).astype(bool) for side in sides[0])
        only = int((now_right & ~before_right).sum()), int((before_right & ~now_right).sum())
    return Parts(seeds, variance, variance**2 / squares if squares else math.inf, only)


def of_seeds(metric: Metric, values: Sequence[tuple[float, float]]) -> Parts:
    """The same of a metric that is tested over trainings alone, from its (current, baseline) values of each seed."""
    return Parts(tuple(metric.sign * (now - before) for now, before in values), 0.0, math.inf)


def accuracy_evidence(rows: Sequence[Parts], least: float, assumed: float = 0.0) -> list[Evidence]:
    """Test whether AUC or ACC fell in each row of one dataset, over new test images and over new trainings.

    The two variances are added (:func:`bench.stats.separation.over_trainings`). For one seed that of training is
    ``assumed``; if that is 0, the answer is about these two trained networks alone, and for ACC McNemar's exact test
    gives it.

    Args:
        rows: of :func:`parts`.
        least: the smallest fall that counts.
        assumed: standard deviation of the metric over trainings.
    """
    pooled, single, degrees = over_trainings([row.seeds for row in rows])
    found = []
    for row, common, own in zip(rows, pooled.tolist(), single.tolist(), strict=True):
        if len(row.seeds) == 1:
            training = 2 * assumed**2, math.inf  # both sides were trained
        else:
            training = (own, len(row.seeds) - 1) if own else (common, degrees)
        found.append(_fallen(row, least, *training, assumed=assumed))
    return found


def _fallen(row: Parts, least: float, training: float, degrees: float, assumed: float) -> Evidence:
    fall = -row.difference
    if row.only is not None and not assumed:
        now, before = row.only
        return Evidence(fall, least, mcnemar_worse(now, before), mcnemar_worse(before, now), 0.0, row.variance**0.5)
    variance = row.variance + training
    if variance <= 0:
        return Evidence(fall, least, float(fall <= 0), float(fall >= 0), 0.0, 0.0)
    squares = row.variance**2 / row.freedom + training**2 / max(degrees, 1)
    t, freedom = fall / math.sqrt(variance), variance**2 / squares if squares else math.inf
    return Evidence(fall, least, _beyond(t, freedom), _beyond(-t, freedom), 0.0, math.sqrt(variance), freedom)


def _beyond(t: float, freedom: float) -> float:
    """Upper tail of Student's t."""
    from scipy.special import ndtr, stdtr  # light, unlike scipy.stats

    return float(stdtr(freedom, -t)) if math.isfinite(freedom) else float(ndtr(-t))


# --- speed and memory ------------------------------------------------------------------------------------------


def speed_evidence(before: Sequence[float], now: Sequence[float], least: float) -> Evidence | None:
    """Test whether throughput fell: Mann-Whitney on the rounds; None with fewer than two rounds a side.

    The fall also has to leave the noise floor: the 95 % bound of the difference of two such medians, from the spread
    between rounds (other models ran between them, so it holds the machine's drift).

    Args:
        before: images/s of each round of the baseline.
        now: the same of the current run.
        least: the smallest relative fall that counts.
    """
    from scipy.stats import mannwhitneyu

    if min(len(before), len(now)) < 2:
        return None
    noise = math.sqrt(sum(np.var(np.log(side), ddof=1) * _of_median(len(side)) for side in (before, now)))
    method = "exact" if max(len(before), len(now)) <= _EXACT_ROUNDS else "asymptotic"
    worse, better = (float(mannwhitneyu(now, before, alternative=a, method=method).pvalue) for a in ("less", "greater"))
    effect = 1 - float(np.median(now) / np.median(before))
    return Evidence(effect, max(least, Z_95 * noise), worse, better, least_p(len(before), len(now)), noise)


def between_runs(effects: Sequence[float], alpha: float) -> float:
    """What a run alone shifts speeds by: the bound that one of so many unchanged Cells passes with chance ``alpha``.

    Rounds of one run cannot show what differs between two runs (another day, another neighbour); the spread of all
    Cells' ratios does, taken about their median and by the median deviation, so that neither a change of all Cells nor
    of some of them hides itself. 0 for fewer than ``ENOUGH_CELLS``.
    """
    if len(effects) < ENOUGH_CELLS:
        return 0.0
    from scipy.special import stdtrit  # light, unlike scipy.stats

    logs = np.log1p(-np.asarray(effects))
    spread = float(np.median(np.abs(logs - np.median(logs)))) * NORMAL_MAD
    freedom = MAD_EFFICIENCY * (len(effects) - 1)  # the bound knows that so few ratios tell the spread roughly
    return -math.expm1(float(stdtrit(freedom, alpha / len(effects))) * spread)


def _of_median(n: int) -> float:
    """Variance of the median of n normal values over that of one (asymptotic, a little too large for few)."""
    return math.pi / 2 / n


def least_p(before: int, now: int) -> float:
    """The smallest one-sided p of Mann-Whitney's test with so many samples; 1 where there are not enough."""
    return 1 / math.comb(before + now, now) if min(before, now) >= LEAST_ROUNDS else 1.0


def rounds_needed(tests: int, alpha: float) -> int:
    """Rounds a side from which Mann-Whitney can be significant among so many tests."""
    return next(n for n in range(LEAST_ROUNDS, 1000) if least_p(n, n) <= alpha / max(tests, 1))


def memory_evidence(before: Sequence[float], now: Sequence[float], least: float, noise: float) -> Evidence | None:
    """Test whether peak memory rose, against the noise between runs; None where a side was not measured.

    Args:
        before: MiB of each run of the baseline.
        now: MiB of each current run.
        least: the smallest relative rise that counts.
        noise: of :data:`MEMORY_NOISE_REL`, for this device.
    """
    if not before or not now or min(*before, *now) <= 0:
        return None
    rise = float(np.mean(np.log(now)) - np.mean(np.log(before)))
    spread = noise * math.sqrt(1 / len(before) + 1 / len(now))
    worse, better = _beyond(rise / spread, math.inf), _beyond(-rise / spread, math.inf)
    return Evidence(math.expm1(rise), max(least, math.expm1(Z_95 * spread)), worse, better, spread=spread)


# --- the whole run ---------------------------------------------------------------------------------------------


def can_fire(least: Sequence[float], alpha: float) -> Array:
    """Which questions can be asked at all (Tarone, 1990): those that could be significant among those asked.

    A test whose smallest possible p is too large for the number of tests could never fire; it is left out, and the
    others need not be corrected for it. The choice depends on numbers of samples alone, never on what they are.

    Args:
        least: the smallest p each test can give.
        alpha: family-wise level.

    Returns:
        (len(least),) booleans; Holm's adjustment goes over the true ones.
    """
    smallest = np.asarray(least, dtype=np.float64)
    for tests in range(1, len(smallest) + 1):
        chosen: Array = smallest <= alpha / tests
        if chosen.sum() <= tests:
            return chosen
    return np.zeros(len(smallest), dtype=bool)
