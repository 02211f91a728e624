"""Two models of one run as the run's leaderboard judges them: the same differences, corrected in the same families."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.metrics.registry import TESTED, Metric
from bench.record.types import Fields
from bench.report.blocks import Block, Bullets, Column, Columns, Text, tabled
from bench.report.build import read_report
from bench.report.sections.comparisons import Ablation, ablations
from bench.report.standings import Judged, Overall, Standing
from bench.report.words import counted, known, p_text, signed, span
from bench.stats.leader import LeaderTest
from bench.stats.ranking import ALPHA
from bench.stats.separation import all_pairs


@dataclass(frozen=True, slots=True)
class PairRow:
    """One figure of two models: B less A.

    Attributes:
        where: the datasets and the protocol, in words.
        dataset: empty for the mean over datasets.
        a: figure of the first model.
        low: 95 % interval of the difference, over test images and trainings.
        p: two-sided, of this comparison alone.
        p_corrected: as on the leaderboard.
        family: what it is corrected for.
        reason: why the leaderboard calls neither worse, where one of the two leads; else empty.
    """

    metric: Metric
    where: str
    dataset: str
    seeds: int
    a: float
    b: float
    low: float
    high: float
    p: float
    p_corrected: float
    family: str
    reason: str

    @property
    def word(self) -> str:
        """What B is, in the leaderboard's judgement."""
        if not self.p_corrected < ALPHA:
            return "not significant"
        return "significantly " + ("higher" if self.b > self.a else "lower")


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
    low, high = one.gap.low or 0.0, one.gap.high or 0.0
    if one.model == pair[0].model:  # the table has the variant less its parent
        low, high = -high, -low
    where = f"mean over {counted(one.datasets, 'dataset')}{fed}"
    return PairRow(metric, where, "", seeds, a, b, low, high, one.gap.p or 0.0, one.p, "the ablations", "")


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
        family = f"{counted(test.comparisons, 'comparison')} with the leader"
    else:
        every = all_pairs(names, pairs, alone)
        first, second = (every.models.index(model) for model in models)
        corrected, reason, family = float(every.p[first, second]), "", f"{every.pairs} pairs"
    low, high = sorted((metric.sign * (gap - half), metric.sign * (gap + half)))
    where, dataset, seeds = place
    return PairRow(metric, where, dataset, seeds, *values, low, high, p, corrected, family, reason)


def pair_blocks(rows: Iterable[PairRow]) -> list[Block]:
    """The rows as a table for each metric, and why a difference from the leader is not significant."""
    rows = list(rows)
    blocks: list[Block] = []
    for metric in dict.fromkeys(row.metric for row in rows):
        own = [row for row in rows if row.metric == metric]
        columns: Columns[PairRow] = [
            (Column("where", left=True, wrap=True), lambda r: r.where),
            (Column("seeds", drop=3), lambda r: str(r.seeds)),
            (Column(f"{metric.heading} A"), lambda r: r.metric.shown(r.a)),
            (Column(f"{metric.heading} B"), lambda r: r.metric.shown(r.b)),
            (Column("difference"), lambda r: signed(r.b - r.a)),
            (Column("95 %", drop=1), lambda r: span(r.low, r.high)),
            (Column("p", drop=2), lambda r: p_text(r.p)),
            (Column("p corrected", drop=1), lambda r: p_text(r.p_corrected)),
            (Column("for", left=True, drop=2), lambda r: r.family),
            (Column("B is", left=True), lambda r: r.word),
        ]
        blocks.append(tabled(columns, own))
    reasons = tuple(f"{r.metric.label}, {r.where}: not significant, {r.reason}." for r in rows[:1] if r.reason)
    text = (
        "As on the leaderboard of this run, so that both say the same: paired by test image, over trainings too, and "
        "corrected for the comparisons that the leaderboard makes. p by itself is for whoever planned this comparison "
        "alone, before seeing results."
    )
    if any(row.seeds == 1 for row in rows):
        text += " One seed speaks of the trained networks, not of training again."
    return [Text(text), *blocks, *([Bullets(reasons)] if reasons else [])] if rows else []


def pair_json(rows: Iterable[PairRow]) -> list[Fields]:
    """The rows for programs."""
    return [
        {
            "where": {"datasets": row.where, "dataset": row.dataset or None}, "metric": row.metric.name,
            "seeds": row.seeds, "difference": row.b - row.a, "half_width_95": (row.high - row.low) / 2, "p": row.p,
            "p_corrected": row.p_corrected, "corrected_for": row.family,
        }
        for row in rows
    ]  # fmt: skip
