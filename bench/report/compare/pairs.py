"""Pairs of figures of two sides; two models of one run as its leaderboard judges them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.metrics.registry import TESTED, Metric
from bench.record.types import Fields
from bench.report.blocks import Block, Bullets, Column, Columns, Text, tabled
from bench.report.build import read_report
from bench.report.sections.comparisons import Ablation, ablations
from bench.report.standings import Judged, Overall, Standing
from bench.report.words import MISSING, counted, grouped, known, p_text, signed, span
from bench.stats.leader import LeaderTest, explained
from bench.stats.ranking import ALPHA
from bench.stats.separation import all_pairs


@dataclass(frozen=True, slots=True)
class PairRow:
    """One figure on both sides of a comparison: B less A.

    Attributes:
        where: what was scored, in words.
        place: the same for programs.
        a: figure of the first side.
        half: half the width of the difference's 95 % interval; None where it is not known.
        p: two-sided, of this comparison alone.
        p_corrected: Holm's, or as on the leaderboard.
        family: what it is corrected for.
        reason: why the leaderboard calls neither worse, where one of the two leads; else empty.
    """

    metric: Metric
    where: str
    place: Fields
    seeds: int
    a: float
    b: float
    difference: float
    half: float | None
    p: float
    p_corrected: float
    family: str
    reason: str = ""

    @property
    def interval(self) -> str:
        """Of the difference."""
        return MISSING if self.half is None else span(self.difference - self.half, self.difference + self.half)

    @property
    def word(self) -> str:
        """What B is."""
        if not self.p_corrected < ALPHA:
            return "not significant"
        return "significantly " + ("higher" if self.difference > 0 else "lower")


def judged_pairs(run: Path, a: str, b: str) -> list[PairRow]:
    """What the leaderboard of ``run`` says of models ``a`` and ``b``, protocol by protocol, the mean first.

    Raises:
        StoreError: ``run`` is not a run directory.
    """
    boards = read_report(run)[0].boards
    pixels = [board.protocol.pixels for board in boards]
    rows: list[PairRow] = []
    for board in boards:
        of = {s.code[0]: s for s in reversed(board.standings)}
        if a in of and b in of:
            fed = board.protocol.pixels
            fed += f", {board.protocol.training}" if pixels.count(fed) > 1 else ""
            rows += _of_board(board, of[a], of[b], f", {fed}")
    return rows


def _of_board(board: Overall, a: Standing, b: Standing, fed: str) -> Iterable[PairRow]:
    found, metric, models = board.significance, board.metric, (a.model, b.model)
    planned = next((one for one in ablations(board) if {one.model, one.parent} == set(models) and known(one.p)), None)
    if planned and found.leader and found.leader.leader not in models:
        yield _ablation(planned, metric, (a, b), fed, board.seeds)
    elif found.leader and found.judged and len(board.counted) > 1 and a.score is not None and b.score is not None:
        place = f"mean {board.over}{fed}", "", board.seeds
        yield _row(found.judged, found.leader, metric, models, (a.score, b.score), place)
    for one in TESTED:
        for dataset, table in found.tables.get(one.name, {}).items():
            if set(models) <= set(table[0]):
                own = a.rows[dataset], b.rows[dataset]
                place = f"{dataset}{fed}", dataset, min(len(row.values(one.field)) for row in own)
                values = own[0].mean(one.field) or 0.0, own[1].mean(one.field) or 0.0
                yield _row(table, found.datasets[one.name][dataset], one, models, values, place)


def _ablation(one: Ablation, metric: Metric, pair: tuple[Standing, Standing], fed: str, seeds: int) -> PairRow:
    """A planned comparison, as in the board's table of ablations."""
    common = sorted(pair[0].rows.keys() & pair[1].rows.keys())
    a, b = (float(np.mean([s.rows[d].mean(metric.field) or 0.0 for d in common])) for s in pair)
    gap = -one.gap.value if one.model == pair[0].model else one.gap.value  # the table has the variant less its parent
    half = ((one.gap.high or 0.0) - (one.gap.low or 0.0)) / 2
    where = f"mean over {counted(one.datasets, 'dataset')}{fed}"
    place = {"datasets": where, "dataset": None}
    return PairRow(metric, where, place, seeds, a, b, gap, half, one.gap.p or 0.0, one.p, "the ablations")


def _row(
    table: Judged, test: LeaderTest, metric: Metric, models: tuple[str, str], values: tuple[float, float],
    place: tuple[str, str, int],
) -> PairRow:  # fmt: skip
    names, pairs, alone = table
    at = [list(names).index(model) for model in models[::-1]]
    gap, half, p = (float(of[at[0], at[1]]) for of in (pairs.difference, pairs.half_width(), alone))
    against = test.of(models[0]) or test.of(models[1]) if test.leader in models else None
    if against:
        corrected, reason = against.p_corrected, against.reason
        if reason and (test.leader == models[1]) is (metric.sign > 0):  # the interval is that of B less A
            turned = replace(against, difference=-against.difference, low=-against.high, high=-against.low)
            reason = explained(turned, test.comparisons, metric.digits).reason
        family = f"{counted(test.comparisons, 'comparison')} with the leader"
    else:
        every = all_pairs(names, pairs, alone)
        first, second = (every.models.index(model) for model in models)
        corrected, reason, family = float(every.p[first, second]), "", f"{every.pairs} pairs"
    where, dataset, seeds = place
    said = {"datasets": where, "dataset": dataset or None}
    return PairRow(metric, where, said, seeds, *values, metric.sign * gap, half, p, corrected, family, reason)


def pair_blocks(rows: Sequence[PairRow], how: str) -> list[Block]:
    """How the rows were tested, a table for each metric, and why a difference from the leader is not significant."""
    if not rows:
        return []
    one = " One seed speaks of the trained networks, not of training again." * any(row.seeds == 1 for row in rows)

    def columns(metric: Metric) -> Columns[PairRow]:
        return [
            (Column("where", left=True, wrap=True), lambda r: r.where),
            (Column("seeds", drop=3), lambda r: str(r.seeds)),
            (Column(f"{metric.heading} A"), lambda r: metric.shown(r.a)),
            (Column(f"{metric.heading} B"), lambda r: metric.shown(r.b)),
            (Column("difference"), lambda r: signed(r.difference)),
            (Column("95 %", drop=1), lambda r: r.interval),
            (Column("p", drop=2), lambda r: p_text(r.p)),
            (Column("p corrected", drop=1), lambda r: p_text(r.p_corrected)),
            (Column("for", left=True, drop=2), lambda r: r.family),
            (Column("B is", left=True), lambda r: r.word),
        ]

    tables = (tabled(columns(metric), own) for metric, own in grouped(rows, lambda row: row.metric).items())
    reasons = tuple(f"{r.metric.label}, {r.where}: not significant, {r.reason}." for r in rows[:1] if r.reason)
    return [Text(how + one), *tables, *([Bullets(reasons)] if reasons else [])]


def pair_json(rows: Iterable[PairRow]) -> list[Fields]:
    """The rows for programs."""
    return [
        {
            "where": row.place, "metric": row.metric.name, "seeds": row.seeds, "difference": row.difference,
            "half_width_95": row.half, "p": row.p, "p_corrected": row.p_corrected, "corrected_for": row.family,
        }
        for row in rows
    ]  # fmt: skip
