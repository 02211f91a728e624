"""How a cost grows with the image: exponents against pixels, and where one model overtakes another. Pure functions."""

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
    """``below`` is cheaper up to about ``resolution`` pixels a side, ``above`` from there on."""

    below: str
    above: str
    resolution: float
    between: tuple[int, int]


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


def crossovers(costs: Curves, margin: float = 0.05, noise: Curves | None = None) -> list[Crossover]:
    """Find where the cheaper of two models becomes the dearer one as the resolution grows.

    Args:
        costs: model -> resolution (pixels a side) -> cost per image.
        margin: relative difference that must hold on both sides; smaller ones are ties (use the noise floor).
        noise: model -> resolution -> relative standard deviation of a cost. Two costs that differ by less than twice
            the larger of theirs are a tie too.

    Returns:
        One entry for each pair and change of order, sorted by names; the resolution is interpolated on logarithms.
    """
    found = []
    names = sorted(costs)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            found += _pair((first, second), costs, margin, noise or {})
    return sorted(found, key=lambda c: (c.above, c.below, c.resolution))


def _pair(names: tuple[str, str], costs: Curves, margin: float, noise: Curves) -> list[Crossover]:
    a, b = (costs[n] for n in names)
    common = sorted(r for r in a.keys() & b.keys() if a[r] > 0 and b[r] > 0)
    # Positive where the first is dearer. Resolutions at which they tie carry no order and are passed over.
    ratio = {r: float(np.log(a[r] / b[r])) for r in common}
    least = {r: max(margin, *(2 * noise.get(n, {}).get(r, 0.0) for n in names)) for r in common}
    clear = [r for r in common if abs(ratio[r]) > np.log1p(least[r])]
    found = []
    for left, right in pairwise(clear):
        if ratio[left] * ratio[right] >= 0:
            continue
        share = ratio[left] / (ratio[left] - ratio[right])
        at = float(np.exp(np.log(left) + share * (np.log(right) - np.log(left))))
        below, above = names if ratio[left] < 0 else names[::-1]
        found.append(Crossover(below, above, at, (left, right)))
    return found
