"""The figures of a scored test set as plain data: each model with intervals, each pair with its test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from bench.metrics.registry import METRICS
from bench.record.types import Fields
from bench.report.rows import Row
from bench.stats.notebook import differences
from bench.stats.separation import Estimate, compared, estimates, groups_of


def verdict(rows: list[Row], others: Mapping[str, Mapping[str, Estimate]]) -> Fields:
    """``{"models": {name: {metric: {value, low, high}}}, "pairs": [...]}`` of the rows of one test set.

    Intervals are 95 %, over test images and trainings, of each figure and each difference alone. ``p`` is two-sided:
    for AUC DeLong's test with the variance over seeds added, for ACC of single seeds McNemar's exact test.
    ``p_corrected`` is Holm's over all pairs of a metric. Differences are of ``a`` less ``b``.

    Args:
        rows: models on one test set.
        others: model to estimates of the metrics that are not tested over images; where it has none, ``low`` and
            ``high`` are null.
    """
    rows = [row for row in rows if row.evidence]
    if not rows:
        return {"models": {}, "pairs": []}
    models: dict[str, dict[str, Fields]] = {row.model: {} for row in rows}
    pairs: list[Fields] = []
    for metric in METRICS.values():
        if metric.images and all(metric.name in row.scored.samples for row in rows):
            samples, labels = [row.scored.samples[metric.name] for row in rows], rows[0].scored.labels
            for row, estimate in zip(rows, estimates(samples, groups_of(metric.over, labels)), strict=True):
                models[row.model][metric.name] = _figure(estimate.value, estimate)
            if len(rows) > 1:
                found = differences([row.model for row in rows], *compared(metric.over, samples, labels))
                pairs += [{"metric": metric.name, **asdict(one)} for one in found]
        else:
            for row in rows:
                if (value := row.mean(metric.field)) is not None:
                    models[row.model][metric.name] = _figure(value, others.get(row.model, {}).get(metric.name))
    return {"models": models, "pairs": pairs}


def _figure(value: float, estimate: Estimate | None) -> Fields:
    low, high = estimate.interval() if estimate else (None, None)
    return {"value": value, "low": low, "high": high}
