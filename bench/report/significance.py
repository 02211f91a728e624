"""Which differences of one protocol are significant: pairs on each dataset, pairs on the mean, ranks over datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench.metrics.one_vs_rest import Array
from bench.metrics.registry import Metric
from bench.report.blocks import counted, name
from bench.report.rows import Row
from bench.report.standings import Overall, Significance
from bench.stats.ranking import MIN_DATASETS, MIN_MODELS, friedman
from bench.stats.separation import (
    Contrast,
    Sample,
    contrast,
    groups_of,
    mcnemar_values,
    mean_contrast,
    verdicts,
)

MIN_PER_CLASS = 5  # test images, below which nothing is said of a dataset
MEAN = ""  # the name of the table of means among those of the datasets
Tables = dict[str, tuple[Sequence[str], Contrast, Array]]  # dataset -> models, their contrast, uncorrected p values


def significance(board: Overall, metrics: Sequence[Metric]) -> Significance:
    """Test one protocol's models: pairs by each metric on each dataset, and their means in the metric that ranks."""
    found = Significance()
    for metric in metrics:
        tables = _tables(board, metric, found)
        if metric == board.metric:
            _add_mean(board, tables, found)
        judged = verdicts(tables)
        if metric == board.metric:
            found.mean = judged.pop(MEAN, None)
            if len(board.counted) == 1:
                only = judged.get(board.counted[0])
                found.mean = only if only and {s.model for s in board.ranked} <= set(only.models) else None
        found.tables[metric.name] = judged
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
    assert row.evidence is not None
    labels = np.asarray(row.evidence.labels).reshape(len(row.evidence.labels), -1)
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
    samples = [row.evidence.samples[metric.name] for row in rows if row.evidence]
    assert rows[0].evidence is not None
    pairs = contrast(samples, groups_of(metric.images, rows[0].evidence.labels))
    return pairs, mcnemar_values(samples, pairs.p_values()) if metric.images.answers else pairs.p_values()


def _add_mean(board: Overall, tables: Tables, found: Significance) -> None:
    """Put the means over the counted datasets among the tables, if every ranked model can be judged on each."""
    models = [s.model for s in board.ranked]
    if len(models) < 2 or len(board.counted) < 2:
        return
    parts = []
    for dataset in board.counted:
        if dataset not in tables or not set(models) <= set(tables[dataset][0]):
            takes = "the saved scores" if board.metric.images else "two seeds"
            found.reasons.append(
                f"The means over datasets are not judged, because {name(dataset)} is not: that takes {takes} "
                "of every ranked model."
            )
            return
        own, pairs, _ = tables[dataset]
        parts.append(pairs.of([list(own).index(m) for m in models]))
    pairs = mean_contrast(parts)
    tables[MEAN] = (models, pairs, pairs.p_values())


def _over_datasets(board: Overall, found: Significance) -> None:
    models = [s.model for s in board.ranked]
    n = len(board.counted)
    if len(models) < 2 or not n:
        return
    if n < MIN_DATASETS or len(models) < MIN_MODELS:
        have = f"{counted(n, 'dataset')} and {counted(len(models), 'model')}"
        found.reasons.append(
            f"Whether the order would hold on other datasets is not tested: Friedman's test needs {MIN_DATASETS} "
            f"datasets and {MIN_MODELS} models, and here are {have}."
        )
        return
    metric = board.metric
    scores = [[metric.sign * (s.rows[d].mean(metric.field) or 0.0) for s in board.ranked] for d in board.counted]
    found.friedman = friedman(np.array(scores))
    found.friedman_models = tuple(models)
