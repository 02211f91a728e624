"""What the scores saved beside the Records say: the metrics of each row with their variances, and operating points."""

from __future__ import annotations

import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.metrics.calibration import Clinical, clinical, recorded
from bench.metrics.one_vs_rest import Array, auc, majority_acc
from bench.metrics.registry import TESTED, OverImages
from bench.metrics.resampled import average_precision
from bench.record.positive import positive_class
from bench.record.types import Record
from bench.report.rows import Evidence, Row
from bench.report.words import grouped, known
from bench.stats.bootstrap import seed_of_test_set
from bench.stats.cluster import codes_of
from bench.stats.separation import Sample, estimates, groups_of, sample

_TOLERANCE = 1e-6
UNREADABLE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # a file of scores that is absent or damaged
_COLUMN = "test_group_"


@dataclass(frozen=True, slots=True)
class Saved:
    """The file of scores beside one Record.

    Attributes:
        scores: of the test split, with ``labels``.
        val_scores: of validation, with ``val_labels``; None where they were not saved.
        names: of the test images, ``patients`` likewise (text); None where the source names none.
        columns: what the source's table says of each test image, by column.
    """

    scores: Array
    labels: Array
    val_scores: Array | None
    val_labels: Array | None
    names: Array | None
    patients: Array | None
    columns: Mapping[str, Array]

    def clinical(self, positive: int) -> Clinical | None:
        """The operating point that validation chooses, and calibration; None without validation's scores."""
        if self.val_scores is None or self.val_labels is None or not len(self.val_scores):
            return None
        return clinical(self.val_scores, self.val_labels, self.scores, self.labels, positive)


def read_saved(path: Path) -> Saved:
    """Read a file of saved scores.

    Raises:
        one of UNREADABLE: there is none, or it is damaged.
    """
    with np.load(path, allow_pickle=False) as file:
        scores, labels = file["test_scores"], file["test_labels"]
        val = {"val_scores", "val_labels"} <= set(file.files)

        def optional(name: str) -> Array | None:
            found: Array | None = file[name] if name in file.files else None
            if found is not None and len(found) != len(labels):
                raise ValueError(f"{name} has {len(found)} entries for {len(labels)} test images")
            return found

        columns = {name.removeprefix(_COLUMN): optional(name) for name in file.files if name.startswith(_COLUMN)}
        return Saved(
            scores, labels, file["val_scores"] if val else None, file["val_labels"] if val else None,
            optional("test_names"), optional("test_patients"),
            {name: values for name, values in columns.items() if values is not None},
        )  # fmt: skip


def add_evidence(rows: Iterable[Row], predictions: Path) -> list[str]:
    """Evaluate the test sets of ``rows`` from ``predictions/<key>.npz``; return what was wrong with a file."""
    problems: list[str] = []
    shared: dict[tuple[str, str], list[tuple[Row, list[list[Saved]]]]] = defaultdict(list)
    for row in rows:
        found = [pair for record in row.ok if (pair := _usable(record, predictions, problems))]
        # Every seed or none: an interval around another mean than the one shown would mislead.
        if not found or len(found) < len(row.ok):
            continue
        row.clinical = clinics if len(clinics := [clinic for _, clinic in found if clinic]) == len(found) else []
        row.ok = [_with(record, *pair) for record, pair in zip(row.ok, found, strict=True)]
        seeds = [[found[i][0] for i in places] for places in _by_seed(row)]
        labels = joined(seeds[0]).labels if seeds else None
        if labels is None:
            what = f"no seed has all {row.folds} folds"
        elif any(not np.array_equal(s.labels, f.labels) for own in seeds for s, f in zip(own, seeds[0], strict=True)):
            what = "the seeds saved different test labels"
        else:
            test_set = f"{row.dataset} {np.shape(labels)} {seed_of_test_set(row.dataset, labels):x}"
            shared[test_set, row.protocol.identity].append((row, seeds))
            continue
        problems.append(f"{row.model} on {row.dataset}: {what}; no interval is given")
    for (test_set, _), members in shared.items():
        _evaluate(test_set, members, predictions)
    return problems


def _by_seed(row: Row) -> list[list[int]]:
    """The places of a row's Records by seed; of cross-validation those of each seed that has all folds, in order."""
    order = sorted(range(len(row.ok)), key=lambda i: row.ok[i]["spec"].get("fold") or 0)
    seeds = grouped(order, lambda i: row.ok[i]["spec"].get("seed"))
    return [places for places in seeds.values() if len(places) == max(row.folds, 1)]


