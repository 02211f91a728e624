"""What the boards of a run are made of, computed once. Plain data: sections and writers read it, ``build`` fills it."""

from __future__ import annotations

from dataclasses import dataclass

from bench.metrics.operating import Rule
from bench.metrics.registry import Metric
from bench.record.types import Record, RunInfo
from bench.report.rows import Row
from bench.report.standings import Overall


@dataclass(slots=True)
class ReportData:
    """A run as its boards see it.

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
