"""Accuracy against cost: which models no other beats in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.report.blocks import Column, Section, Table, Text, listed, name, rows_of, significant
from bench.report.rows import Code
from bench.report.standings import Overall, Standing, is_worse

# of ``cost_beside``: key, heading, more is better, factor for display
COSTS = (
    ("throughput", "images/s", True, 1.0),
    ("latency_ms", "latency ms", False, 1.0),
    ("macs_g", "GMACs", False, 1.0),
    ("memory_mib", "memory MiB", False, 1.0),
    ("params", "params M", False, 1e-6),
)
MAX_NAMED = 4
Costs = Mapping[Code, Mapping[str, float | None]]


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


def pareto_section(board: Overall, cost: Costs) -> Section | None:
    """Models on a front of the score and each cost; None where fewer than three ranked models have a cost."""
    known = [s for s in board.ranked if cost.get(s.code)]
    if len(known) < 3:
        return None
    on: dict[str, list[str]] = {s.model: [] for s in known}
    for key, heading, more, _ in COSTS:
        points = {
            s.model: (board.metric.sign * (s.score or 0.0), value)
            for s in known
            if (value := cost[s.code].get(key)) is not None
        }
        if len(points) >= 3:
            for model in front(points, more):
                on[model].append(heading.removesuffix(" M").removesuffix(" ms").removesuffix(" MiB"))
    lines = [_line(board, s, cost, on[s.model]) for s in known if on[s.model]]
    columns = (
        Column("model", left=True, code=True), Column(board.metric.heading),
        Column("significantly worse", left=True, drop=2),
        *(Column(heading, drop=1 + i) for i, (_, heading, _, _) in enumerate(COSTS)),
        Column("on the front of", left=True, wrap=True),
    )  # fmt: skip
    off = [name(s.model) for s in known if not on[s.model]]
    few = f" On no front: {listed(off)}." if off else ""
    left = few if len(off) <= MAX_NAMED else f" {len(off)} other models are on no front."
    text = (
        f"The Pareto front: no other model has at least this {board.metric.label} at less of that cost (measured as "
        f"said above).{left} A cheaper model that is not significantly worse than the leader may be the better choice."
    )
    return Section("Accuracy against cost", [Text(text), Table(columns, rows_of(lines)).without_empty()])


def _line(board: Overall, s: Standing, cost: Costs, fronts: Sequence[str]) -> tuple[str, ...]:
    values = [cost[s.code].get(key) for key, *_ in COSTS]
    shown = [significant(v * f if v is not None else None) for v, (*_, f) in zip(values, COSTS, strict=True)]
    worse = is_worse(board.significance.leader, s.model)
    return (s.model, board.metric.shown(s.score), worse, *shown, ", ".join(fronts))
