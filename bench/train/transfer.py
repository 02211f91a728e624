"""Execute a transfer Cell: trained weights on the test split of another dataset, over the shared classes.

The scores of a shared class are the sum of its source classes' probabilities, renormalised over all shared classes
(for a multi-label task each label stands for itself: the largest of its source labels). Images whose class is in no
shared class are left out. The source's own test scores, written when it was trained, are read the same way, so that the
drop compares one question on two datasets.
"""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import numpy as np

from bench import registry
from bench.data.cache import open_entry
from bench.metrics.classification import classification_metrics
from bench.metrics.one_vs_rest import Array
from bench.record.cells import Context, Result, SharedClass, TransferCell
from bench.record.paths import predictions_path, record_path
from bench.record.types import Fields
from bench.registry import DatasetInfo, positive_of
from bench.train import weights
from bench.train.accuracy import build_model, pipeline, set_up, storable
from bench.train.loop import scores_of

COMPARED = ("acc", "auc", "balanced_acc")


def run_transfer(cell: TransferCell, ctx: Context) -> Result:
    """Evaluate one Cell.

    Returns:
        ``test_*`` metrics on the target, ``source_test_*`` on the source's test split over the same classes, ``drop_*``
        (source less target), ``n_test`` and ``n_left_out`` images; scores and labels of the target as arrays.

    Raises:
        FileNotFoundError, ValueError: the source's weights or scores are missing, damaged or another Cell's.
        DataError: a file of the target is missing or damaged.
    """
    device = set_up(ctx)
    timings: dict[str, float] = {}
    ctx.progress({"phase": "load"})
    started = time.perf_counter()
    source, target = registry.dataset_info(cell.source.dataset), registry.dataset_info(cell.dataset)
    state = weights.load(ctx.out, cell.source_key)
    own_scores, own_labels = _own_scores(ctx.out, cell.source_key)
    entry = open_entry(
        target, cell.size, ctx.data_root, ctx.cache_dir,
        resize=cell.resize, progress=ctx.progress, fingerprint=cell.data_fingerprint,
    )  # fmt: skip
    split = entry.splits["test"]
    timings["load_s"] = time.perf_counter() - started
    ctx.progress({"phase": "eval"})
    started = time.perf_counter()
    model, channels_last = build_model(cell.source, source, device, pretrained=False)
    model.load_state_dict(state)
    reader = pipeline(split, cell.source, target, cell.resize, device, channels_last, cell.source.recipe)
    scores = scores_of(model, reader, source.task, cell.source.precision)
    timings["test_s"] = time.perf_counter() - started
    if not np.isfinite(scores).all():
        return Result({}, "diverged", f"scores of {cell.dataset} are not finite", timings=timings)
    metrics, arrays = _compared(cell, source, target, (own_labels, own_scores), (split.labels[:], scores))
    return Result(metrics, arrays=arrays, timings=timings)


def _own_scores(out: Path, key: str) -> tuple[Array, Array]:
    path = predictions_path(out, key)
    try:
        with np.load(path, allow_pickle=False) as stored:
            return stored["test_scores"], stored["test_labels"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        record = record_path(out, key)
        raise ValueError(f"{path}: no scores of the source ({error}); remove {record} and run again") from error


def _compared(
    cell: TransferCell, source: DatasetInfo, target: DatasetInfo, own: tuple[Array, Array], other: tuple[Array, Array]
) -> tuple[Fields, dict[str, Array]]:
    """Score both test splits over the shared classes."""
    task = shared_task(source, target, cell.shared_classes)
    answers = [shared.source for shared in cell.shared_classes]
    labels, scores = over_shared_classes(*other, answers, [m.target for m in cell.shared_classes], source, target)
    own_labels, own_scores = over_shared_classes(*own, answers, answers, source, source)
    if not len(labels):
        raise ValueError(f"no test image of {target.name} is of a class that meets one of {source.name}")
    names = [shared.name for shared in cell.shared_classes]
    declared = next((shared.name for shared in cell.shared_classes if source.positive in shared.source), "")
    positive = positive_of(task, names, declared)
    at = positive.number if positive else 1
    found = classification_metrics(labels, scores, task, at)
    found["loss"] = found.pop("nll")
    reference = classification_metrics(own_labels, own_scores, task, at)
    metrics = {f"test_{name}": storable(value) for name, value in found.items()}
    for name in COMPARED:
        metrics[f"source_test_{name}"] = storable(reference[name])
        metrics[f"drop_{name}"] = storable(reference[name] - found[name])
    metrics |= {"n_test": len(labels), "n_left_out": len(other[0]) - len(labels), "task": task}
    metrics["classes"] = names
    if positive:
        metrics |= {"positive_class": positive.name, "positive_class_guessed": positive.guessed}
    return metrics, {"test_scores": scores, "test_labels": labels}


def shared_task(source: DatasetInfo, target: DatasetInfo, shared_classes: tuple[SharedClass, ...]) -> str:
    """How the shared classes are scored: two are a binary question, whatever the sets were."""
    if source.task == "multi-label":
        return "multi-label"
    if len(shared_classes) == 2:
        return "binary-class"
    ordered = source.task == target.task == "ordinal-regression"
    rising = [target.classes.index(shared.target[0]) for shared in shared_classes]
    return "ordinal-regression" if ordered and rising == sorted(rising) else "multi-class"


def over_shared_classes(
    labels: Array,
    scores: Array,
    answers: list[tuple[str, ...]],
    truths: list[tuple[str, ...]],
    answered: DatasetInfo,
    labelled: DatasetInfo,
) -> tuple[Array, Array]:
    """Translate labels and scores into shared classes.

    Args:
        labels: (N,) class indices of ``labelled``, or (N, L).
        scores: (N, C) probabilities over the classes of ``answered``.
        answers: the classes of ``answered`` of each of the M shared classes.
        truths: the classes of ``labelled`` of each shared class.
        answered: the dataset that the model was trained on.
        labelled: the dataset that the labels are of.

    Returns:
        labels (n,) or (n, M) and scores (n, M) of the n images whose class is a shared class.
    """
    columns = [[answered.classes.index(name) for name in names] for names in answers]
    rows = [[labelled.classes.index(name) for name in names] for names in truths]
    if answered.task == "multi-label":
        return (
            np.stack([labels[:, places].max(axis=1) for places in rows], axis=1),
            np.stack([scores[:, places].max(axis=1) for places in columns], axis=1),
        )
    place = np.full(len(labelled.classes), -1, dtype=np.int64)
    for number, classes in enumerate(rows):
        place[classes] = number
    translated = place[labels.reshape(-1)]
    kept = translated >= 0
    summed = np.stack([scores[kept][:, places].sum(axis=1) for places in columns], axis=1)
    total = summed.sum(axis=1, keepdims=True)
    # No answer at all for the shared classes: every one is as good as another.
    even = np.full_like(summed, 1 / len(columns))
    return translated[kept], np.divide(summed, total, out=even, where=total > 0)
