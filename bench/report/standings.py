"""Models over all datasets of one protocol: where each stands, and which differences are significant. Plain data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.metrics.one_vs_rest import Array, rank
from bench.metrics.registry import METRICS, RANKING, Metric
from bench.report.blocks import natural
from bench.report.rows import Code, Protocol, Row
from bench.stats.bootstrap import interval
from bench.stats.ranking import Friedman
from bench.stats.separation import Verdict


@dataclass(slots=True)
class Significance:
    """Which differences are significant under one protocol.

    Attributes:
        mean: models by their mean over the counted datasets in the metric that ranks; None where it cannot be tested.
        tables: metric -> dataset -> its models by that metric. The tables of a metric are one family, ``mean`` with
            those of the metric that ranks: with 95 % confidence none of the differences found in a family is false.
        friedman: of the ranked models over the counted datasets, taken as a sample of datasets.
        friedman_models: in the order of ``friedman.mean_ranks``.
        reasons: why something was not tested, as sentences.
    """

    mean: Verdict | None = None
    tables: dict[str, dict[str, Verdict]] = field(default_factory=dict)
    friedman: Friedman | None = None
    friedman_models: tuple[str, ...] = ()
    reasons: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Standing:
    """One model of an overall table; ``place``, ``score`` and ``means`` are missing where a counted dataset is.

    Attributes:
        rows: dataset -> its results there.
        score: mean over the counted datasets of the metric that ranks.
        means: the same of each metric that is shown.
        resampled: ``score`` on each resampled test set, where all scores are saved.
    """

    model: str
    code: Code
    rows: dict[str, Row]
    missing: tuple[str, ...]
    place: int | None = None
    score: float | None = None
    means: dict[str, float | None] = field(default_factory=dict)
    mean_rank: float | None = None
    resampled: Array | None = None

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """95 % interval of ``score`` over test images."""
        return interval(self.resampled) if self.resampled is not None else (None, None)


@dataclass(slots=True)
class Overall:
    """All models of one protocol, ranked by ``metric`` over the datasets in ``counted``, with ``shown`` beside it."""

    metric: Metric
    shown: tuple[Metric, ...]
    protocol: Protocol
    datasets: tuple[str, ...]
    counted: tuple[str, ...]
    standings: list[Standing]
    significance: Significance = field(default_factory=Significance)

    @property
    def plugins(self) -> tuple[Metric, ...]:
        """Those of ``shown`` that plug-ins defined."""
        return tuple(m for m in self.shown if m.name not in METRICS or METRICS[m.name].compute)

    @property
    def ranked(self) -> list[Standing]:
        """Those that have every counted dataset, best first."""
        return [s for s in self.standings if s.place is not None]

    @property
    def seeds(self) -> int:
        """The fewest seeds behind any counted figure."""
        return min((len(s.rows[d].ok) for s in self.ranked for d in self.counted), default=0)

    @property
    def most_seeds(self) -> int:
        """The most seeds behind any counted figure."""
        return max((len(s.rows[d].ok) for s in self.ranked for d in self.counted), default=0)


def overall(rows: Iterable[Row], metric: Metric = RANKING, shown: Sequence[Metric] = ()) -> list[Overall]:
    """Rank the models of each protocol by ``metric``."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.protocol.identity].append(row)
    ordered = sorted(groups.values(), key=lambda g: g[0].protocol.order)
    return [_rank(members, metric, tuple(shown)) for members in ordered]


def _rank(rows: Sequence[Row], metric: Metric, shown: tuple[Metric, ...]) -> Overall:
    scored: dict[str, dict[str, Row]] = {row.model: {} for row in rows}
    for row in rows:
        if row.mean(metric.field) is not None:
            scored[row.model][row.dataset] = row
    datasets = tuple(sorted({row.dataset for row in rows}, key=natural))
    counted = common_datasets(scored)
    codes = {row.model: row.code for row in rows}
    standings = [
        Standing(model, codes[model], own, tuple(d for d in datasets if d not in own)) for model, own in scored.items()
    ]
    complete = [s for s in standings if counted and all(d in s.rows for d in counted)]
    if complete:
        scores = [np.array([metric.sign * (s.rows[d].mean(metric.field) or 0.0) for s in complete]) for d in counted]
        ranks = np.mean([rank(-values) for values in scores], axis=0)
        for standing, mean_rank in zip(complete, ranks, strict=True):
            _fill(standing, counted, metric, shown)
            standing.mean_rank = float(mean_rank)
    complete.sort(key=lambda s: (-metric.sign * (s.score or 0), s.mean_rank, natural(s.model), s.model))
    for place, standing in enumerate(complete, start=1):
        tied = place > 1 and standing.score == complete[place - 2].score
        standing.place = complete[place - 2].place if tied else place
    rest = sorted((s for s in standings if s.place is None), key=lambda s: (len(s.missing), natural(s.model), s.model))
    return Overall(metric, shown, rows[0].protocol, datasets, counted, complete + rest)


def common_datasets(scored: Mapping[str, Mapping[str, Row]]) -> tuple[str, ...]:
    """Choose the datasets to rank over: those that give the largest table (models x datasets) without a gap.

    Means over different datasets cannot be compared, so a model is ranked only if it has all of the chosen ones.
    Datasets that more models have come first; of equally large tables the one with more datasets is taken.
    """
    have: dict[str, int] = defaultdict(int)
    for own in scored.values():
        for dataset in own:
            have[dataset] += 1
    order = sorted(have, key=lambda d: (-have[d], natural(d)))
    best: tuple[int, int] = (0, 0)
    for n in range(1, len(order) + 1):
        models = sum(all(d in own for d in order[:n]) for own in scored.values())
        best = max(best, (models * n, n))
    return tuple(sorted(order[: best[1]], key=natural)) if best[0] else ()


def _fill(standing: Standing, counted: Sequence[str], metric: Metric, shown: Sequence[Metric]) -> None:
    rows = [standing.rows[d] for d in counted]
    for one in (metric, *shown):
        values = [value for row in rows if (value := row.mean(one.field)) is not None]
        standing.means[one.name] = float(np.mean(values)) if len(values) == len(rows) else None
    standing.score = standing.means[metric.name]
    found = [row.evidence.resampled[metric.name] for row in rows if row.evidence and metric.images]
    if len(found) == len(rows):
        standing.resampled = np.mean(found, axis=0)
