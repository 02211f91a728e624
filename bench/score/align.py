"""Put the predictions of several models on one test set: the same images, the same labels, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bench.errors import DataError
from bench.metrics.one_vs_rest import Array
from bench.registry import nearest
from bench.report.words import counted
from bench.score.roles import Predictions, plain

LARGEST_LOGIT = 20  # scores of 0 to 100 that go beyond are percent: nobody is sure of all images to 1e-9
SUM_TOLERANCE = 0.01  # rows of probabilities add up to one but for rounding
MAX_NAMED = 3
BINARY, MULTI, LABELS, ORDINAL = "binary-class", "multi-class", "multi-label", "ordinal-regression"


@dataclass(frozen=True, slots=True)
class Truth:
    """What is right: labels as written, with ids where there are any, and the file that says so."""

    labels: Array
    ids: Array | None
    path: Path


@dataclass(slots=True)
class Scored:
    """One model and seed on the test set: ``scores`` are probabilities (N, C) float64 in the order of the labels."""

    model: str
    seed: int
    scores: Array
    path: Path


@dataclass(slots=True)
class TestSet:
    """All models on one test set.

    Attributes:
        task: one of :data:`bench.registry.TASKS`.
        classes: names in the order of the scores' columns.
        positive: of a binary task, the class that sensitivity is of; "" where nobody said.
        labels: (N,) class numbers, or (N, L) in {0, 1}.
        ids: (N,) texts or None.
        notes: what was found out or guessed, as sentences.
    """

    task: str
    classes: tuple[str, ...]
    positive: str
    labels: Array
    ids: Array | None
    patients: Array | None
    groups: dict[str, Array]
    models: list[Scored]
    notes: list[str] = field(default_factory=list)


def align(
    parts: Sequence[Predictions], truth: Truth | None, classes: Sequence[str], ordinal: bool, notes: list[str]
) -> TestSet:
    """Check that all predictions are of one test set and bring them into one order.

    Args:
        parts: one a model and seed.
        truth: labels of their own file; otherwise the first of ``parts`` that has labels says them.
        classes: names in order as the user gave them; may be empty.
        ordinal: the classes are grades.
        notes: what reading the files gave; the result's notes begin with them.

    Raises:
        DataError: names the file, and what does not fit.
    """
    truth = truth or next((Truth(p.labels, p.ids, p.path) for p in parts if p.labels is not None), None)
    if truth is None:
        raise DataError(f"{parts[0].path}: no file has labels; add a column 'label', or give --labels FILE")
    _refuse_repeats(parts)
    if truth.labels.dtype.kind != "U":
        _refuse_no_classes(truth.labels, truth.path)
    if truth.ids is not None:
        _refuse_double_ids(truth.ids, truth.path)
    ids = truth.ids if truth.ids is not None else next((p.ids for p in parts if p.ids is not None), None)
    orders = [_order(part, truth) for part in parts]
    names = _classes(parts, truth, tuple(classes))
    task = LABELS if truth.labels.ndim == 2 else ORDINAL if ordinal else BINARY if len(names) == 2 else MULTI
    labels = _numbered(truth.labels, names, truth.path, notes)
    _refuse_one_class(labels, names, truth.path)
    for part, order in zip(parts, orders, strict=True):
        if part.labels is not None:
            _same_labels(part, order, labels, names, truth)
    if any(p.ids is None for p in parts) and len(parts) + (truth.path != parts[0].path) > 1:
        notes.append(f"images without an id are matched by their order ({len(labels):,} of each)")
    found = TestSet(task, names, "1" if names == ("0", "1") else "", labels, ids, None, {}, [], notes)
    for part, order in zip(parts, orders, strict=True):
        scores = probabilities(part, part.scores[order], names, task, notes)
        found.models.append(Scored(part.model, part.seed, scores, part.path))
        if found.patients is None and part.patients is not None:
            found.patients = part.patients[order]
        found.groups |= {name: v[order] for name, v in part.groups.items() if name not in found.groups}
        if part.folds:
            notes.append(
                f"{part.model}: the test images of {part.folds} folds are pooled, so its AUC mixes scores of different "
                "trainings"
            )
    return found


def _refuse_repeats(parts: Sequence[Predictions]) -> None:
    seen: dict[tuple[str, int], Path] = {}
    for part in parts:
        key = part.model, part.seed
        if key in seen:
            raise DataError(
                f"{part.path}: model {part.model!r}, seed {part.seed} is in {seen[key]} too; write NAME:SEED=FILE"
            )
        seen[key] = part.path


def _refuse_double_ids(ids: Array, path: Path) -> None:
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        named = ", ".join(values[counts > 1][:MAX_NAMED].tolist())
        raise DataError(
            f"{path}: {counted(int((counts > 1).sum()), 'id')} in more than one row: {named}; write one row per image, "
            "or add a column model or seed"
        )


def _order(part: Predictions, truth: Truth) -> Array:
    """The row of ``part`` for each image of ``truth``."""
    n = len(truth.labels)
    if part.ids is not None and truth.ids is not None and np.array_equal(part.ids, truth.ids):
        return np.arange(n)
    if part.ids is not None:
        _refuse_double_ids(part.ids, part.path)
    if part.ids is None or truth.ids is None:
        if len(part.scores) != n:
            raise DataError(f"{part.path}: {len(part.scores):,} rows, but {truth.path} has labels of {n:,} images; "
                            "all files must be of one test set")  # fmt: skip
        if part.ids is not None and np.array_equal(
            np.sort(part.ids.astype(object)), np.sort(np.arange(n).astype(str).astype(object))
        ):
            return np.argsort(part.ids.astype(np.int64))  # an index into the order of the labels
        return np.arange(n)
    position = {name: i for i, name in enumerate(part.ids.tolist())}
    missing = [name for name in truth.ids.tolist() if name not in position]
    more = set(part.ids.tolist()) - set(truth.ids.tolist())
    if missing or more:
        lacks = (
            f"{len(missing):,} ids of {truth.path} are missing ({', '.join(missing[:MAX_NAMED])})" if missing else ""
        )
        adds = f"{len(more):,} ids are not in {truth.path} ({', '.join(sorted(more)[:MAX_NAMED])})" if more else ""
        raise DataError(f"{part.path}: {'; '.join(filter(None, (lacks, adds)))}; all files must be of one test set")
    return np.array([position[name] for name in truth.ids.tolist()])


def _classes(parts: Sequence[Predictions], truth: Truth, given: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the classes in order."""
    width = max(p.scores.shape[1] for p in parts)
    for part in parts:
        if part.scores.shape[1] != width and not {part.scores.shape[1], width} <= {1, 2}:
            raise DataError(f"{part.path}: {part.scores.shape[1]} columns of scores, other files have {width}")
    if truth.labels.ndim == 2:
        width = truth.labels.shape[1]
    values = np.unique(truth.labels) if truth.labels.ndim == 1 else np.arange(width)
    text = values.dtype.kind == "U"
    if given:
        wanted = 2 if width == 1 else width
        if len(given) != wanted:
            raise DataError(f"--classes names {len(given)} classes, the scores have {wanted}")
        return given
    columns = next((p.columns for p in parts if p.scores.shape[1] == width), ())
    named = bool(columns) and not all(c.isdecimal() for c in columns)
    if width == 1 and truth.labels.ndim == 1:
        if len(values) > 2:
            raise DataError(
                f"{parts[0].path}: one column of scores, but {len(values)} different labels in {truth.path}; write one "
                "column of scores for each class"
            )
        if text:
            raise DataError(
                f"{truth.path}: the labels are {' and '.join(values.tolist())}, and one column of scores does not say "
                "of which; add --classes NEGATIVE,POSITIVE"
            )
        return ("0", "1")
    if named:
        return columns
    if text:
        some = ", ".join(values.tolist()[:MAX_NAMED])
        raise DataError(
            f"{truth.path}: the labels are names ({some}), the scores are numbered; add --classes with the names in "
            "the order of the columns"
        )
    return tuple(map(str, range(width)))


