"""The accuracy part of a leaderboard: models over all datasets of one protocol, and which of them can be told apart."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

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
from bench.report.stats.bootstrap import interval
from bench.report.stats.ranking import ALPHA, letters, rank_intervals, tie_groups
from bench.report.stats.separation import Verdict

MAX_MISSING_NAMED = 3


def overall_section(board: Overall, cost: Mapping[Code, Mapping[str, float | None]], cost_note: str) -> Section:
    """Accuracy beside efficiency, one line a model.

    Args:
        board: the ranking.
        cost: for the code of a model, what is known of ``params``, ``macs_g``, ``throughput``, ``latency_ms`` and
            ``memory_mib``.
        cost_note: how those were measured.
    """
    columns = (
        Column("#"), Column("model", left=True, code=True), Column("AUC"), Column("AUC 95 %", drop=3),
        Column("group", left=True, drop=1), Column("rank 95 %", drop=4), Column("ACC"), Column("mean rank", drop=6),
        Column("datasets", drop=7), Column("params M", drop=2), Column("GMACs", drop=2), Column("images/s", drop=1),
        Column("latency ms", drop=5), Column("memory MiB", drop=4),
    )  # fmt: skip
    verdict = board.judgement.mean
    groups, ranks = (verdict.letters(), verdict.ranks()) if verdict else ({}, {})
    lines, gaps = [], any(s.missing for s in board.standings)
    for s in board.standings:
        has = cost.get(s.code, {})
        params = has.get("params")
        low, high = interval(s.auc_samples) if s.auc_samples is not None else (None, None)
        lines.append((
            str(s.place) if s.place else MISSING, s.model, fixed(s.auc), span(low, high), groups.get(s.model, ""),
            rank_text(ranks.get(s.model)), fixed(s.acc), fixed(s.mean_rank, 2),
            f"{len(board.datasets) - len(s.missing)}/{len(board.datasets)}" if gaps else "",
            significant(params / 1e6 if params else None), significant(has.get("macs_g")),
            significant(has.get("throughput")), significant(has.get("latency_ms")), significant(has.get("memory_mib")),
        ))  # fmt: skip
    blocks: list[Block] = [Text(_counted_note(board)), Table(columns, rows_of(lines)).without_empty()]
    if verdict:
        what = "mean AUC" if len(board.counted) > 1 else "AUC"
        blocks.append(Text(proof_note(verdict, what, board.most_seeds)))
    if cost_note:
        blocks.append(Text(cost_note))
    notes = [*_uncounted(board), *(_gap(s) for s in board.standings if s.place is None), *board.judgement.reasons]
    if notes:
        blocks.append(Bullets(tuple(notes)))
    blocks += _ranks_over_datasets(board)
    return Section(f"Accuracy: {board.protocol.pixels}, {board.protocol.training}", blocks)


def rank_text(bounds: tuple[int, int] | None) -> str:
    """``1–4``, or one number."""
    if bounds is None:
        return MISSING
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]}–{bounds[1]}"


def proof_note(verdict: Verdict, what: str, most_seeds: int) -> str:
    """What the tie groups of a table say, on what basis, and how many pairs are told apart."""
    basis = "on other test images of these classes"
    if verdict.retrained:
        basis += " and after training again"
    elif most_seeds > 1:
        basis += "; models trained once are given the spread of the others, which is no measurement of theirs"
    else:
        basis += "; these are single trained networks, and how far training again would move them has not been measured"
    groups = (
        "models that share a letter are a tie group: no two of them can be told apart"
        if verdict.groups is not None
        else "the tie groups are too many to be named"
    )
    return (
        f"Group: {groups}. By {what}, {verdict.proven} of {counted(verdict.pairs, 'pair')} "
        f"{'is' if verdict.pairs == 1 else 'are'} told apart "
        f"({basis}; paired over the images, Holm over {counted(verdict.family, 'comparison')} of this protocol, "
        f"{100 * ALPHA:.0f} %). Rank 95 %: the places a model can have, given those pairs."
    )


def _ranks_over_datasets(board: Overall) -> list[Block]:
    """Friedman's test and the mean ranks that Nemenyi's critical difference tells apart."""
    test = board.judgement.friedman
    if test is None:
        return []
    models = board.judgement.friedman_models
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
    if not board.counted:
        return 'No model has a test AUC under this protocol; what happened is listed under "Without a result".'
    which = ", ".join(name(d) for d in board.counted)
    n = len(board.counted)
    means = f"AUC and ACC are means over {n} datasets ({which})" if n > 1 else f"Only {which} counts here"
    seeds = board.seeds
    many = board.most_seeds > seeds
    over = f"each over {seeds}{' or more' if many else ''} seeds" if seeds > 1 or many else "one training run each"
    over = over.replace("1 or more seeds", "one or more training runs")
    intervals = (
        " AUC 95 % resamples the test images (bootstrap, 1,000 resamples) and says nothing of retraining."
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
