"""Datasets of different native sizes fed at one resolution: one overview by mean rank, since their means do not mix."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from bench.metrics.one_vs_rest import Array, rank
from bench.report.blocks import MODEL, Column, Section, Table, Text
from bench.report.rows import Row
from bench.report.standings import Overall, common_datasets
from bench.report.words import counted, fixed, grouped, listed, name, natural, p_text
from bench.stats.ranking import MIN_DATASETS, MIN_MODELS, friedman


def native_size_sections(boards: Sequence[Overall]) -> list[Section]:
    """An overview for each resolution and recipe that several boards share; none where all images are of one size."""
    groups = grouped(boards, lambda board: board.protocol.fed)
    found = (_overview(group) for group in groups.values() if len(group) > 1)
    return [section for section in found if section]


def _overview(boards: Sequence[Overall]) -> Section | None:
    """The models that have results on all datasets of the largest table over several boards."""
    scored: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in (row for board in boards for standing in board.standings for row in standing.rows.values()):
        scored[row.model][f"{row.dataset}, {row.protocol.size} px"] = row
    datasets = common_datasets(scored)
    models = sorted((m for m, own in scored.items() if all(d in own for d in datasets)), key=natural)
    of = {d: scored[models[0]][d] for d in datasets} if len(models) > 1 else {}
    families = grouped(of, lambda dataset: of[dataset].origin)
    if len(families) < 2 or len({row.protocol.size for row in of.values()}) < 2:
        return None
    metric, protocol = boards[0].metric, boards[0].protocol
    scores = {d: np.array([metric.sign * (scored[m][d].mean(metric.field) or 0.0) for m in models]) for d in datasets}
    ranks = {d: rank(-values) for d, values in scores.items()}
    means = np.mean([np.mean([ranks[d] for d in own], axis=0) for own in families.values()], axis=0)
    columns = (
        MODEL, Column("mean rank"), *(Column(d, drop=1) for d in datasets),
    )  # fmt: skip
    lines = [
        (models[i], fixed(float(means[i]), 2), *(f"{ranks[d][i]:g}" for d in datasets))
        for i in sorted(range(len(models)), key=lambda i: (means[i], i))
    ]
    text = (
        f"{listed(name(row.dataset) for row in of.values())} are of different native sizes, all fed at "
        f"{protocol.resolution} px. So only the ranks by {metric.label} are averaged, never {metric.label} itself. "
        f"{_test(np.array([np.mean([scores[d] for d in own], axis=0) for own in families.values()]))}"
    )
    title = f"Ranks over native sizes: fed at {protocol.resolution} px, {protocol.training}"
    return Section(title, [Text(text), Table(columns, lines)])


def _test(scores: Array) -> str:
    """Friedman's test over the datasets, or what it lacks."""
    n, models = scores.shape
    if n < MIN_DATASETS or models < MIN_MODELS:
        return (
            f"Not tested: Friedman's test needs {MIN_DATASETS} datasets and {MIN_MODELS} models; here are "
            f"{counted(n, 'dataset')} and {counted(models, 'model')}."
        )
    test = friedman(scores)
    return f"Friedman's test over {counted(n, 'dataset')}: p {p_text(test.p)}."