def _numbered(labels: Array, names: tuple[str, ...], path: Path, notes: list[str]) -> Array:
    """Labels as class numbers."""
    if labels.dtype.kind == "U":
        index = {plain(name): i for i, name in enumerate(names)}
        unknown = sorted({v for v in np.unique(labels).tolist() if plain(v) not in index})
        if unknown:
            close = nearest(unknown[0], names)
            raise DataError(f"{path}: label {unknown[0]!r} has no column of scores{close}; they are {', '.join(names)}")
        return np.array([index[plain(v)] for v in labels.reshape(-1).tolist()]).reshape(labels.shape)
    _refuse_no_classes(labels, path)
    whole = labels.astype(np.int64)
    if labels.ndim == 2:
        if not np.isin(whole, (0, 1)).all():
            raise DataError(f"{path}: labels of a multi-label task are 0 or 1, not {whole.max()}")
        return whole
    if set(np.unique(whole).tolist()) == {-1, 1} and len(names) == 2:
        notes.append(f"{path.name}: labels -1 and 1 are taken as 0 and 1")
        return (whole + 1) // 2
    if whole.min() == 1 and whole.max() == len(names):
        notes.append(f"{path.name}: labels 1 to {len(names)} are taken as the classes {names[0]} to {names[-1]}")
        return whole - 1
    if whole.min() < 0 or whole.max() >= len(names):
        raise DataError(f"{path}: labels go from {whole.min()} to {whole.max()}, but there are scores of {len(names)} "
                        f"classes; they should go from 0 to {len(names) - 1}")  # fmt: skip
    return whole


