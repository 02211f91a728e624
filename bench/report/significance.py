"""Which differences of one protocol are significant: from the leader, between all pairs, and in rank over datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench.metrics.one_vs_rest import Array
from bench.metrics.registry import Metric
from bench.report.rows import Row
from bench.report.standings import Judged, Overall, Significance
from bench.report.words import counted, name
from bench.stats.leader import against_leader
from bench.stats.ranking import MIN_DATASETS, MIN_MODELS, friedman
from bench.stats.separation import (
    Contrast,
    Sample,
    all_pairs,
    compared,
    contrast,
    mean_contrast,
    same_images_contrast,
)

MIN_PER_CLASS = 5  # test images, below which nothing is said of a dataset
Tables = dict[str, Judged]  # of each dataset


def significance(board: Overall, metrics: Sequence[Metric]) -> Significance:
    """Test one protocol's models: against the leader of each dataset by each metric, and of the mean of what ranks."""
    found = Significance()
    for metric in metrics:
        tables = _tables(board, metric, found)
        found.datasets[metric.name] = {d: against_leader(*table, tables=len(tables)) for d, table in tables.items()}
        found.tables[metric.name] = tables
        if metric == board.metric and (mean := _mean(board, tables, found)):
            found.leader, found.pairs, found.judged = against_leader(*mean), all_pairs(*mean), mean
    _over_datasets(board, found)
    return found


def _tables(board: Overall, metric: Metric, found: Significance) -> Tables:
    """The pairs of each dataset; of those that cannot be tested, the metric that ranks leaves the reason."""
    tables: Tables = {}
    for dataset in board.datasets:
        rows = [s.rows[dataset] for s in board.standings if dataset in s.rows]
        rows = _comparable(rows) if metric.images else [row for row in rows if len(row.values(metric.field)) > 1]
        if len(rows) < 2:
            if not metric.images:
                found.reasons.append(
                    f"{name(dataset)}: {metric.label} is tested over trainings alone, which takes two models with two "
                    "seeds or more."
                )
            continue
        if metric.images and (few := _smallest_class(rows[0])) < MIN_PER_CLASS:
            if metric == board.metric:
                found.reasons.append(
                    f"{name(dataset)} is not judged: its rarest class has {counted(few, 'test image')}, and "
                    f"{MIN_PER_CLASS} are the least."
                )
            continue
        tables[dataset] = ([row.model for row in rows], *_pairs(rows, metric))
    return tables


def _comparable(rows: Sequence[Row]) -> list[Row]:
    """Those with saved scores of the test set that most have."""
    sets = Counter(row.evidence.test_set for row in rows if row.evidence)
    most = max(sets, key=lambda s: (sets[s], s)) if sets else ""
    return [row for row in rows if row.evidence and row.evidence.test_set == most]


def _smallest_class(row: Row) -> int:
    """Test images of the rarest class (or answer, if multi-label) that occurs."""
    labels = np.asarray(row.scored.labels).reshape(row.scored.n_test, -1)
    if labels.shape[1] == 1:
        return int(np.unique(labels, return_counts=True)[1].min())
    positive = (labels > 0).sum(0)
    both = np.minimum(positive, len(labels) - positive)
    return int(both[both > 0].min()) if (both > 0).any() else 0


def _pairs(rows: Sequence[Row], metric: Metric) -> tuple[Contrast, Array]:
    if metric.images is None:
        samples = [Sample(tuple(metric.sign * v for v in row.values(metric.field)), np.zeros(1)) for row in rows]
        pairs = contrast(samples, np.zeros(1))
        return pairs, pairs.p_values()
    return compared(metric.over, [row.scored.samples[metric.name] for row in rows], rows[0].scored.labels)


def _mean(board: Overall, tables: Tables, found: Significance) -> Judged | None:
    """The ranked models by their mean over the counted datasets, if each can be judged on all of them."""
    models = [s.model for s in board.ranked]
    if len(models) < 2:
        return None
    parts: dict[str, tuple[Contrast, Array]] = {}
    for dataset in board.counted:
        if dataset not in tables or not set(models) <= set(tables[dataset][0]):
            takes = "the saved scores" if board.metric.images else "two seeds"
            if len(board.counted) > 1:
                found.reasons.append(
                    f"The means over datasets are not judged, because {name(dataset)} is not: that takes {takes} "
                    "of every ranked model."
                )
            return None
        own, pairs, p = tables[dataset]
        at = [list(own).index(m) for m in models]
        parts[dataset] = pairs.of(at), p[np.ix_(at, at)]
    if len(parts) == 1:
        return (models, *parts[board.counted[0]])
    pairs = mean_contrast([same_images_contrast([parts[d][0] for d in own]) for own in board.families])
    return models, pairs, pairs.p_values()


def _over_datasets(board: Overall, found: Significance) -> None:
    models = [s.model for s in board.ranked]
    n = board.independent
    if len(models) < 2 or not n:
        return
    if n < MIN_DATASETS or len(models) < MIN_MODELS:
        have = f"{counted(n, 'dataset')} and {counted(len(models), 'model')}"
        have += "; variants of one dataset count as one" if n < len(board.counted) else ""
        found.reasons.append(
            f"Not tested whether the order holds on other datasets: Friedman's test needs {MIN_DATASETS} datasets and "
            f"{MIN_MODELS} models; this table has {have}."
        )
        return
    metric = board.metric
    scores = [
        [np.mean([metric.sign * (s.rows[d].mean(metric.field) or 0.0) for d in own]) for s in board.ranked]
        for own in board.families
    ]
    found.friedman = friedman(np.array(scores))
    found.friedman_models = tuple(models)
