"""How a cost grows with the image: exponents against pixels, and where one model overtakes another. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, log, log1p

import numpy as np


@dataclass(frozen=True, slots=True)
class Fit:
    """``cost = factor * pixels ** exponent``, with the exponent's 95 % interval, from n points."""

    exponent: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Crossover:
    """``below`` is cheaper up to about ``resolution`` pixels a side, ``above`` from there on.

    Attributes:
        between: the nearest measured resolutions at which the two clearly differ, one way and the other.
        costs: the cost of ``above`` over that of ``below`` at these two.
    """

    below: str
    above: str
    resolution: float
    between: tuple[int, int]
    costs: tuple[float, float]


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
        The common exponent, with the number of points. None when no curve is long enough.
    """
    from scipy.special import stdtrit  # a light import, unlike scipy.stats

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
    half = float(stdtrit(free, 0.975)) * float(np.sqrt(unexplained / free / spread))
    return Fit(slope, slope - half, slope + half, len(x))


def crossovers(
    names: tuple[str, str],
    costs: Mapping[str, Mapping[int, float]],
    margin: float = 0.05,
    noise: Mapping[str, Mapping[int, float]] | None = None,
) -> list[Crossover]:
    """Find where the cheaper of two models becomes the dearer one as the resolution grows.

    Args:
        names: the two models.
        costs: model -> resolution (pixels a side) -> cost per image.
        margin: relative difference below which two costs are a tie, which carries no order and is passed over.
        noise: model -> resolution -> the difference that its own repeats stay below, a tie too.

    Returns:
        One entry for each change of order; its resolution is interpolated on logarithms.
    """
    first, second = (costs[n] for n in names)
    common = sorted(r for r in first.keys() & second.keys() if first[r] > 0 and second[r] > 0)
    ratio = {r: log(first[r] / second[r]) for r in common}  # positive where the first is dearer
    least = {r: max(margin, *((noise or {}).get(n, {}).get(r, 0.0) for n in names)) for r in common}
    found = []
    for left, right in pairwise(r for r in common if abs(ratio[r]) > log1p(least[r])):
        if ratio[left] * ratio[right] < 0:
            swapped = ratio[left] < 0  # the first was the cheaper one
            below, above = names if swapped else names[::-1]
            share = ratio[left] / (ratio[left] - ratio[right])
            at = exp(log(left) + share * log(right / left))
            of_above = [exp(-ratio[r] if swapped else ratio[r]) for r in (left, right)]
            found.append(Crossover(below, above, at, (left, right), (of_above[0], of_above[1])))
    return found
