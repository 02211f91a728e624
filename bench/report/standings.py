"""Models over all datasets of one protocol: where each stands, and which differences are significant. Plain data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.metrics.one_vs_rest import Array, rank
from bench.report.blocks import natural
from bench.report.rows import Code, Protocol, Row
from bench.report.stats.ranking import Friedman
from bench.report.stats.separation import Verdict


@dataclass(slots=True)
class Judgement:
    """What is proven under one protocol.

    Attributes:
        mean: models by their mean AUC over the counted datasets; None where it cannot be judged.
        auc: dataset -> its models by AUC. ``mean`` and ``auc`` are one family: with 95 % confidence none of their
            differences is false.
        acc: dataset -> its models by ACC, a family of its own.
        friedman: of the ranked models over the counted datasets, taken as a sample of datasets.
        friedman_models: in the order of ``friedman.mean_ranks``.
        reasons: why something was not judged, as sentences.
    """

    mean: Verdict | None = None
    auc: dict[str, Verdict] = field(default_factory=dict)
    acc: dict[str, Verdict] = field(default_factory=dict)
    friedman: Friedman | None = None
    friedman_models: tuple[str, ...] = ()
    reasons: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Standing:
    """One model of an overall table; ``place`` and the means are None where a counted dataset is missing."""

    model: str
    code: Code
    rows: dict[str, Row]
    missing: tuple[str, ...]
    place: int | None = None
    auc: float | None = None
    acc: float | None = None
    mean_rank: float | None = None
    auc_samples: Array | None = None


@dataclass(slots=True)
class Overall:
    """All models under one protocol, ranked over the datasets in ``counted``."""

    protocol: Protocol
    datasets: tuple[str, ...]
    counted: tuple[str, ...]
    standings: list[Standing]
    judgement: Judgement = field(default_factory=Judgement)

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


def overall(rows: Iterable[Row]) -> list[Overall]:
    """Rank the models of each protocol."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.protocol.identity].append(row)
    return [_rank(members) for members in sorted(groups.values(), key=lambda g: g[0].protocol.order)]


def _rank(rows: Sequence[Row]) -> Overall:
    scored: dict[str, dict[str, Row]] = {row.model: {} for row in rows}
    for row in rows:
        if row.mean("test_auc") is not None:
            scored[row.model][row.dataset] = row
    datasets = tuple(sorted({row.dataset for row in rows}, key=natural))
    counted = common_datasets(scored)
    codes = {row.model: row.code for row in rows}
    standings = [
        Standing(model, codes[model], own, tuple(d for d in datasets if d not in own)) for model, own in scored.items()
    ]
    complete = [s for s in standings if counted and all(d in s.rows for d in counted)]
    if complete:
        ranks = np.mean([rank(-np.array([s.rows[d].mean("test_auc") for s in complete])) for d in counted], axis=0)
        for standing, mean_rank in zip(complete, ranks, strict=True):
            _fill(standing, counted, float(mean_rank))
    complete.sort(key=lambda s: (-(s.auc or 0), s.mean_rank, natural(s.model), s.model))
    for place, standing in enumerate(complete, start=1):
        tied = place > 1 and standing.auc == complete[place - 2].auc
        standing.place = complete[place - 2].place if tied else place
    rest = sorted((s for s in standings if s.place is None), key=lambda s: (len(s.missing), natural(s.model), s.model))
    return Overall(rows[0].protocol, datasets, counted, complete + rest)


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


def _fill(standing: Standing, counted: Sequence[str], mean_rank: float) -> None:
    rows = [standing.rows[d] for d in counted]
    accuracies = [row.mean("test_acc") for row in rows]
    standing.auc = float(np.mean([row.mean("test_auc") or 0.0 for row in rows]))
    standing.acc = float(np.mean([a for a in accuracies if a is not None])) if None not in accuracies else None
    standing.mean_rank = mean_rank
    samples = [row.evidence.auc_samples for row in rows if row.evidence]
    if len(samples) == len(rows):
        standing.auc_samples = np.mean(samples, axis=0)
