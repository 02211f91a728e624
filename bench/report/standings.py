"""Models over all datasets of one protocol: where each stands, and which differences are significant. Plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bench.metrics.one_vs_rest import Array, rank
from bench.metrics.operating import Rule
from bench.metrics.registry import METRICS, RANKING, Metric
from bench.record.types import Record, RunInfo
from bench.report.rows import Code, Protocol, Row
from bench.report.words import counted, grouped, name, natural
from bench.stats.leader import LeaderTest
from bench.stats.ranking import Friedman
from bench.stats.separation import Contrast, Estimate, Verdict, mean_estimate, same_images

Judged = tuple[Sequence[str], Contrast, Array]  # models, their pairs, uncorrected p values


@dataclass(slots=True)
class Significance:
    """Which differences are significant under one protocol.

    Attributes:
        leader: every ranked model against the leader, by their mean over the counted datasets in the metric that ranks;
            None where it cannot be tested.
        pairs: all pairs of the same, a family of its own.
        judged: what both are computed from.
        datasets: metric -> dataset -> its models against its leader; the datasets of a metric share one level.
        tables: what those are computed from.
        friedman: of the ranked models over the counted datasets, taken as a sample of datasets.
        friedman_models: in the order of ``friedman.mean_ranks``.
        reasons: why something was not tested, as sentences.
    """

    leader: LeaderTest | None = None
    pairs: Verdict | None = None
    judged: Judged | None = None
    datasets: dict[str, dict[str, LeaderTest]] = field(default_factory=dict)
    tables: dict[str, dict[str, Judged]] = field(default_factory=dict)
    friedman: Friedman | None = None
    friedman_models: tuple[str, ...] = ()
    reasons: list[str] = field(default_factory=list)


def is_worse(test: LeaderTest | None, model: str) -> str:
    """The answer of a table's main column, "significantly worse than the leader?"; empty where it was not tested."""
    if test is None or not test.others:
        return ""
    if model == test.leader:
        return "leader"
    found = test.of(model)
    return "" if found is None else "yes" if found.worse else "no"


@dataclass(slots=True)
class Standing:
    """One model of an overall table; ``place``, ``score`` and ``means`` are missing where a counted dataset is.

    Attributes:
        rows: dataset -> its results there.
        score: mean over the counted datasets of the metric that ranks; variants of one dataset count as one.
        means: the same of each metric that is shown.
        estimate: ``score`` with its variance over test images and trainings, where all scores are saved.
    """

    model: str
    code: Code
    rows: dict[str, Row]
    missing: tuple[str, ...]
    place: int | None = None
    score: float | None = None
    means: dict[str, float | None] = field(default_factory=dict)
    mean_rank: float | None = None
    estimate: Estimate | None = None

    @property
    def control(self) -> bool:
        """Whether it is a frozen network with random weights: shown and compared, never recommended."""
        return any(row.control for row in self.rows.values())

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """95 % interval of ``score`` over test images and trainings."""
        return self.estimate.interval() if self.estimate else (None, None)


