"""Accuracy against cost: which models no other beats in both."""

from __future__ import annotations

from collections.abc import Mapping

from bench.report.rows import Code
from bench.report.standings import Overall
from bench.report.words import listed, name

# of ``cost_beside``: key, name, more is better
COSTS = (
    ("throughput", "images/s", True),
    ("latency_ms", "latency", False),
    ("macs_g", "GMACs", False),
    ("memory_mib", "memory", False),
    ("params", "parameters", False),
)


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
