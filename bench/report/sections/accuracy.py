"""The accuracy part of a leaderboard: models over all datasets of one protocol, and which are significantly worse."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bench.metrics.registry import Metric
from bench.report.blocks import MODEL, Block, Bullets, Column, Columns, Details, Section, Table, Text, tabled
from bench.report.rows import Code
from bench.report.standings import Overall, Standing, is_worse
from bench.report.words import MISSING, counted, fixed, listed, name, natural, p_text, signed, significant, span
from bench.stats.leader import AgainstLeader, LeaderTest
from bench.stats.ranking import ALPHA, MAX_GROUPS, letters, rank_intervals, tie_groups

# of ``cost_beside``: key, name, more is better
COSTS = (
    ("throughput", "images/s", True),
    ("latency_ms", "latency", False),
    ("macs_g", "GMACs", False),
    ("memory_mib", "memory", False),
    ("params", "parameters", False),
)


def overall_section(board: Overall, cost: Mapping[Code, Mapping[str, float | None]], cost_note: str) -> Section:
    """Accuracy beside efficiency, one line per model.

    Args:
        board: the ranking.
        cost: for the code of a model, what is known of ``params``, ``macs_g``, ``throughput``, ``latency_ms`` and
            ``memory_mib``.
        cost_note: how those were measured.
    """
    blocks: list[Block] = [Text(_counted_note(board)), tabled(_columns(board, cost), board.standings)]
    if board.significance.leader:
        blocks.append(Text(basis_note(board.significance.leader, board.metric, board.most_seeds)))
    if cost_note:
        blocks.append(Text(cost_note))
    why = why_not(board.significance.leader, {s.model: s.place for s in board.ranked})
    notes = [front_note(board, cost), why, *_left_out(board), *board.significance.reasons]
    if notes := [note for note in notes if note]:
        blocks.append(Bullets(tuple(notes)))
    blocks += [*_differences(board), *_ranks_over_datasets(board)]
    return Section(f"Accuracy: {board.protocol.pixels}, {board.protocol.training}", blocks)


def front(points: Mapping[str, tuple[float, float]], more_is_better: bool = False) -> list[str]:
    """Names that no other beats: at least as good in both and better in one.

    Args:
        points: name -> (accuracy, cost).
        more_is_better: the cost is a yield, such as images/s.

    Returns:
        The names, dearest (and best) first.
    """
    sign = -1.0 if more_is_better else 1.0
    flat = {n: (a, sign * c) for n, (a, c) in points.items()}
    kept = [
        n
        for n, (a, c) in flat.items()
        if not any(b >= a and d <= c and (b > a or d < c) for m, (b, d) in flat.items() if m != n)
    ]
    return sorted(kept, key=lambda n: (-flat[n][0], flat[n][1], n))


def front_note(board: Overall, cost: Mapping[Code, Mapping[str, float | None]]) -> str:
    """The models on a front of the score and each cost; empty where fewer than three candidates have a cost."""
    on: dict[str, list[str]] = {}
    for key, heading, more in COSTS:
        points = {
            s.model: (board.metric.sign * (s.score or 0.0), value)
            for s in board.candidates
            if (value := cost.get(s.code, {}).get(key)) is not None
        }
        for model in front(points, more) if len(points) >= 3 else ():
            on.setdefault(model, []).append(heading)
    if not on:
        return ""
    models = [f"{name(s.model)} ({', '.join(on[s.model])})" for s in board.candidates if s.model in on]
    return f"No other model has at least this {board.metric.label} at less cost (Pareto front): {listed(models)}."


def _columns(board: Overall, cost: Mapping[Code, Mapping[str, float | None]]) -> Columns[Standing]:
    """The columns of an overall table, each with how it is read off a standing."""
    metric, leader = board.metric, board.significance.leader
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
        (MODEL, lambda s: s.model),
        (Column(metric.heading), lambda s: metric.shown(s.score)),
        (Column(f"{metric.label} 95 %", drop=2), lambda s: span(*s.interval)),
        (Column("significantly worse", left=True, drop=1), lambda s: is_worse(leader, s.model)),
        *((Column(shown.heading, drop=4), mean(shown)) for shown in board.shown),
        (Column("mean rank", drop=7), lambda s: fixed(s.mean_rank, 2)),
        (Column("datasets", drop=8), lambda s: f"{n - len(s.missing)}/{n}" if gaps else ""),
        (Column("params M", drop=5), costs("params", 1e-6)),
        (Column("GMACs", drop=5), costs("macs_g")),
        (Column("images/s", drop=3), costs("throughput")),
        (Column("latency ms", drop=6), costs("latency_ms")),
        (Column("memory MiB", drop=6), costs("memory_mib")),
    ]  # fmt: skip


def basis_note(test: LeaderTest, metric: Metric, most_seeds: int) -> str:
    """What "significantly worse" rests on."""
    basis = "on other test images of these classes"
    if metric.images is None:
        basis = "after training again, on these test images"
    elif test.retrained:
        basis += " and after training again"
    elif most_seeds > 1:
        basis += "; models trained once are given the spread of the others, which is no measurement of theirs"
    else:
        basis += "; single seed: of these trained networks only, as training again was not measured"
    how = "t tests over seeds" if metric.images is None else "paired by test image"
    of = f"{counted(test.comparisons, 'comparison')} with the leader"
    return (
        f"Significantly worse: than {name(test.leader)}, {basis} ({how}, two-sided, {100 * ALPHA:.0f} %, corrected for "
        f"{of}{' and for choosing it from the same results' if test.comparisons > 1 else ''})."
    )


def why_not(test: LeaderTest | None, places: Mapping[str, int | None]) -> str:
    """Why the lowest of the models that are not significantly worse than the leader is not; empty without one."""
    left = [other for other in test.others if not other.worse] if test else []
    if not left:
        return ""
    last = left[-1]
    return f"Why #{places.get(last.model)} {name(last.model)} is not significantly worse: {last.reason}."


def _differences(board: Overall) -> list[Block]:
    """Every model against the leader, and beside it what the comparison of all pairs says."""
    test, every, sign = board.significance.leader, board.significance.pairs, board.metric.sign
    if test is None or not test.others:
        return []
    others = {other.model: other for other in test.others}
    several = every if every and every.pairs > 1 else None
    groups, ranks = (several.letters(), several.ranks()) if several else ({}, {})

    def of(show: Callable[[AgainstLeader], str]) -> Callable[[str], str]:
        return lambda model: show(others[model]) if model in others else MISSING

    columns: Columns[str] = [
        (MODEL, str),
        (Column(f"{board.metric.label} difference"), of(lambda o: signed(sign * o.difference))),
        (Column("95 %", drop=1), of(lambda o: span(o.low, o.high) if sign > 0 else span(-o.high, -o.low))),
        (Column("p", drop=3), of(lambda o: p_text(o.p))),
        (Column("p corrected", drop=2), of(lambda o: p_text(o.p_corrected))),
        (Column("group", left=True, drop=3), lambda model: groups.get(model, "")),
        (Column("rank 95 %", drop=3), lambda model: rank_text(ranks[model]) if model in ranks else ""),
        (Column("why not significantly worse", left=True, wrap=True, drop=4), of(lambda o: o.reason)),
    ]
    blocks: list[Block] = [tabled(columns, [test.leader, *others])]
    line = f"Each model less {name(test.leader)}: difference, interval, p, and why it is not significantly worse"
    if several:
        line += f"; all pairs: {several.significant} of {counted(several.pairs, 'pair')} differ significantly"
        what = (
            "Models that share a letter are not significantly different"
            if groups
            else f"The tie groups are too many to be named (more than {MAX_GROUPS})"
        )
        blocks.append(Text(
            f"{what}; rank 95 % is the places a model can have. For these two every pair is compared (Holm over "
            f"{several.pairs}), which is another question than the one with the leader alone: a model can be "
            "significantly worse than the leader and share a letter with it."
        ))  # fmt: skip
    return [Details(line, tuple(blocks))]


def rank_text(bounds: tuple[int, int]) -> str:
    """``1–4``, or one number."""
    return str(bounds[0]) if bounds[0] == bounds[1] else f"{bounds[0]}–{bounds[1]}"


def _ranks_over_datasets(board: Overall) -> list[Block]:
    """Friedman's test and the mean ranks that Nemenyi's critical difference tells apart."""
    test = board.significance.friedman
    if test is None:
        return []
    models = board.significance.friedman_models
    order = sorted(range(len(models)), key=lambda i: (test.mean_ranks[i], natural(models[i])))
    apart = test.better[np.ix_(order, order)]
    groups = tie_groups(apart)
    own = letters(groups, len(order)) if groups is not None else [""] * len(order)
    lines = [
        (models[i], fixed(test.mean_ranks[i], 2), letter, rank_text(bounds))
        for i, letter, bounds in zip(order, own, rank_intervals(apart), strict=True)
    ]
    columns = (MODEL, Column("mean rank"), Column("group", left=True), Column("rank 95 %"))
    verdict = (
        f"a mean rank that is better by {fixed(test.critical_difference, 2)} or more is significant (Nemenyi)"
        if test.p < ALPHA
        else "so the ranks could be chance, and no pair differs significantly"
    )
    p = "p < 0.001" if test.p < 0.001 else f"p = {fixed(test.p)}"
    line = (
        f"Would the order hold on other datasets like these {test.datasets}? Friedman's chi-square is "
        f"{fixed(test.statistic, 1)} ({p}); {verdict}. {int(apart.sum())} of {len(models) * (len(models) - 1) // 2} "
        "pairs differ significantly."
    )
    return [Details(line, (Table(columns, lines),))]


def _counted_note(board: Overall) -> str:
    label, n = board.metric.label, len(board.counted)
    if not board.counted:
        return f'No model has a test {label} under this protocol; see "Without a result".'
    which = ", ".join(name(d) for d in board.counted)
    shown = listed([label, *(m.label for m in board.shown)])
    means = f"{shown} are means {board.over} ({which})" if n > 1 else f"Only {which} counts"
    if board.independent < n:
        means += ", which share images: they count as one dataset, and their errors do not average out"
    spread = "test images and training again" if board.most_seeds > 1 else "test images only (single seed)"
    intervals = f" {label} 95 % covers {spread}." if any(s.estimate for s in board.ranked) else ""
    rank = f"; mean rank is by {label} on each dataset" if n > 1 else ""
    return f"{means}, {board.trained} each, sorted by {label}{rank}.{intervals}"


def _left_out(board: Overall) -> list[str]:
    """Which datasets do not count, and which models are not ranked."""
    found = []
    if board.counted and (few := [name(d) for d in board.datasets if d not in board.counted]):
        found.append(
            f"Not counted, as too few models have results: {listed(few)} (models are ranked over the datasets that "
            "give the largest table without gaps)."
        )
    if board.counted and (gaps := [name(s.model) for s in board.standings if s.place is None]):
        found.append(f"Not ranked, as a result is missing: {listed(gaps)}.")
    return found
