"""The accuracy part of a leaderboard: models over all datasets of one protocol, and every dataset on its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.report.results import Code, Protocol, Row
from bench.report.statistics import Array, interval, rank
from bench.report.tables import (
    MISSING,
    Block,
    Bullets,
    Column,
    Section,
    Table,
    Text,
    fixed,
    known,
    listed,
    name,
    natural,
    rows_of,
    signed,
    significant,
    span,
)

MAX_MISSING_NAMED = 3


@dataclass(slots=True)
class Standing:
    """One model of an overall table; ``place`` and the means are None where a counted dataset is missing."""

    model: str
    code: Code
    rows: dict[str, Row]
    missing: tuple[str, ...]
    place: int | None = None
    auc: float | None = None
    acc: float | None = None
    mean_rank: float | None = None
    auc_samples: Array | None = None


@dataclass(slots=True)
class Overall:
    """All models under one protocol, ranked over the datasets in ``counted``."""

    protocol: Protocol
    datasets: tuple[str, ...]
    counted: tuple[str, ...]
    standings: list[Standing]

    @property
    def ranked(self) -> list[Standing]:
        """Those that have every counted dataset, best first."""
        return [s for s in self.standings if s.place is not None]

    @property
    def seeds(self) -> int:
        """The fewest seeds behind any counted figure."""
        return min((len(s.rows[d].ok) for s in self.ranked for d in self.counted), default=0)


def overall(rows: Iterable[Row]) -> list[Overall]:
    """Rank the models of each protocol."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.protocol.identity].append(row)
    return [_rank(members) for members in sorted(groups.values(), key=lambda g: g[0].protocol.order)]


def _rank(rows: Sequence[Row]) -> Overall:
    scored: dict[str, dict[str, Row]] = {row.model: {} for row in rows}
    for row in rows:
        if row.mean("test_auc") is not None:
            scored[row.model][row.dataset] = row
    datasets = tuple(sorted({row.dataset for row in rows}, key=natural))
    counted = common_datasets(scored)
    codes = {row.model: row.code for row in rows}
    standings = [
        Standing(model, codes[model], own, tuple(d for d in datasets if d not in own)) for model, own in scored.items()
    ]
    complete = [s for s in standings if counted and all(d in s.rows for d in counted)]
    if complete:
        ranks = np.mean([rank(-np.array([s.rows[d].mean("test_auc") for s in complete])) for d in counted], axis=0)
        for standing, mean_rank in zip(complete, ranks, strict=True):
            _fill(standing, counted, float(mean_rank))
    complete.sort(key=lambda s: (-(s.auc or 0), s.mean_rank, natural(s.model), s.model))
    for place, standing in enumerate(complete, start=1):
        tied = place > 1 and standing.auc == complete[place - 2].auc
        standing.place = complete[place - 2].place if tied else place
    rest = sorted((s for s in standings if s.place is None), key=lambda s: (len(s.missing), natural(s.model), s.model))
    return Overall(rows[0].protocol, datasets, counted, complete + rest)


def common_datasets(scored: Mapping[str, Mapping[str, Row]]) -> tuple[str, ...]:
    """Choose the datasets to rank over: those that give the largest table (models x datasets) without a gap.

    Means over different datasets cannot be compared, so a model is ranked only if it has all of the chosen ones.
    Datasets that more models have come first; of equally large tables the one with more datasets is taken.
    """
    have: dict[str, int] = defaultdict(int)
    for own in scored.values():
        for dataset in own:
            have[dataset] += 1
    order = sorted(have, key=lambda d: (-have[d], natural(d)))
    best: tuple[int, int] = (0, 0)
    for n in range(1, len(order) + 1):
        models = sum(all(d in own for d in order[:n]) for own in scored.values())
        best = max(best, (models * n, n))
    return tuple(sorted(order[: best[1]], key=natural)) if best[0] else ()


