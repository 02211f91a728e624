"""What the test set can tell: the difference that it resolves, and how large one resolves the first two models."""

from __future__ import annotations

from collections.abc import Sequence

from bench.metrics.registry import RANKING
from bench.report.rows import Row
from bench.report.words import name, significant
from bench.stats.cluster import Z_95, resolvable
from bench.stats.separation import compared

POWER_Z = 0.8416212335729143  # of 80 % power


def size_note(members: Sequence[Row]) -> str:
    """One or two sentences on the first two models of a table, best first; empty without saved scores of both."""
    rows = [row for row in members if row.evidence and row.mean(RANKING.field) is not None]
    if len(rows) < 2 or rows[0].scored.test_set != rows[1].scored.test_set:
        return ""
    one, two = (row.scored for row in rows[:2])
    pairs, _ = compared(RANKING.over, [e.samples[RANKING.name] for e in (one, two)], one.labels)
    variance, training = float(pairs.variance[0, 1]), float(pairs.training[0, 1])
    difference = abs(float(pairs.difference[0, 1]))
    if not variance:
        return ""
    resolved = significant(resolvable(variance**0.5), 2)
    said = (
        f"With {one.images} the test resolves a difference in {RANKING.label} of {resolved} between "
        f"{name(rows[0].model)} and {name(rows[1].model)} (two-sided 5 %, power 80 %); it is "
        f"{significant(difference, 2)}."
    )
    return f"{said} {_wanted(difference, variance - training, training, one.n_patients or one.n_test, one.n_patients)}"


def _wanted(difference: float, images: float, training: float, n: int, patients: int | None) -> str:
    """How many images or patients, as alike as these, resolve the difference, with as many trainings as here."""
    left = (difference / (Z_95 + POWER_Z)) ** 2 - training
    units = "patients" if patients else "images"
    if difference == 0:
        return "No test set resolves a difference of 0."
    if left <= 0:
        return "More trainings are needed before a larger test set could resolve it."
    wanted = images * n / left
    return f"That takes about {wanted:,.0f} {units} as these." if wanted > n else "The test set is large enough for it."
