"""What saved scores prove of one protocol's tables: pairs on each dataset, pairs on the mean, ranks over datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench.report.blocks import counted, name
from bench.report.rows import Row
from bench.report.standings import Judgement, Overall
from bench.report.stats.paired import strata
from bench.report.stats.ranking import MIN_DATASETS, MIN_MODELS, friedman
from bench.report.stats.separation import Array, Contrast, contrast, mcnemar_values, mean_contrast, verdicts

MIN_PER_CLASS = 5  # test images, below which nothing is said of a dataset
MEAN = ""  # the name of the table of means among those of the datasets


def judge(board: Overall) -> Judgement:
    """Judge one protocol's models by their saved scores."""
    found = Judgement()
    areas: dict[str, tuple[Sequence[str], Contrast, Array]] = {}
    rights: dict[str, tuple[Sequence[str], Contrast, Array]] = {}
    for dataset in board.datasets:
        rows = _comparable([s.rows[dataset] for s in board.standings if dataset in s.rows])
        if len(rows) < 2:
            continue
        if (few := _smallest_class(rows[0])) < MIN_PER_CLASS:
            found.reasons.append(
                f"{name(dataset)} is not judged: its rarest class has {counted(few, 'test image')}, and "
                f"{MIN_PER_CLASS} are the least."
            )
            continue
        models = [row.model for row in rows]
        areas[dataset] = (models, *_area_pairs(rows))
        rights[dataset] = (models, *_right_pairs(rows))
    _add_mean(board, areas, found)
    judged = verdicts(areas)
    found.mean = judged.pop(MEAN, None)
    found.auc, found.acc = judged, verdicts(rights)
    if len(board.counted) == 1:
        only = judged.get(board.counted[0])
        found.mean = only if only and {s.model for s in board.ranked} <= set(only.models) else None
    _over_datasets(board, found)
    return found


def _comparable(rows: Sequence[Row]) -> list[Row]:
    """Those with saved scores of the test set that most have."""
    sets = Counter(row.evidence.test_set for row in rows if row.evidence)
    most = max(sets, key=lambda s: (sets[s], s)) if sets else ""
    return [row for row in rows if row.evidence and row.evidence.test_set == most]


def _smallest_class(row: Row) -> int:
    """Test images of the rarest class (or answer, if multi-label) that occurs."""
    assert row.evidence is not None
    labels = np.asarray(row.evidence.labels).reshape(len(row.evidence.labels), -1)
    if labels.shape[1] == 1:
        return int(np.unique(labels, return_counts=True)[1].min())
    positive = (labels > 0).sum(0)
    both = np.minimum(positive, len(labels) - positive)
    return int(both[both > 0].min()) if (both > 0).any() else 0


def _area_pairs(rows: Sequence[Row]) -> tuple[Contrast, Array]:
    samples = [row.evidence.auc for row in rows if row.evidence]
    assert rows[0].evidence is not None
    pairs = contrast(samples, strata(rows[0].evidence.labels))
    return pairs, pairs.p_values()


def _right_pairs(rows: Sequence[Row]) -> tuple[Contrast, Array]:
    """Of ACC: the images are one group, as in McNemar's test."""
    samples = [row.evidence.acc for row in rows if row.evidence]
    pairs = contrast(samples, np.zeros(len(samples[0].influence)))
    return pairs, mcnemar_values(samples, pairs.p_values())


def _add_mean(board: Overall, areas: dict[str, tuple[Sequence[str], Contrast, Array]], found: Judgement) -> None:
    """Put the means over the counted datasets among the tables, if every ranked model can be judged on each."""
    models = [s.model for s in board.ranked]
    if len(models) < 2 or len(board.counted) < 2:
        return
    parts = []
    for dataset in board.counted:
        if dataset not in areas or not set(models) <= set(areas[dataset][0]):
            found.reasons.append(
                f"The means over datasets are not judged, because {name(dataset)} is not: that takes the saved scores "
                "of every ranked model."
            )
            return
        own, pairs, _ = areas[dataset]
        at = np.ix_(*[[list(own).index(m) for m in models]] * 2)
        parts.append(Contrast(pairs.difference[at], pairs.variance[at], pairs.moments[at], pairs.retrained))
    pairs = mean_contrast(parts)
    areas[MEAN] = (models, pairs, pairs.p_values())


def _over_datasets(board: Overall, found: Judgement) -> None:
    models = [s.model for s in board.ranked]
    n = len(board.counted)
    if len(models) < 2 or not n:
        return
    if n < MIN_DATASETS or len(models) < MIN_MODELS:
        have = f"{counted(n, 'dataset')} and {counted(len(models), 'model')}"
        found.reasons.append(
            f"Whether the order would hold on other datasets is not tested: Friedman's test needs {MIN_DATASETS} "
            f"datasets and {MIN_MODELS} models, and here are {have}."
        )
        return
    scores = [[s.rows[d].mean("test_auc") or 0.0 for s in board.ranked] for d in board.counted]
    found.friedman = friedman(np.array(scores))
    found.friedman_models = tuple(models)