def _fill(standing: Standing, counted: Sequence[str], mean_rank: float) -> None:
    rows = [standing.rows[d] for d in counted]
    accuracies = [row.mean("test_acc") for row in rows]
    standing.auc = float(np.mean([row.mean("test_auc") or 0.0 for row in rows]))
    standing.acc = float(np.mean([a for a in accuracies if a is not None])) if None not in accuracies else None
    standing.mean_rank = mean_rank
    samples = [row.evidence.auc_samples for row in rows if row.evidence]
    if len(samples) == len(rows):
        standing.auc_samples = np.mean(samples, axis=0)


def overall_section(board: Overall, cost: Mapping[Code, Mapping[str, float | None]], cost_note: str) -> Section:
    """Accuracy beside efficiency, one line a model.

    Args:
        board: the ranking.
        cost: for the code of a model, what is known of ``params``, ``macs_g``, ``throughput``, ``latency_ms`` and
            ``memory_mib``.
        cost_note: how those were measured.
    """
    columns = (
        Column("#"), Column("model", left=True, code=True), Column("AUC"), Column("AUC 95 %", drop=3), Column("ACC"),
        Column("mean rank", drop=4), Column("datasets", drop=6), Column("params M", drop=2), Column("GMACs", drop=2),
        Column("images/s", drop=1), Column("latency ms", drop=5), Column("memory MiB", drop=4),
    )  # fmt: skip
    lines = []
    for s in board.standings:
        has = cost.get(s.code, {})
        params = has.get("params")
        low, high = interval(s.auc_samples) if s.auc_samples is not None else (None, None)
        lines.append((
            str(s.place) if s.place else MISSING, s.model, fixed(s.auc), span(low, high), fixed(s.acc),
            fixed(s.mean_rank, 2), f"{len(board.datasets) - len(s.missing)}/{len(board.datasets)}",
            significant(params / 1e6 if params else None), significant(has.get("macs_g")),
            significant(has.get("throughput")), significant(has.get("latency_ms")), significant(has.get("memory_mib")),
        ))  # fmt: skip
    blocks: list[Block] = [Text(_counted_note(board)), Table(columns, rows_of(lines)).without_empty()]
    if cost_note:
        blocks.append(Text(cost_note))
    if gaps := [*_uncounted(board), *(_gap(s) for s in board.standings if s.place is None)]:
        blocks.append(Bullets(tuple(gaps)))
    return Section(f"Overall: {board.protocol.pixels}, {board.protocol.training}", blocks)


def _counted_note(board: Overall) -> str:
    if not board.counted:
        return 'No model has a test AUC under this protocol; what happened is listed under "Without a result".'
    which = ", ".join(name(d) for d in board.counted)
    n = len(board.counted)
    means = f"AUC and ACC are means over {n} datasets ({which})" if n > 1 else f"Only {which} counts here"
    seeds = board.seeds
    many = len({len(s.rows[d].ok) for s in board.ranked for d in board.counted}) > 1
    over = f"each over {seeds}{' or more' if many else ''} seeds" if seeds > 1 or many else "one training run each"
    over = over.replace("1 or more seeds", "one or more training runs")
    intervals = (
        " The interval resamples the test images (bootstrap, 1,000 resamples) and says nothing of retraining."
        if any(s.auc_samples is not None for s in board.ranked)
        else ""
    )
    return f"{means}, {over}, ordered by AUC; the mean rank is by AUC on each dataset.{intervals}"


def _uncounted(board: Overall) -> list[str]:
    """A sentence on the datasets that are not ranked over."""
    left_out = [d for d in board.datasets if d not in board.counted]
    if not left_out or not board.counted:
        return []
    verb = "does" if len(left_out) == 1 else "do"
    return [
        f"{listed(map(name, left_out))} {verb} not count, having results of too few models "
        "(ranked is over the datasets that give the largest table without gaps)."
    ]


def _gap(standing: Standing) -> str:
    shown = [name(d) for d in standing.missing[:MAX_MISSING_NAMED]]
    more = len(standing.missing) - len(shown)
    return (
        f"{name(standing.model)} is not ranked: no result on {listed([*shown, *([f'{more} more'] if more else [])])}."
    )