@dataclass(slots=True)
class Overall:
    """All models of one protocol, ranked by ``metric`` over the datasets in ``counted``, with ``shown`` beside it.

    ``preferred``: a search chose this protocol on validation.
    """

    metric: Metric
    shown: tuple[Metric, ...]
    protocol: Protocol
    datasets: tuple[str, ...]
    counted: tuple[str, ...]
    standings: list[Standing]
    origins: Mapping[str, str] = field(default_factory=dict)
    significance: Significance = field(default_factory=Significance)
    preferred: bool = False

    @property
    def families(self) -> list[list[str]]:
        """The counted datasets by origin: those of one are variants of each other and count as one dataset."""
        return list(grouped(self.counted, lambda dataset: self.origins.get(dataset, dataset)).values())

    @property
    def independent(self) -> int:
        """How many of the counted datasets are independent of each other."""
        return len(self.families)

    @property
    def over(self) -> str:
        """What a mean is over: ``over 2 datasets``, ``on `x```, ``over 5 variants of one dataset``."""
        n, families = len(self.counted), self.independent
        if n == 1:
            return f"on {name(self.counted[0])}"
        if families == n:
            return f"over {n} datasets"
        if families == 1:
            return f"over {n} variants of one dataset"
        return f"over {families} datasets in {n} variants"

    @property
    def plugins(self) -> tuple[Metric, ...]:
        """Those of ``shown`` that plug-ins defined."""
        return tuple(m for m in self.shown if m.name not in METRICS or METRICS[m.name].compute)

    @property
    def ranked(self) -> list[Standing]:
        """Those that have every counted dataset, best first."""
        return [s for s in self.standings if s.place is not None]

    @property
    def candidates(self) -> list[Standing]:
        """The ranked models that can be recommended: all but random networks."""
        return [s for s in self.ranked if not s.control]

    @property
    def seeds(self) -> int:
        """The fewest seeds behind any counted figure."""
        return min((len(s.rows[d].ok) for s in self.ranked for d in self.counted), default=0)

    @property
    def folds(self) -> int:
        """Of cross-validation; 0 otherwise."""
        return max((s.rows[d].folds for s in self.ranked for d in self.counted), default=0)

    @property
    def unit(self) -> str:
        """What ``seeds`` counts: of cross-validation every fold is a training."""
        return "fold" if self.folds else "seed"

    @property
    def trained(self) -> str:
        """``3 seeds``, ``1 to 3 seeds``: how often each model was trained on a dataset, or on each of its folds."""
        fewest, most = (n // max(self.folds, 1) for n in (self.seeds, self.most_seeds))
        return counted(fewest, "seed") if fewest == most else f"{fewest} to {most} seeds"

    @property
    def most_seeds(self) -> int:
        """The most seeds behind any counted figure."""
        return max((len(s.rows[d].ok) for s in self.ranked for d in self.counted), default=0)


@dataclass(slots=True)
class ReportData:
    """A run as its boards see it: plain data that sections and writers read, and ``build`` fills.

    Attributes:
        records: each Cell once, in an order of their own.
        run_info: what ``run.json`` says.
        rows: a model on a dataset under a protocol each, over its seeds.
        metrics: those that plug-ins defined.
        boards: the models of each protocol, ranked.
        problems: saved scores that could not be used.
        damaged: Records that could not be read.
        rule: how operating points are chosen.
    """

    records: list[Record]
    run_info: RunInfo
    rows: list[Row]
    metrics: tuple[Metric, ...]
    boards: list[Overall]
    problems: list[str]
    damaged: list[str]
    rule: Rule


def overall(rows: Iterable[Row], metric: Metric = RANKING, shown: Sequence[Metric] = ()) -> list[Overall]:
    """Rank the models of each protocol by ``metric``."""
    groups = grouped(rows, lambda row: row.protocol.identity)
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
    board = Overall(metric, shown, rows[0].protocol, datasets, counted, [], {row.dataset: row.origin for row in rows})
    if complete:
        scores = {d: np.array([metric.sign * (s.rows[d].mean(metric.field) or 0.0) for s in complete]) for d in counted}
        ranks = np.mean([np.mean([rank(-scores[d]) for d in own], axis=0) for own in board.families], axis=0)
        for standing, mean_rank in zip(complete, ranks, strict=True):
            _fill(standing, board.families, metric, shown)
            standing.mean_rank = float(mean_rank)
    complete.sort(key=lambda s: (-metric.sign * (s.score or 0), s.mean_rank, natural(s.model), s.model))
    for place, standing in enumerate(complete, start=1):
        tied = place > 1 and standing.score == complete[place - 2].score
        standing.place = complete[place - 2].place if tied else place
    rest = sorted((s for s in standings if s.place is None), key=lambda s: (len(s.missing), natural(s.model), s.model))
    board.standings = complete + rest
    return board


def common_datasets(scored: Mapping[str, Mapping[str, Row]]) -> tuple[str, ...]:
    """Choose the datasets to rank over: those that give the largest table (models x datasets) without a gap.

    Means over different datasets cannot be compared, so a model is ranked only if it has all of the chosen ones.
    Datasets that more models have come first; of equally large tables the one with more datasets is taken.
    """
    have = Counter(dataset for own in scored.values() for dataset in own)
    order = sorted(have, key=lambda d: (-have[d], natural(d)))
    best: tuple[int, int] = (0, 0)
    for n in range(1, len(order) + 1):
        models = sum(all(d in own for d in order[:n]) for own in scored.values())
        best = max(best, (models * n, n))
    return tuple(sorted(order[: best[1]], key=natural)) if best[0] else ()


def _fill(standing: Standing, families: Sequence[Sequence[str]], metric: Metric, shown: Sequence[Metric]) -> None:
    for one in (metric, *shown):
        values = [[standing.rows[d].mean(one.field) for d in own] for own in families]
        known = [[v for v in own if v is not None] for own in values]
        whole = [len(own) for own in known] == [len(own) for own in values]
        standing.means[one.name] = float(np.mean([np.mean(own) for own in known])) if whole else None
    standing.score = standing.means[metric.name]
    evidence = [[standing.rows[d].evidence for d in own] for own in families]
    found = [[e.estimates[metric.name] for e in own if e and metric.images] for own in evidence]
    if [len(own) for own in found] == [len(own) for own in families]:
        standing.estimate = mean_estimate([same_images(own) for own in found])
