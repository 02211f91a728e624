"""The accuracy part of a leaderboard: models over all datasets of one protocol, and which of them can be told apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bench.metrics.registry import Metric
from bench.report.blocks import (
    MISSING,
    Block,
    Bullets,
    Column,
    Details,
    Section,
    Table,
    Text,
    counted,
    fixed,
    listed,
    name,
    natural,
    rows_of,
    significant,
    span,
)
from bench.report.rows import Code
from bench.report.standings import Overall, Standing
from bench.stats.ranking import ALPHA, letters, rank_intervals, tie_groups
from bench.stats.separation import Verdict

MAX_MISSING_NAMED = 3


def overall_section(board: Overall, cost: Mapping[Code, Mapping[str, float | None]], cost_note: str) -> Section:
    """Accuracy beside efficiency, one line a model.

    Args:
        board: the ranking.
        cost: for the code of a model, what is known of ``params``, ``macs_g``, ``throughput``, ``latency_ms`` and
            ``memory_mib``.
        cost_note: how those were measured.
    """
    verdict, metric = board.significance.mean, board.metric
    columns = _columns(board, cost)
    lines = [tuple(show(s) for _, show in columns) for s in board.standings]
    blocks: list[Block] = [
        Text(_counted_note(board)),
        Table(tuple(c for c, _ in columns), rows_of(lines)).without_empty(),
    ]
    if verdict:
        what = f"mean {metric.label}" if len(board.counted) > 1 else metric.label
        blocks.append(Text(proof_note(verdict, what, board.most_seeds, over_images=metric.images is not None)))
    if cost_note:
        blocks.append(Text(cost_note))
    notes = [*_uncounted(board), *(_gap(s) for s in board.standings if s.place is None), *board.significance.reasons]
    if notes:
        blocks.append(Bullets(tuple(notes)))
    blocks += _ranks_over_datasets(board)
    return Section(f"Accuracy: {board.protocol.pixels}, {board.protocol.training}", blocks)


def _columns(
    board: Overall, cost: Mapping[Code, Mapping[str, float | None]]
) -> list[tuple[Column, Callable[[Standing], str]]]:
    """The columns of an overall table, each with how it is read off a standing."""
    verdict, metric = board.significance.mean, board.metric
    groups, ranks = (verdict.letters(), verdict.ranks()) if verdict else ({}, {})
    gaps, n = any(s.missing for s in board.standings), len(board.datasets)

    def costs(key: str, factor: float = 1.0) -> Callable[[Standing], str]:
        def show(s: Standing) -> str:
            value = cost.get(s.code, {}).get(key)
            return significant(value * factor if value is not None else None)

        return show

    def mean(shown: Metric) -> Callable[[Standing], str]:
        return lambda s: shown.shown(s.means.get(shown.name))

    return [
        (Column("#"), lambda s: str(s.place) if s.place else MISSING),
        (Column("model", left=True, code=True), lambda s: s.model),
        (Column(metric.heading), lambda s: metric.shown(s.score)),
        (Column(f"{metric.label} 95 %", drop=3), lambda s: span(*s.interval)),
        (Column("group", left=True, drop=1), lambda s: groups.get(s.model, "")),
        (Column("rank 95 %", drop=4), lambda s: rank_text(ranks.get(s.model))),
        *((Column(shown.heading), mean(shown)) for shown in board.shown),
        (Column("mean rank", drop=6), lambda s: fixed(s.mean_rank, 2)),
        (Column("datasets", drop=7), lambda s: f"{n - len(s.missing)}/{n}" if gaps else ""),
        (Column("params M", drop=2), costs("params", 1e-6)),
        (Column("GMACs", drop=2), costs("macs_g")),
        (Column("images/s", drop=1), costs("throughput")),
        (Column("latency ms", drop=5), costs("latency_ms")),
        (Column("memory MiB", drop=4), costs("memory_mib")),
    ]  # fmt: skip


def rank_text(bounds: tuple[int, int] | None) -> str:
    """``1–4``, or one number."""
    if bounds is None:
        return MISSING
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]}–{bounds[1]}"


def proof_note(verdict: Verdict, what: str, most_seeds: int, over_images: bool = True) -> str:
    """What the tie groups of a table say, on what basis, and how many pairs are told apart."""
    basis = "on other test images of these classes"
    if not over_images:
        basis = "after training again, on these test images"
    elif verdict.retrained:
        basis += " and after training again"
    elif most_seeds > 1:
        basis += "; models trained once are given the spread of the others, which is no measurement of theirs"
    else:
        basis += "; these are single trained networks, and how far training again would move them has not been measured"
    test = "paired over the images" if over_images else "t tests over seeds"
    groups = (
        "models that share a letter are a tie group: no two of them can be told apart"
        if verdict.groups is not None
        else "the tie groups are too many to be named"
    )
    return (
        f"Group: {groups}. By {what}, {verdict.proven} of {counted(verdict.pairs, 'pair')} "
        f"{'is' if verdict.pairs == 1 else 'are'} told apart "
        f"({basis}; {test}, Holm over {counted(verdict.family, 'comparison')} of this protocol, "
        f"{100 * ALPHA:.0f} %). Rank 95 %: the places a model can have, given those pairs."
    )


def _ranks_over_datasets(board: Overall) -> list[Block]:
    """Friedman's test and the mean ranks that Nemenyi's critical difference tells apart."""
    test = board.significance.friedman
    if test is None:
        return []
    models = board.significance.friedman_models
    order = sorted(range(len(models)), key=lambda i: (test.mean_ranks[i], natural(models[i])))
    apart = test.told_apart[np.ix_(order, order)]
    groups = tie_groups(apart)
    own = letters(groups, len(order)) if groups is not None else [""] * len(order)
    lines = [
        (models[i], fixed(test.mean_ranks[i], 2), letter, rank_text(bounds))
        for i, letter, bounds in zip(order, own, rank_intervals(apart), strict=True)
    ]
    columns = (
        Column("model", left=True, code=True),
        Column("mean rank"),
        Column("group", left=True),
        Column("rank 95 %"),
    )
    verdict = (
        f"a mean rank that is better by {fixed(test.critical_difference, 2)} or more is proven (Nemenyi)"
        if test.p < ALPHA
        else "so the ranks could be chance, and no pair is told apart"
    )
    p = "p < 0.001" if test.p < 0.001 else f"p = {fixed(test.p)}"
    line = (
        f"Would the order hold on other datasets like these {test.datasets}? Friedman's chi-square is "
        f"{fixed(test.statistic, 1)} ({p}); {verdict}. {int(apart.sum())} of {len(models) * (len(models) - 1) // 2} "
        "pairs are told apart."
    )
    return [Details(line, (Table(columns, rows_of(lines)),))]


def _counted_note(board: Overall) -> str:
    label = board.metric.label
    if not board.counted:
        return f'No model has a test {label} under this protocol; what happened is listed under "Without a result".'
    which = ", ".join(name(d) for d in board.counted)
    n = len(board.counted)
    shown = listed([label, *(m.label for m in board.shown)])
    means = f"{shown} are means over {n} datasets ({which})" if n > 1 else f"Only {which} counts here"
    seeds = board.seeds
    many = board.most_seeds > seeds
    over = f"each over {seeds}{' or more' if many else ''} seeds" if seeds > 1 or many else "one training run each"
    over = over.replace("1 or more seeds", "one or more training runs")
    intervals = (
        f" {label} 95 % resamples the test images (bootstrap, 1,000 resamples) and says nothing of retraining."
        if any(s.resampled is not None for s in board.ranked)
        else ""
    )
    return f"{means}, {over}, ordered by {label}; the mean rank is by {label} on each dataset.{intervals}"


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
