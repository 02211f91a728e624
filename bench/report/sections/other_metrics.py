"""Metrics of plug-ins: the models ranked by each, with tie groups over trainings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.metrics.registry import Metric
from bench.report.blocks import Section
from bench.report.rows import Row
from bench.report.sections.accuracy import overall_section
from bench.report.significance import significance
from bench.report.standings import overall


def metric_sections(rows: Sequence[Row], metrics: Iterable[Metric]) -> list[Section]:
    """A table for each metric and protocol in which it was recorded."""
    sections = []
    for metric in metrics:
        for board in overall(rows, metric):
            if board.ranked:
                board.significance = significance(board, (metric,))
                found = overall_section(board, {}, "")
                sections.append(Section(found.title.replace("Accuracy", metric.label, 1), found.blocks))
    return sections
