"""Has a model learned something beside the disease? Each column of the source's table against label and score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.metrics.one_vs_rest import Array, binary_auc, one_vs_rest
from bench.report.blocks import Block, Column, Columns, Text, tabled
from bench.report.clinical.subgroups import MOST_VALUES, numbers
from bench.report.evidence import joined, trainings
from bench.report.rows import Row
from bench.report.words import fixed, listed, name

LEAST = 5  # images on either side of a comparison
SAME = 0.999  # an AUC above this: the label once more, by another name


@dataclass(frozen=True, slots=True)
class Shortcut:
    """One column against the label and a model's score.

    Attributes:
        value: of the column, which is told from its others; "" for numbers (the upper half from the lower).
        alone: AUC of the label by this column alone.
        label: AUC of the label by the score.
        learned: AUC of the column by the score among images of one class, mean over pairs within a class.
        within: AUC of the label by the score among images of one value of the column.
    """

    column: str
    value: str
    alone: float
    label: float
    learned: float
    within: float

    @property
    def warns(self) -> bool:
        """The score tells the column better than the disease, or the column tells the disease as well as the score."""
        return self.learned > self.label or (self.alone < SAME and self.alone >= self.label)

    @property
    def said(self) -> str:
        """What is wrong, in words."""
        what = f"{name(self.column)} {self.value}".strip()
        if self.learned > self.label:
            return (
                f"its score tells {what} within a class (AUC {fixed(self.learned)}) better than the label (AUC "
                f"{fixed(self.label)})"
            )
        return f"{name(self.column)} alone tells the label (AUC {fixed(self.alone)}) as well as its score does"


def shortcuts(row: Row) -> list[Shortcut]:
    """Every column that can be judged, the best told by the score first; nothing but for two classes."""
    if not row.evidence or not row.evidence.columns or (row.clinical and len(row.clinical[0].thresholds) > 1):
        return []
    number = row.positive.number if row.positive else 1
    labels = row.evidence.labels
    if np.asarray(labels).reshape(len(labels), -1).shape[1] > 1 or int(np.max(labels)) > 1:
        return []
    columns = [one_vs_rest(joined(folds).scores, labels, number)[0][:, 0] for folds in trainings(row)]
    target = np.asarray(labels).reshape(-1) == number
    found = [s for c, values in row.evidence.columns.items() if (s := _judged(c, values, columns, target))]
    return sorted(found, key=lambda s: -s.learned)


def _judged(column: str, values: Array, scores: Sequence[Array], target: Array) -> Shortcut | None:
    number = numbers(values)
    if number is not None and len(np.unique(number[np.isfinite(number)])) > MOST_VALUES:
        known = np.isfinite(number)
        upper = number > np.median(number[known])
        halves, alone = [("", upper)], binary_auc(number[known], target[known])
    else:
        texts, where = np.unique(np.asarray(values).astype(str), return_inverse=True)
        known = np.ones(len(target), dtype=bool)
        halves = [(str(text) or "not stated", where == i) for i, text in enumerate(texts)]
        shares = np.array([target[where == i].mean() for i in range(len(texts))])
        alone = binary_auc(shares[where], target)
        if len(texts) > MOST_VALUES:
            return None
    label = float(np.mean([binary_auc(s, target) for s in scores]))
    best: tuple[float, str, Array] | None = None
    for value, upper in halves:
        learned = _within(scores, upper[known], target[known], known)
        if learned is not None and (best is None or learned > best[0]):
            best = learned, value, upper
    if best is None or not np.isfinite(alone):
        return None
    strata = best[2] if number is not None and halves[0][0] == "" else where
    within = _stratified(scores, target, strata, known)
    return Shortcut(column, best[1], max(alone, 1 - alone), label, best[0], within)


def _within(scores: Sequence[Array], upper: Array, classes: Array, known: Array) -> float | None:
    """AUC of ``upper`` by the scores within the classes, of either direction; None with too few images to say."""
    if min(int(upper.sum()), int((~upper).sum())) < LEAST:
        return None
    found = _stratified([s[known] for s in scores], upper, classes.astype(np.int64), np.ones(len(upper), dtype=bool))
    return max(found, 1 - found) if np.isfinite(found) else None


def _stratified(scores: Sequence[Array], target: Array, strata: Array, known: Array) -> float:
    """AUC of ``target`` within strata, weighted by their pairs, mean over trainings; NaN without any pair."""
    total, pairs = 0.0, 0
    for kind in np.unique(strata[known]):
        inside = known & (strata == kind)
        n = int(target[inside].sum()) * int((~target[inside]).sum())
        if n:
            total += n * float(np.mean([binary_auc(s[inside], target[inside]) for s in scores]))
            pairs += n
    return total / pairs if pairs else float("nan")


def shortcut_blocks(members: Sequence[Row]) -> list[Block]:
    """A table of the columns for the first model that has scores; empty without columns."""
    row = next((row for row in members if row.evidence and row.evidence.columns), None)
    found = shortcuts(row) if row else []
    if row is None or not found:
        return []
    columns: Columns[Shortcut] = [
        (Column("column", left=True, code=True), lambda s: s.column),
        (Column("told by the score", left=True, drop=2), lambda s: s.value or "upper half"),
        (Column("label by the column"), lambda s: fixed(s.alone)),
        (Column("column by the score, within a class"), lambda s: fixed(s.learned)),
        (Column("label by the score"), lambda s: fixed(s.label)),
        (Column("label by the score, within the column"), lambda s: fixed(s.within)),
    ]
    note = (
        f"Shortcuts (AUCs on the test images, {name(row.model)}): how well each column of the table tells the label by "
        "itself, how well the score tells the column among images of one class, and the label among images of one "
        "value. Numbers are halved at their median."
    )
    return [Text(note), tabled(columns, found)]


def shortcut_warnings(rows: Iterable[Row]) -> list[str]:
    """One sentence a model and dataset for the top of a board, where a column beats the disease."""
    found = []
    for row in rows:
        if bad := [s for s in shortcuts(row) if s.warns]:
            within = listed(f"{fixed(s.within)} within {name(s.column)}" for s in bad if np.isfinite(s.within))
            beside = f"; AUC of the label is {within}" if within else ""
            found.append(f"Shortcut: {name(row.model)} on {name(row.dataset)}: {listed(s.said for s in bad)}{beside}.")
    return found
