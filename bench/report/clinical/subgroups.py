"""Results by subgroup (``group=sex+age``): each with its intervals, and whether the largest gap is significant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np

from bench.metrics.one_vs_rest import Array
from bench.metrics.operating import Rule
from bench.metrics.registry import RANKING
from bench.report.blocks import Block, Column, Table, Text
from bench.report.clinical.points import Decided, decided
from bench.report.evidence import joined, trainings
from bench.report.rows import Row
from bench.report.words import MISSING, counted, fixed, listed, name, span
from bench.stats.cluster import over_patients, two_rates
from bench.stats.paired import holm
from bench.stats.ranking import ALPHA
from bench.stats.separation import estimate

LEAST = 5  # images of each class in a group that is judged
BINS = 3
MOST_VALUES = 12
UNKNOWN = "not stated"


@dataclass(frozen=True, slots=True)
class Gap:
    """A difference of one figure between two groups of a column.

    Attributes:
        p: two-sided, not corrected.
    """

    column: str
    figure: str
    high: str
    low: str
    difference: float
    p: float


def subgroup_blocks(members: Sequence[Row], rule: Rule) -> list[Block]:
    """The first model's results in each group, and each model's largest gap; nothing where no column is asked for."""
    shown = [row for row in members if row.evidence and row.ok and asked(row)]
    if not shown:
        return []
    first = shown[0]
    columns = (
        Column("group", left=True), Column("images"), Column("patients", drop=2), Column("prevalence", drop=3),
        Column(RANKING.label), Column(f"{RANKING.label} 95 %", drop=1), Column("sensitivity", drop=1),
        Column("sens. 95 %", drop=2), Column("specificity", drop=1), Column("spec. 95 %", drop=2),
    )  # fmt: skip
    lines: list[tuple[str, ...]] = []
    for column in asked(first):
        lines += _lines(first, column, decided(first, rule))
    note = (
        f"Subgroups of the test images by {listed(map(name, asked(first)))}, {name(first.model)}, at the one threshold "
        f"of all images ({rule.name}); numbers are binned at their terciles. A group with fewer than {LEAST} images of "
        "a class is too small for an AUC."
    )
    said = [gap for row in shown if (gap := largest_gaps(row, rule))]
    text = " ".join(said) or "No two groups of a column are large enough to be compared."
    return [Text(note), Table(columns, lines).without_empty(), Text(text)]


def numbers(values: Sequence[str] | Array) -> Array | None:
    """A column as numbers, NaN where nothing stands; None where it holds words."""
    found = []
    for text in np.asarray(values).tolist():
        try:
            found.append(float(text.replace(",", ".")) if text else float("nan"))
        except ValueError:
            return None
    column = np.array(found)
    return column if np.isfinite(column).any() else None


def by_value(values: Array) -> tuple[list[str], Array]:
    """Names of the groups of a column and the group of each image, (N,); many numbers are binned at their terciles."""
    column = numbers(values)
    if column is not None and len(np.unique(column[np.isfinite(column)])) > 2 * BINS:
        known = column[np.isfinite(column)]
        edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS, method="higher"))
        where = np.searchsorted(edges, column, side="right")
        names = [f"below {edges[0]:g}", *(f"{a:g} to below {b:g}" for a, b in pairwise(edges))]
        names.append(f"{edges[-1]:g} and above")
        where[np.isnan(column)] = len(names)
        return ([*names, UNKNOWN] if np.isnan(column).any() else names), where
    texts, where = np.unique(np.asarray(values).astype(str), return_inverse=True)
    order = [i for i, text in enumerate(texts) if text] + [i for i, text in enumerate(texts) if not text]
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    return [str(texts[i]) or UNKNOWN for i in order], place[where]


def asked(row: Row) -> tuple[str, ...]:
    """The columns of ``group=``, as a row's Records name them."""
    return next((tuple(map(str, found)) for r in row.ok if (found := r["metrics"].get("subgroups"))), ())


def _members(row: Row, column: str) -> tuple[list[str], Array]:
    values = row.scored.columns.get(column)
    return ([], np.zeros(0, dtype=np.int64)) if values is None else by_value(values)


def _lines(row: Row, column: str, point: Decided | None) -> list[tuple[str, ...]]:
    names, where = _members(row, column)
    everybody = row.scored.patients
    lines = []
    for number, text in enumerate(names):
        inside = where == number
        patients = None if everybody is None else np.unique(everybody[inside], return_inverse=True)
        count = MISSING if patients is None else f"{len(patients[0]):,}"
        cells = [f"{column} {text}", f"{int(inside.sum()):,}", count]
        cells.append(MISSING if point is None else f"{100 * float(point.target[inside].mean()):.1f} %")
        cells += _auc(row, inside, patients[1] if patients else None)
        if point is None:
            cells += [MISSING] * 4
        else:
            rates = two_rates(point.yes[inside], point.target[inside], patients[1] if patients else None)
            for one in (rates.sensitivity, rates.specificity):
                cells += [fixed(one.value), span(one.low, one.high)]
        lines.append(tuple(cells))
    return lines


