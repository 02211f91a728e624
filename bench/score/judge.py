"""``bench score`` from files to pages: read, write the run directory, its boards, the figures as JSON, the screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bench.errors import say
from bench.metrics.one_vs_rest import Array
from bench.metrics.registry import METRICS
from bench.metrics.resampled import figures
from bench.record import store
from bench.record.types import Fields
from bench.registry import positive_of
from bench.report.build import read_report
from bench.report.rows import Row
from bench.report.write.terminal import print_screen
from bench.score.align import TestSet
from bench.score.beside import add_runs
from bench.score.read import read
from bench.score.run import write_run
from bench.stats.bootstrap import seed_of_test_set
from bench.stats.cluster import codes_of, resamples
from bench.stats.notebook import differences
from bench.stats.separation import Estimate, compared, estimates, groups_of

if TYPE_CHECKING:
    from rich.console import Console

RESAMPLES = 200  # of a variance: known to 5 %
MOST = 2_000_000  # images x classes x trainings, beyond which it would take minutes; then there are none


def score(
    files: Sequence[str],
    labels: Path | None,
    *,
    out: Path,
    json_path: Path | None = None,
    dataset: str = "",
    classes: Sequence[str] = (),
    ordinal: bool = False,
    beside: Sequence[Path] = (),
    single: bool = False,
    positive: str = "",
    console: Console | None = None,
    command: str = "bench score",
) -> Fields:
    """Judge predictions of any origin; the arguments are those of :func:`bench.score.read.read`.

    Args:
        files: ``FILE``, ``NAME=FILE`` or ``NAME:SEED=FILE``.
        labels: a file with labels, where ``files`` have none.
        out: run directory that is written.
        json_path: also write what is returned.
        dataset: name of the test set.
        classes: names in the order of the scores.
        ordinal: the classes are grades.
        beside: runs whose models are compared on the same images.
        positive: of two classes the one that sensitivity is of.
        single: softmax in single precision.
        console: prints notes and the leaderboard there.
        command: is stated on the board.

    Returns:
        :func:`verdict`.

    Raises:
        DataError: a file cannot be used.
        StoreError: ``out`` or ``json_path`` cannot be written.
    """
    name, found = read(
        files, labels, dataset=dataset, classes=classes, ordinal=ordinal, single=single, positive=positive
    )
    name = add_runs(found, name, beside)
    keys = write_run(out, name, found, command)
    report, _ = read_report(out)
    report.write(out)
    rows = [row for row in report.rows if any(record["key"] in keys for record in row.ok)]
    judged = verdict(rows, _others(name, found))
    if json_path:
        store.write_json(json_path, judged)
    if console:
        for note in found.notes:
            say(console, f"note: {note}")
        print_screen(report, out, console, keys)
    return judged


def _others(dataset: str, found: TestSet) -> dict[str, dict[str, Estimate]]:
    """Intervals of what a leaderboard does not test, by model."""
    trainings: dict[str, list[Array]] = {}
    for scored in found.models:
        trainings.setdefault(scored.model, []).append(scored.scores)
    positive = positive_of(found.task, found.classes, found.positive)
    at, patients = positive.number if positive else 1, codes_of(found.patients)
    drawn = bootstrapped(dataset, found.labels, list(trainings.values()), found.task, at, patients)
    return dict(zip(trainings, drawn, strict=True))


def verdict(rows: list[Row], others: Mapping[str, Mapping[str, Estimate]]) -> Fields:
    """``{"models": {name: {metric: {value, low, high}}}, "pairs": [...]}`` of the rows of one test set.

    Intervals are 95 %, over test images and trainings, of each figure and each difference alone. ``p`` is two-sided:
    for AUC DeLong's test with the variance over seeds added, for ACC of single seeds McNemar's exact test.
    ``p_corrected`` is Holm's over all pairs of a metric. Differences are of ``a`` less ``b``.

    Args:
        rows: models on one test set.
        others: model to estimates of the metrics that are not tested over images; where it has none, ``low`` and
            ``high`` are null.
    """
    rows = [row for row in rows if row.evidence]
    if not rows:
        return {"models": {}, "pairs": []}
    models: dict[str, dict[str, Fields]] = {row.model: {} for row in rows}
    pairs: list[Fields] = []
    for metric in METRICS.values():
        if metric.images and all(metric.name in row.scored.samples for row in rows):
            samples, labels = [row.scored.samples[metric.name] for row in rows], rows[0].scored.labels
            for row, estimate in zip(rows, estimates(samples, groups_of(metric.over, labels)), strict=True):
                models[row.model][metric.name] = _figure(estimate.value, estimate)
            if len(rows) > 1:
                found = differences([row.model for row in rows], *compared(metric.over, samples, labels))
                pairs += [{"metric": metric.name, **asdict(one)} for one in found]
        else:
            for row in rows:
                if (value := row.mean(metric.field)) is not None:
                    models[row.model][metric.name] = _figure(value, others.get(row.model, {}).get(metric.name))
    return {"models": models, "pairs": pairs}


def _figure(value: float, estimate: Estimate | None) -> Fields:
    low, high = estimate.interval() if estimate else (None, None)
    return {"value": value, "low": low, "high": high}


# --- intervals of what leaderboards do not test ----------------------------------------------------------------


def bootstrapped(
    dataset: str, labels: Array, trainings: Sequence[Sequence[Array]], task: str, positive: int, patients: Array | None
) -> list[dict[str, Estimate]]:
    """Variances of each model's metrics; empty where the test set is too large.

    Args:
        dataset: name; with the labels it decides the resamples, so that all models are seen on the same.
        labels: (N,) or (N, L).
        trainings: of each model its scores (N, C), one a training.
        task: of the test set.
        positive: of two classes, the one that sensitivity and AUPRC are of.
        patients: (N,) numbers, where images of one patient count together.
    """
    if sum(s.size for scores in trainings for s in scores) > MOST:
        return [{} for _ in trainings]
    weights = resamples(labels, patients, seed_of_test_set(dataset, labels), RESAMPLES)
    found = []
    for scores in trainings:
        drawn = [figures(labels, s, task, positive, weights) for s in scores]
        once = [figures(labels, s, task, positive, np.ones((len(labels), 1), np.float32)) for s in scores]
        found.append(
            {name: _estimate([d[name] for d in drawn], [float(o[name][0]) for o in once]) for name in drawn[0]}
        )
    return found


def _estimate(drawn: Sequence[Array], values: Sequence[float]) -> Estimate:
    k, samples = len(values), np.mean(drawn, axis=0)
    over_images = float(np.nanvar(samples, ddof=1))
    training = float(np.var(values, ddof=1)) / k if k > 1 else 0.0
    moments = over_images**2 / (len(samples) - 1) + training**2 / max(k - 1, 1)
    return Estimate(float(np.mean(values)), over_images + training, moments, over_images)
