"""``bench score`` from files to pages: read, write the run directory, its boards, the figures as JSON, the screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import say
from bench.metrics.one_vs_rest import Array
from bench.record import store
from bench.record.types import Fields
from bench.registry import positive_of
from bench.report.build import read_report
from bench.report.write.terminal import print_screen
from bench.score.align import TestSet
from bench.score.beside import add_runs
from bench.score.intervals import bootstrapped
from bench.score.read import read
from bench.score.run import write_run
from bench.score.verdict import verdict
from bench.stats.cluster import codes_of
from bench.stats.separation import Estimate

if TYPE_CHECKING:
    from rich.console import Console


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
        :func:`bench.score.verdict.verdict`.

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
    estimates = bootstrapped(dataset, found.labels, list(trainings.values()), found.task, at, patients)
    return dict(zip(trainings, estimates, strict=True))
