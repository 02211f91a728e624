"""How a cost grows with the image: exponents against pixels, and where one model overtakes another. Pure functions.

An overtaking is measured where both models were measured on both sides of it; its place between the two is
interpolated. Beyond the largest resolution it is a projection, and only stated where the trend itself is beyond doubt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True, slots=True)
class Fit:
    """``cost = factor * pixels ** exponent``, with the exponent's 95 % interval and the fit's R squared."""

    exponent: float
    low: float
    high: float
    r2: float
    n: int


@dataclass(frozen=True, slots=True)
class Crossover:
    """``below`` is cheaper up to about ``resolution`` pixels a side, ``above`` from there on.

    Attributes:
        between: the nearest measured resolutions at which the two clearly differ, one way and the other.
        costs: the cost of ``above`` over that of ``below`` at these two.
        low: lower 95 % bound of ``resolution`` from the noise of the four costs; None where that was not measured.
        high: upper bound.
    """

    below: str
    above: str
    resolution: float
    between: tuple[int, int]
    costs: tuple[float, float]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Projection:
    """Up to ``last`` pixels a side ``below`` is cheaper; if the trend goes on, ``above`` is from ``resolution`` on.

    Attributes:
        cost: the cost of ``above`` over that of ``below`` at ``last``.
        low: lower 95 % bound of ``resolution`` (Fieller's, of the line fitted to the logarithm of the ratio).
        high: upper bound.
    """

    below: str
    above: str
    resolution: float
    last: int
    cost: float
    low: float
    high: float


def fit_exponent(pixels: Sequence[float], cost: Sequence[float]) -> Fit | None:
    """Fit a power law by least squares on logarithms; the interval is Student's with n - 2 degrees of freedom.

    Args:
        pixels: pixels of one image (side squared), at least three different values.
        cost: seconds, bytes, ... per image; positive.

    Returns:
        None when fewer than three different image sizes have a positive finite cost.
    """
    return fit_common_exponent([(pixels, cost)])


def fit_common_exponent(curves: Iterable[tuple[Sequence[float], Sequence[float]]]) -> Fit | None:
    """Fit one exponent to several models, each with a factor of its own (analysis of covariance on logarithms).

    Args:
        curves: (pixels, cost) of each model, as for :func:`fit_exponent`; curves with fewer than three different
            image sizes are left out.

    Returns:
        The common exponent; ``r2`` is the share of the variation within the models that it explains, ``n`` the
        number of points. None when no curve is long enough.
    """
    x_parts, y_parts = [], []
    for pixels, cost in curves:
        x_all, y_all = np.asarray(pixels, dtype=np.float64), np.asarray(cost, dtype=np.float64)
        if x_all.shape != y_all.shape:
            raise ValueError(f"{x_all.size} image sizes for {y_all.size} costs")
        known = np.isfinite(x_all) & np.isfinite(y_all) & (x_all > 0) & (y_all > 0)
        if len(np.unique(x_all[known])) >= 3:
            x, y = np.log(x_all[known]), np.log(y_all[known])
            x_parts.append(x - x.mean())
            y_parts.append(y - y.mean())
    if not x_parts:
        return None
    x, y = np.concatenate(x_parts), np.concatenate(y_parts)
    spread = float((x**2).sum())
    slope = float((x * y).sum()) / spread
    unexplained = float(((y - slope * x) ** 2).sum())
    free = len(x) - len(x_parts) - 1
    half = _t_quantile(free) * float(np.sqrt(unexplained / free / spread))
    total = float((y**2).sum())
    return Fit(slope, slope - half, slope + half, 1 - unexplained / total if total > 0 else 1.0, len(x))


def _t_quantile(degrees: int) -> float:
    from scipy.special import stdtrit  # a light import, unlike scipy.stats

    return float(stdtrit(degrees, 0.975))


Curves = Mapping[str, Mapping[int, float]]
NORMAL_95 = 1.96  # standard deviations within which 95 % of normal differences lie
FARTHEST = 2.0  # times the largest measured resolution: a trend is not believed beyond
MIN_TREND = 4  # common resolutions


def crossovers(costs: Curves, margin: float = 0.05, noise: Curves | None = None) -> list[Crossover]:
    """Find where the cheaper of two models becomes the dearer one as the resolution grows.

    Args:
        costs: model -> resolution (pixels a side) -> cost per image.
        margin: relative difference that must hold on both sides; smaller ones are ties (use the noise floor).
        noise: model -> resolution -> standard deviation of the relative difference of two runs of it. Two costs that
            differ by less than twice the larger of theirs are a tie too.

    Returns:
        One entry for each pair and change of order, sorted by names; the resolution is interpolated on logarithms.
    """
    found = []
    names = sorted(costs)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            found += pair_crossovers((first, second), costs, margin, noise or {})
    return sorted(found, key=lambda c: (c.above, c.below, c.resolution))


def pair_crossovers(names: tuple[str, str], costs: Curves, margin: float, noise: Curves) -> list[Crossover]:
    """The changes of order of one pair, as :func:`crossovers` finds them."""
    ratio = _log_ratios(names, costs)
    least = {r: max(margin, *(2 * noise.get(n, {}).get(r, 0.0) for n in names)) for r in ratio}
    # Resolutions at which they tie carry no order and are passed over.
    clear = [r for r in ratio if abs(ratio[r]) > np.log1p(least[r])]
    found = []
    for left, right in pairwise(clear):
        if ratio[left] * ratio[right] >= 0:
            continue
        swapped = ratio[left] < 0  # the first was the cheaper one
        below, above = names if swapped else names[::-1]
        ends = (ratio[left], ratio[right])
        at, low, high = _zero_between((left, right), ends, [_deviation(names, r, noise) for r in (left, right)])
        of_above = [float(np.exp(-d if swapped else d)) for d in ends]
        found.append(Crossover(below, above, at, (left, right), (of_above[0], of_above[1]), low, high))
    return found


def _log_ratios(names: tuple[str, str], costs: Curves) -> dict[int, float]:
    """Logarithm of the first's cost over the second's, by common resolution: positive where the first is dearer."""
    a, b = (costs[n] for n in names)
    return {r: float(np.log(a[r] / b[r])) for r in sorted(a.keys() & b.keys()) if a[r] > 0 and b[r] > 0}


def _deviation(names: tuple[str, str], resolution: int, noise: Curves) -> float | None:
    """Standard deviation of a log ratio; a single cost has 1 / sqrt(2) of that of its difference to a repeat."""
    noises = [noise.get(n, {}).get(resolution) for n in names]
    measured = [n for n in noises if n is not None]
    return float(np.sqrt(sum(n**2 for n in measured) / 2)) if len(measured) == len(names) else None


def _zero_between(
    sides: tuple[int, int], values: tuple[float, float], deviations: Sequence[float | None]
) -> tuple[float, float | None, float | None]:
    """Where a line in log(side) through two values is zero, with 95 % bounds by propagation of their errors."""
    (left, right), (a, b) = np.log(sides), values
    share = a / (a - b)
    at = left + share * (right - left)
    low = high = None
    if deviations[0] is not None and deviations[1] is not None:
        error = np.hypot(b * deviations[0], a * deviations[1]) / (a - b) ** 2 * (right - left)
        low, high = (float(np.exp(np.clip(at + sign * NORMAL_95 * error, left, right))) for sign in (-1, 1))
    return float(np.exp(at)), low, high


def projection(names: tuple[str, str], costs: Curves, margin: float = 0.05) -> Projection | None:
    """Where a pair would change order beyond what was measured, if the ratio of their costs goes on as it went.

    Returns:
        None unless there are four common resolutions, the two differ by more than ``margin`` at the largest, the trend
        towards the change is clear (the 95 % interval of the slope leaves out zero) and the change is expected within
        twice the largest.
    """
    ratio = _log_ratios(names, costs)
    if len(ratio) < MIN_TREND:
        return None
    x, y = np.log(list(ratio)), np.array(list(ratio.values()))
    last, n = max(ratio), len(ratio)
    centre, level = float(x.mean()), float(y.mean())
    spread = float(((x - centre) ** 2).sum())
    slope = float(((x - centre) * y).sum()) / spread
    variance = float(((y - level - slope * (x - centre)) ** 2).sum()) / (n - 2)
    t2 = _t_quantile(n - 2) ** 2 * variance
    # Fieller: the x at which zero lies within the confidence band of the line, (level + slope u)^2 = t2 (1/n + u^2/S).
    square = slope**2 - t2 / spread
    if square <= 0 or slope * y[-1] >= 0 or abs(y[-1]) <= np.log1p(margin):
        return None
    root = max(0.0, (level * slope) ** 2 - square * (level**2 - t2 / n))
    at = float(np.exp(centre - level / slope))
    low, high = (float(np.exp(centre + (-level * slope + s * np.sqrt(root)) / square)) for s in (-1, 1))
    if not last < at <= FARTHEST * last:
        return None
    swapped = bool(y[-1] < 0)
    below, above = names if swapped else names[::-1]
    return Projection(below, above, at, last, float(np.exp(abs(y[-1]))), max(low, float(last)), high)
