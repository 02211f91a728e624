"""The figures of a scored test set as plain data: each model with intervals, each pair with its test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from bench.metrics.registry import METRICS
from bench.record.types import Fields
from bench.report.rows import Row
from bench.stats.notebook import differences
from bench.stats.separation import Estimate, contrast, estimates, groups_of, mcnemar_values

MODEL = ("value", "low", "high")


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
    models: dict[str, dict[str, Fields]] = {row.model: {} for row in rows}
    pairs: list[Fields] = []
    for metric in METRICS.values():
        samples = [row.evidence.samples.get(metric.name) for row in rows if row.evidence]
        known = [s for s in samples if s is not None]
        if metric.images and rows and len(known) == len(rows) and rows[0].evidence:
            groups = groups_of(metric.images, rows[0].evidence.labels)
            for row, estimate in zip(rows, estimates(known, groups), strict=True):
                models[row.model][metric.name] = _figure(estimate)
            if len(rows) > 1:
                table = contrast(known, groups)
                p = table.p_values()
                p = mcnemar_values(known, p) if metric.images.answers else p
                found = differences([row.model for row in rows], table, p)
                pairs += [{"metric": metric.name, **asdict(one)} for one in found]
        else:
            for row in rows:
                if (value := row.mean(metric.field)) is not None:
                    other = others.get(row.model, {}).get(metric.name)
                    low, high = other.interval() if other else (None, None)
                    models[row.model][metric.name] = dict(zip(MODEL, (value, low, high), strict=True))
    return {"models": models, "pairs": pairs}


def _figure(estimate: Estimate) -> Fields:
    low, high = estimate.interval()
    return dict(zip(MODEL, (estimate.value, low, high), strict=True))
