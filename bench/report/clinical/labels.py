"""Multi-label tasks label by label, with macro and micro averages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.metrics.calibration import over_seeds
from bench.metrics.one_vs_rest import Array, binary_auc
from bench.metrics.registry import RANKING
from bench.metrics.resampled import average_precision
from bench.report.blocks import Block, Column, Table, Text
from bench.report.evidence import joined, trainings
from bench.report.rows import Row
from bench.report.words import MISSING, fixed, name, span
from bench.stats.separation import estimate


def label_blocks(members: Sequence[Row]) -> list[Block]:
    """Each label of the first model that has scores; nothing but for multi-label tasks."""
    row = next((row for row in members if row.evidence and np.asarray(row.evidence.labels).ndim == 2), None)
    if row is None or row.scored.labels.shape[1] < 2:
        return []
    labels = np.asarray(row.scored.labels)
    scores = [joined(folds).scores for folds in trainings(row)]
    names = row.classes if len(row.classes) == labels.shape[1] else tuple(map(str, range(labels.shape[1])))
    point = [over_seeds(row.clinical, field) for field in ("sensitivity", "specificity")] if row.clinical else []
    lines = [_line(row, text, k, scores, point) for k, text in enumerate(names)]
    columns = (
        Column("label", left=True), Column("positive"), Column(RANKING.label), Column(f"{RANKING.label} 95 %", drop=1),
        Column("AUPRC"), Column("sensitivity at Youden", drop=2), Column("specificity at Youden", drop=2),
    )  # fmt: skip
    lines += [_macro(row, point), _micro(scores, labels)]
    note = (
        f"Label by label, {name(row.model)}. Macro: the mean over labels; micro: all images and labels together, so "
        "frequent labels count most and scores of different labels are compared."
    )
    return [Text(note), Table(columns, lines).without_empty()]


def _line(row: Row, text: str, k: int, scores: Sequence[Array], point: Sequence[Array]) -> tuple[str, ...]:
    labels = row.scored.labels[:, k]
    positive = int((labels > 0).sum())
    cells = [text, f"{positive:,}"]
    if not 0 < positive < len(labels):
        return (*cells, *[MISSING] * 5)
    columns = [own[:, k] for own in scores]
    found = estimate(RANKING.over, columns, labels, row.scored.patients)
    once = np.ones((len(labels), 1))
    precision = float(np.mean([average_precision(c, labels, once)[0] for c in columns]))
    cells += [fixed(found.value), span(*found.interval()), fixed(precision)]
    return (*cells, *(fixed(float(values[k])) for values in point), *[MISSING] * (2 - len(point)))


def _macro(row: Row, point: Sequence[Array]) -> tuple[str, ...]:
    ends = [float(np.nanmean(values)) for values in point]
    interval = span(*row.evidence.interval(RANKING)) if row.evidence else MISSING
    cells = ("macro", MISSING, fixed(row.mean(RANKING.field)), interval, fixed(row.mean("test_auprc")))
    return (*cells, *map(fixed, ends), *[MISSING] * (2 - len(ends)))


def _micro(scores: Sequence[Array], labels: Array) -> tuple[str, ...]:
    flat = labels.reshape(-1) > 0
    once = np.ones((len(flat), 1))
    area = float(np.mean([binary_auc(own.reshape(-1), flat) for own in scores]))
    precision = float(np.mean([average_precision(own.reshape(-1), flat.astype(int), once)[0] for own in scores]))
    return ("micro", f"{int(flat.sum()):,}", fixed(area), MISSING, fixed(precision), MISSING, MISSING)