def joined(folds: Sequence[Saved]) -> Saved:
    """The test images of the folds of one seed together; what chose the thresholds is left out."""
    if len(folds) == 1:
        return folds[0]
    texts = []
    for name in ("names", "patients"):
        parts = [getattr(saved, name) for saved in folds]
        texts.append(np.concatenate(parts) if all(part is not None for part in parts) else None)
    blank = [np.full(len(saved.labels), "") for saved in folds]  # a column without a word in a fold is not saved
    columns = {
        name: np.concatenate([s.columns.get(name, none) for s, none in zip(folds, blank, strict=True)])
        for name in sorted({name for saved in folds for name in saved.columns})
    }
    scores, labels = (np.concatenate([getattr(saved, name) for saved in folds]) for name in ("scores", "labels"))
    return Saved(scores, labels, None, None, texts[0], texts[1], columns)


def trainings(row: Row) -> list[list[Saved]]:
    """The saved scores of a row, read again: of each seed one, or one a fold."""
    return [[read_saved(path) for path in paths] for paths in row.evidence.files] if row.evidence else []


def _evaluate(test_set: str, members: list[tuple[Row, list[list[Saved]]]], predictions: Path) -> None:
    """Each metric of the rows of one protocol, which share what is known of the spread over trainings."""
    first = joined(members[0][1][0])
    labels = first.labels
    majority = majority_acc(labels)
    patients = codes_of(first.patients)
    for row, _ in members:
        files = tuple(tuple(predictions / f"{row.ok[i]['key']}.npz" for i in places) for places in _by_seed(row))
        row.evidence = Evidence({}, {}, len(labels), majority, test_set, labels, patients, files, first.columns)
    for metric in TESTED:
        samples = [_sample(metric.over, seeds, labels, patients) for _, seeds in members]
        found = estimates(samples, groups_of(metric.over, labels))
        for (row, _), one, estimate in zip(members, samples, found, strict=True):
            row.scored.samples[metric.name], row.scored.estimates[metric.name] = one, estimate


def _sample(of: OverImages, seeds: Sequence[Sequence[Saved]], labels: Array, patients: Array | None) -> Sample:
    """A metric of one model: over its seeds, or over folds, each the mean of its seeds."""
    folds = len(seeds[0])
    if folds == 1:
        scores = [own[0].scores for own in seeds]
        return sample(of, scores, labels, patients)
    values = [float(np.mean([of.value(own[f].scores, own[f].labels) for own in seeds])) for f in range(folds)]
    parts = [np.mean([of.influence(own[f].scores, own[f].labels) for own in seeds], axis=0) for f in range(folds)]
    return Sample(tuple(values), np.concatenate(parts) / folds, None, patients, 1 / (folds - 1))


def _with(record: Record, saved: Saved, clinic: Clinical | None) -> Record:
    """A Record with the figures that its scores give, where it is from before they were recorded."""
    metrics = dict(record["metrics"])
    if "test_auprc" not in metrics:
        of = positive_class(record)
        once = np.ones((len(saved.labels), 1))
        value = float(average_precision(saved.scores, saved.labels, once, of.number if of else 1)[0])
        metrics["test_auprc"] = value if known(value) else None
    changed: Record = {**record, "metrics": {**(recorded(clinic) if clinic else {}), **metrics}}
    return changed


def _usable(record: Record, predictions: Path, problems: list[str]) -> tuple[Saved, Clinical | None] | None:
    """The scores of a Record with its operating point, if they are there and give the AUC and ACC that it states."""
    path = predictions / f"{record['key']}.npz"
    if not path.is_file():
        return None
    try:
        saved = read_saved(path)
        differs = recorded_otherwise(record, saved.scores, saved.labels)
        of = positive_class(record)
        clinic = saved.clinical(of.number if of else 1)
    except UNREADABLE as error:
        problems.append(f"predictions/{path.name} cannot be used: {error}")
        return None
    if differs:
        problems.append(f"predictions/{path.name} gives {differs}: not used")
        return None
    return (saved, clinic) if np.isfinite(auc(saved.scores, saved.labels)) else None


def recorded_otherwise(record: Record, scores: Array, labels: Array) -> str:
    """The first metric that saved scores give otherwise than their Record states it, in words; empty if none."""
    for metric in TESTED:
        stated = record["metrics"].get(metric.field)
        if known(stated):
            value = metric.over.value(scores, labels)
            if not abs(value - stated) <= _TOLERANCE:
                return f"{metric.field} {value:.6f}, its record {stated:.6f}"
    return ""
