"""Which of several models differ significantly: Friedman's test over datasets, tie groups, rank intervals.

Pure functions of numbers. References: Friedman (1937); Nemenyi (1963); Demsar, JMLR 7 (2006); the tie groups are the
maximal cliques of "not significantly different" (Bron and Kerbosch, 1973); the rank intervals follow from the pairs
that differ (Mogstad, Romano, Shaikh and Wilhelm, 2024), so that all of them hold together wherever the pairs do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bench.metrics.one_vs_rest import Array, rank

ALPHA = 0.05
MIN_DATASETS = 5  # below, Friedman's test over any number of models is more likely to miss a difference than to see it
MIN_MODELS = 3
MAX_GROUPS = 60  # a tangle of more says nothing to a reader
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Friedman:
    """Friedman's test of several models over datasets, and Nemenyi's comparison of each pair of them.

    Attributes:
        statistic: chi square with ``models - 1`` degrees of freedom, corrected for ties.
        mean_ranks: 1 is best, in the order of the columns.
        critical_difference: mean ranks that differ by at least this differ significantly (:data:`ALPHA`).
        pairs: (models, models) p values of the pairs, corrected for their number (studentized range).
    """

    datasets: int
    models: int
    statistic: float
    p: float
    mean_ranks: tuple[float, ...]
    critical_difference: float
    pairs: Array

    @property
    def better(self) -> Array:
        """(models, models): the first is ranked above the second, by Friedman's test and by Nemenyi's."""
        ranks = np.asarray(self.mean_ranks)
        above = ranks[:, None] < ranks[None, :]
        return above & (self.pairs < ALPHA) & (self.p < ALPHA)


def friedman(scores: Array) -> Friedman:
    """Test whether models differ in rank over datasets.

    Args:
        scores: (datasets, models), higher is better, no gaps.

    Raises:
        ValueError: fewer than two datasets or three models, or a score that is no number.
    """
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 2 or scores.shape[0] < 2 or scores.shape[1] < MIN_MODELS:
        raise ValueError(f"Friedman's test needs two datasets and three models or more, not {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("Friedman's test needs a finite score of every model on every dataset")
    from scipy.special import chdtrc
    from scipy.stats import studentized_range

    n, k = scores.shape
    ranks = np.array([rank(-row) for row in scores])
    mean_ranks = ranks.mean(0)
    equal = [np.unique(row, return_counts=True)[1].astype(np.float64) for row in scores]
    ties = 1 - sum(float((t**3 - t).sum()) for t in equal) / (n * k * (k**2 - 1))
    spread = 12 * n / (k * (k + 1)) * float(((mean_ranks - (k + 1) / 2) ** 2).sum())
    statistic = spread / ties if ties > 0 else 0.0
    error = np.sqrt(k * (k + 1) / (12 * n))  # of the studentized range: a difference is sqrt(2) times this
    differences = np.abs(mean_ranks[:, None] - mean_ranks[None, :])
    wanted, back = np.unique(differences / error, return_inverse=True)
    pairs = studentized_range.sf(wanted, k, np.inf)[back.reshape(k, k)]
    return Friedman(
        datasets=n,
        models=k,
        statistic=statistic,
        p=float(chdtrc(k - 1, statistic)),
        mean_ranks=tuple(float(r) for r in mean_ranks),
        critical_difference=float(studentized_range.isf(ALPHA, k, np.inf) * error),
        pairs=pairs,
    )


def tie_groups(better: Array) -> tuple[tuple[int, ...], ...] | None:
    """Find the maximal sets in which no two differ significantly; a model can be in several.

    Args:
        better: (K, K), true where the first is better than the second (or either way round).

    Returns:
        The groups as indices, sorted; None where there are more than :data:`MAX_GROUPS`.
    """
    alike = ~(better | better.T)
    np.fill_diagonal(alike, False)
    neighbours = [set(np.flatnonzero(row).tolist()) for row in alike]
    found: list[tuple[int, ...]] = []
    # Bron and Kerbosch with Tomita's pivot, without recursion: (members, candidates, excluded)
    open_: list[tuple[frozenset[int], set[int], set[int]]] = [(frozenset(), set(range(len(alike))), set())]
    while open_ and len(found) <= MAX_GROUPS:
        members, candidates, excluded = open_.pop()
        if not candidates:
            found += [tuple(sorted(members))] if members and not excluded else []
            continue
        pivot = max(candidates | excluded, key=lambda v: (len(neighbours[v] & candidates), -v))
        for vertex in sorted(candidates - neighbours[pivot]):
            open_.append((members | {vertex}, candidates & neighbours[vertex], excluded & neighbours[vertex]))
            candidates = candidates - {vertex}
            excluded = excluded | {vertex}
    return tuple(sorted(found)) if len(found) <= MAX_GROUPS else None


def letters(groups: Sequence[Sequence[int]], models: int) -> list[str]:
    """Name the groups ``a``, ``b``, ... in order and give each model those it is in; numbers beyond 26 groups."""
    many = len(groups) > len(_LETTERS)
    names = [str(i + 1) if many else _LETTERS[i] for i in range(len(groups))]
    own: list[list[str]] = [[] for _ in range(models)]
    for name, group in zip(names, groups, strict=True):
        for member in group:
            own[member].append(name)
    return [(" " if many else "").join(names) for names in own]


def rank_intervals(better: Array) -> list[tuple[int, int]]:
    """The ranks each model can have: below all that are significantly better, above all that are significantly worse.

    Args:
        better: (K, K), true where the first is better than the second.
    """
    better, worse = better.sum(0), better.sum(1)
    return [(1 + int(b), len(better) - int(w)) for b, w in zip(better, worse, strict=True)]