def too_small(labels: Array) -> bool:
    """Whether a group has too few images of a class that occurs in it, or one class only."""
    flat = np.asarray(labels).reshape(len(labels), -1)
    if flat.shape[1] > 1:
        return len(flat) < LEAST
    _, counts = np.unique(flat, return_counts=True)
    return len(counts) < 2 or int(counts.min()) < LEAST


def _auc(row: Row, inside: Array, patients: Array | None) -> list[str]:
    labels = row.scored.labels[inside]
    if too_small(labels):
        return ["too small", MISSING]
    scores = [joined(folds).scores[inside] for folds in trainings(row)]
    found = estimate(RANKING.over, scores, labels, patients)
    return [fixed(found.value), span(*found.interval())]


# --- gaps ------------------------------------------------------------------------------------------------------


def gaps(row: Row, rule: Rule) -> list[Gap]:
    """All differences between two groups of a column in AUC, and for two classes in sensitivity and specificity."""
    evidence = row.scored
    point, scores = decided(row, rule), [joined(folds).scores for folds in trainings(row)]
    patients = np.arange(evidence.n_test) if evidence.patients is None else evidence.patients
    found = []
    for column in asked(row):
        names, where = _members(row, column)
        kept = [g for g in range(len(names)) if not too_small(evidence.labels[where == g])]
        parts = {g: where == g for g in kept}
        figures = {RANKING.label: [_influence_of_auc(scores, evidence.labels, parts[g]) for g in kept]}
        if point is not None:
            figures["sensitivity"] = [_influence_of_rate(point.yes, parts[g] & point.target) for g in kept]
            figures["specificity"] = [_influence_of_rate(1 - point.yes, parts[g] & ~point.target) for g in kept]
        for figure, both in figures.items():
            found += _pairs(column, figure, [names[g] for g in kept], both, (where, evidence.labels), patients)
    return found


def _influence_of_auc(scores: Sequence[Array], labels: Array, inside: Array) -> tuple[float, Array]:
    influence = np.zeros(len(inside))
    of = RANKING.over
    influence[inside] = np.mean([of.influence(s[inside], labels[inside]) for s in scores], axis=0)
    return float(np.mean([of.value(s[inside], labels[inside]) for s in scores])), influence


def _influence_of_rate(right: Array, inside: Array) -> tuple[float, Array]:
    influence = np.zeros(len(inside))
    value = float(right[inside].mean())
    influence[inside] = (right[inside] - value) / inside.sum()
    return value, influence


def _pairs(
    column: str,
    figure: str,
    names: Sequence[str],
    parts: Sequence[tuple[float, Array]],
    strata: tuple[Array, Array],
    patients: Array,
) -> list[Gap]:
    """Compare all groups of a column; a patient may have images in several of them."""
    from scipy.special import stdtr

    if len(parts) < 2:
        return []
    where, labels = strata
    flat = labels.reshape(len(labels), -1)
    classes = flat[:, 0] if flat.shape[1] == 1 else np.zeros(len(flat), dtype=np.int64)
    cells = where * (int(classes.max()) + 1) + classes
    covariance, degrees = over_patients(np.stack([influence for _, influence in parts], axis=1), cells, patients)
    found = []
    for i, j in combinations(range(len(parts)), 2):
        high, low = (i, j) if parts[i][0] >= parts[j][0] else (j, i)
        difference = parts[high][0] - parts[low][0]
        variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
        p = 2 * float(stdtr(degrees, -difference / variance**0.5)) if variance > 0 else 1.0
        found.append(Gap(column, figure, names[high], names[low], difference, p))
    return found


def largest_gaps(row: Row, rule: Rule) -> str:
    """The largest gap of each figure of a model, and which gaps are significant after correction for all of them."""
    found = gaps(row, rule)
    if not found:
        return ""
    corrected = holm([gap.p for gap in found])
    figures = list(dict.fromkeys(gap.figure for gap in found))
    largest = [
        max((gap for gap in found if gap.figure == figure), key=lambda gap: gap.difference) for figure in figures
    ]
    said = [f"{g.figure} {fixed(g.difference)} ({g.column} {g.high} over {g.low})" for g in largest]
    clear = [g for g, p in zip(found, corrected, strict=True) if p < ALPHA and g.difference > 0]
    if clear:
        worst = [f"{g.figure} of {g.column} {g.high} over {g.low}" for g in clear]
        verdict = f"Significant after correction for {counted(len(found), 'comparison')}: {listed(worst)}."
    else:
        verdict = f"None is significant after correction for {counted(len(found), 'comparison')}."
    return f"Largest gaps of {name(row.model)}: {listed(said)}. {verdict}"