# --- one dataset -----------------------------------------------------------------------------------------------


def dataset_sections(rows: Sequence[Row]) -> list[Section]:
    """One table a dataset; models of different protocols are separate rows and separately numbered."""
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row.dataset].append(row)
    return [_dataset_section(dataset, groups[dataset]) for dataset in sorted(groups, key=natural)]


_DATASET_COLUMNS = (
    Column("#"), Column("model", left=True, code=True), Column("AUC"), Column("AUC sd", drop=4),
    Column("AUC 95 %", drop=1), Column("AUC - 0.5", left=True, drop=2), Column("ACC"), Column("ACC sd", drop=6),
    Column("ACC 95 %", drop=3), Column("bal. ACC", drop=5), Column("F1", drop=7), Column("MCC", drop=9),
    Column("ECE", drop=8), Column("seeds", drop=4),
)  # fmt: skip


def _dataset_section(dataset: str, rows: Sequence[Row]) -> Section:
    by_protocol: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_protocol[row.protocol.identity].append(row)
    blocks: list[Block] = [Text(_about(rows))]
    for members in sorted(by_protocol.values(), key=lambda g: g[0].protocol.order):
        members.sort(key=lambda r: (-(a if (a := r.mean("test_auc")) is not None else -1), natural(r.model), r.model))
        protocol = members[0].protocol
        lines = [_dataset_row(row, place) for place, row in enumerate(members, start=1)]
        blocks.append(Text(f"Fed at {protocol.pixels}; recipe {protocol.training}:"))
        blocks.append(Table(_DATASET_COLUMNS, rows_of(lines)).without_empty())
    return Section(name(dataset), blocks, level=3)


def _dataset_row(row: Row, place: int) -> tuple[str, ...]:
    evidence = row.evidence
    auc_low, auc_high = interval(evidence.auc_samples) if evidence else (None, None)
    acc_low, acc_high = interval(evidence.acc_samples) if evidence else (None, None)
    seeds = f"{len(row.ok)}" if not row.other else f"{len(row.ok)} of {len(row.ok) + len(row.other)}"
    status = ", ".join(sorted({r["status"] for r in row.other})) if not row.ok else ""
    area = row.mean("test_auc")
    return (
        str(place) if area is not None else MISSING, row.model, status or fixed(area), fixed(row.spread("test_auc")),
        span(auc_low, auc_high), from_chance(area, auc_low, auc_high), fixed(row.mean("test_acc")),
        fixed(row.spread("test_acc")), span(acc_low, acc_high), fixed(row.mean("test_balanced_acc")),
        fixed(row.mean("test_f1_macro")), fixed(row.mean("test_mcc")), fixed(row.mean("test_ece")), seeds,
    )  # fmt: skip


def from_chance(auc: float | None, low: float | None, high: float | None) -> str:
    """The distance of an AUC from chance, and whether its interval leaves chance out."""
    if auc is None or not known(auc):
        return MISSING
    distance = signed(auc - 0.5)
    if low is None or high is None or not known(low) or not known(high):
        return distance
    if low > 0.5:
        return f"{distance} clear"
    return f"{distance} below" if high < 0.5 else f"{distance} unclear"


def _about(rows: Sequence[Row]) -> str:
    sizes = sorted({n for row in rows if (n := row.n_test) is not None})
    parts = [f"{' or '.join(f'{n:,}' for n in sizes)} test images." if sizes else ""]
    majority = sorted({round(row.evidence.majority, 6) for row in rows if row.evidence})
    frequent = f", and ACC {' or '.join(fixed(m) for m in majority)} for the most frequent answer" if majority else ""
    parts.append(f"Chance is AUC 0.5{frequent}.")
    if any(row.evidence for row in rows):
        parts.append("AUC - 0.5 is clear (or below) where the 95 % interval leaves chance out, else unclear.")
    return " ".join(part for part in parts if part)
