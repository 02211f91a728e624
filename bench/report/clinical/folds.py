"""Cross-validation: the score of each fold, their mean, and that of all images together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.metrics.registry import RANKING
from bench.report.blocks import MODEL, Block, Column, Table, Text
from bench.report.evidence import joined, trainings
from bench.report.rows import Row
from bench.report.words import fixed, span
from bench.stats.separation import estimate


def fold_blocks(members: Sequence[Row]) -> list[Block]:
    """A line a model; nothing without folds."""
    shown = [row for row in members if row.folds and row.evidence]
    if not shown:
        return []
    folds = shown[0].folds
    label = RANKING.label
    columns = (
        MODEL, *(Column(f"fold {i + 1}", drop=3) for i in range(folds)),
        Column(f"{label}, mean of folds"), Column("95 %"), Column(f"{label}, images together"),
        Column("95 % of those", drop=1),
    )  # fmt: skip
    lines = []
    for row in shown:
        scores = [joined(own).scores for own in trainings(row)]
        labels = row.scored.labels
        together = estimate(RANKING.over, scores, labels, row.scored.patients)
        values = row.scored.samples[RANKING.name].values
        lines.append((
            row.model, *map(fixed, values), fixed(float(np.mean(values))), span(*row.scored.interval(RANKING)),
            fixed(together.value), span(*together.interval()),
        ))  # fmt: skip
    note = (
        f"{folds} folds of all images, by patient where patients are known, stratified; in each an eighth of the other "
        "images chooses the epoch. Training sets of two folds overlap, so intervals of the mean and differences of "
        "models use Nadeau and Bengio's (2003) corrected variance over folds. Images together: every image by the "
        "network that did not see it, so scores of several networks are compared. Operating points, subgroups and "
        "shortcuts are of the images together, each at its own fold's threshold."
    )
    return [Text(note), Table(columns, lines)]