def _refuse_no_classes(labels: Array, path: Path) -> None:
    if not np.isfinite(labels).all():
        rows = int((~np.isfinite(labels)).reshape(len(labels), -1).any(1).sum())
        raise DataError(f"{path}: {counted(rows, 'image')} without a label; leave them out of all files")
    if (labels != np.round(labels)).any():
        raise DataError(
            f"{path}: label {labels[labels != np.round(labels)][0]:g} is not a whole number; write class numbers"
        )


def _refuse_one_class(labels: Array, names: tuple[str, ...], path: Path) -> None:
    """An AUC needs images of two classes, or of one label with and without it."""
    if labels.ndim == 1 and labels.min() == labels.max():
        raise DataError(f"{path}: all {len(labels):,} images have the label {names[labels[0]]}; two classes are needed")
    if labels.ndim == 2 and (labels.min(0) == labels.max(0)).all():
        raise DataError(f"{path}: no label has images with it and images without it; an AUC needs both")


def _same_labels(part: Predictions, order: Array, labels: Array, names: tuple[str, ...], truth: Truth) -> None:
    assert part.labels is not None
    own = _numbered(part.labels, names, part.path, [])[order]
    if own.shape != labels.shape:
        raise DataError(f"{part.path}: labels of shape {own.shape}, in {truth.path} {labels.shape}")
    apart = np.flatnonzero((own != labels).reshape(len(own), -1).any(1))
    if len(apart):
        which = truth.ids[apart[0]] if truth.ids is not None else f"row {apart[0]}"
        raise DataError(
            f"{part.path}: {len(apart):,} of {len(own):,} labels differ from those in {truth.path}, first that of "
            f"{which}; the files are of different test sets, or their images are in another order"
        )


# --- probabilities ---------------------------------------------------------------------------------------------


def probabilities(part: Predictions, scores: Array, names: tuple[str, ...], task: str, notes: list[str]) -> Array:
    """Scores as probabilities (N, C) in the order of ``names``, float64.

    Raises:
        DataError: a score is not a number, or they are neither probabilities nor logits.
    """
    who = f"{part.path}" + (f" ({part.model}, seed {part.seed})" if part.model else "")
    if not np.isfinite(scores).all():
        rows = np.flatnonzero(~np.isfinite(scores).all(1))
        raise DataError(f"{who}: {counted(len(rows), 'image')} without a finite score, first in row {rows[0]}")
    scores = _ordered(part, scores, names, who)
    _refuse_percent(scores, who)
    shares = bool(((scores >= 0) & (scores <= 1)).all())
    if scores.shape[1] == 1 or task == LABELS:
        if not shares:
            from scipy.special import expit

            notes.append(f"{part.path.name}: scores beyond 0 and 1 are taken as log-odds")
            scores = expit(scores)
        return np.column_stack([1 - scores[:, 0], scores[:, 0]]) if scores.shape[1] == 1 and task != LABELS else scores
    if not shares:
        from scipy.special import softmax

        notes.append(f"{part.path.name}: scores beyond 0 and 1 are taken as logits (softmax in double precision)")
        return np.asarray(softmax(scores, axis=1))
    off = np.abs(scores.sum(1) - 1)
    if off.max() > SUM_TOLERANCE:
        row = int(off.argmax())
        raise DataError(
            f"{who}: {counted(int((off > SUM_TOLERANCE).sum()), 'image')} with probabilities that do not add up to one "
            f"(row {row}: {scores[row].sum():.4g}); give softmax probabilities or logits"
        )
    return scores


def _refuse_percent(scores: Array, who: str) -> None:
    """Refuse 0 to 100: as log-odds or logits most of them would be the same probability."""
    percent = scores.min() >= 0 and LARGEST_LOGIT < scores.max() <= 100
    if percent and (scores.shape[1] == 1 or np.abs(scores.sum(1) - 100).max() <= 1):
        raise DataError(
            f"{who}: scores from {scores.min():.4g} to {scores.max():.4g} look like percent; divide them by 100"
        )


def _ordered(part: Predictions, scores: Array, names: tuple[str, ...], who: str) -> Array:
    """Columns in the order of the classes, where they carry names."""
    if all(column.isdecimal() for column in part.columns) or len(part.columns) == 1:
        return scores
    at = {plain(column): i for i, column in enumerate(part.columns)}
    missing = [name for name in names if plain(name) not in at]
    if missing:
        raise DataError(f"{who}: no column of scores for the class {missing[0]!r}; it has {', '.join(part.columns)}")
    return scores[:, [at[plain(name)] for name in names]]
