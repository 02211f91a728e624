"""Foreign scores as an ordinary run directory: a Record of kind accuracy and the scores of each model and seed."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.errors import StoreError
from bench.machine.versions import VERSION, library_versions
from bench.metrics.classification import classification_metrics
from bench.metrics.one_vs_rest import Array
from bench.metrics.registry import definitions
from bench.record import store
from bench.record.cells import spec_key
from bench.record.paths import predictions_path, record_path, run_file
from bench.record.types import Fields, Record
from bench.registry import positive_of
from bench.report.words import counted
from bench.score.align import Scored, TestSet

RECIPE = "trained elsewhere"  # the recipe of a Record whose training medbench has not seen
LIBRARIES = ("medbench", "numpy", "scipy", "scikit-learn")


def fingerprint_of(labels: Array, ids: Array | None) -> str:
    """Digest of labels (N,) or (N, L) and ids (N,) or None: two files are of one test set where it is equal."""
    digest = hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    if ids is not None:
        digest.update("\n".join(ids.tolist()).encode())
    return f"scores:{digest.hexdigest()[:32]}"


def record_of(dataset: str, found: TestSet, scored: Scored, fingerprint: str) -> tuple[Record, dict[str, Array]]:
    """The Record of one model and seed, and the arrays beside it."""
    positive = positive_of(found.task, found.classes, found.positive)
    figures = classification_metrics(found.labels, scored.scores, found.task, positive.number if positive else 1)
    figures["loss"] = figures.pop("nll")
    metrics: Fields = {f"test_{name}": _storable(value) for name, value in figures.items()}
    metrics |= definitions()
    metrics |= {"classes": list(found.classes), "scores_file": scored.path.name, "scores_sha256": digest(scored.scores)}
    if positive:
        metrics |= {"positive_class": positive.name, "positive_class_guessed": positive.guessed}
    spec = {  # what is known of the training is its model and seed
        "model": scored.model, "dataset": dataset, "seed": scored.seed, "size": 0, "resolution": 0, "resize": "",
        "recipe": RECIPE, "recipe_settings": {}, "precision": "", "data_fingerprint": fingerprint,
    }  # fmt: skip
    record: Record = {
        "schema": store.SCHEMA, "key": spec_key("accuracy", spec), "kind": "accuracy", "status": "ok", "reason": "",
        "family": scored.model, "spec": spec, "metrics": metrics,
        "environment": {"device": "elsewhere", "scored_by": VERSION, "versions": library_versions(LIBRARIES)},
    }  # fmt: skip
    arrays: dict[str, Array] = {"test_scores": scored.scores, "test_labels": found.labels}
    for name, values in (("test_names", found.ids), ("test_patients", found.patients)):
        if values is not None:
            arrays[name] = values
    return record, arrays | {f"test_group_{name}": values for name, values in found.groups.items()}


def write_run(out: Path, dataset: str, found: TestSet, command: str) -> list[str]:
    """Write Records and scores into a run directory; what it holds of this dataset is replaced, others stay.

    Returns:
        The keys of the Records.

    Raises:
        StoreError: ``out`` cannot be written, or holds a run of `bench run`.
    """
    if run_file(out).is_file() and not store.read_run(out).get("scored"):
        raise StoreError(f"{out} is a run of `bench run`; scores of others go into a directory of their own (--out)")
    store.prepare(out)
    fingerprint = fingerprint_of(found.labels, found.ids)
    keys = []
    for scored in found.models:
        record, arrays = record_of(dataset, found, scored, fingerprint)
        store.write_record(out, record, arrays)
        keys.append(record["key"])
    _remove_earlier(out, dataset, keys, found.notes)
    info = {"schema": store.SCHEMA, "command": command, "preset": None, "scored": True, "notes": found.notes}
    store.write_json(run_file(out), info)
    return keys


def _remove_earlier(out: Path, dataset: str, keys: Sequence[str], notes: list[str]) -> None:
    """Remove what an earlier `bench score` of this dataset left: its models were not asked for now."""
    gone = [r["key"] for r in store.read_records(out)[0] if r["spec"]["dataset"] == dataset and r["key"] not in keys]
    for key in gone:
        record_path(out, key).unlink(missing_ok=True)
        predictions_path(out, key).unlink(missing_ok=True)
    if gone:
        notes.append(f"removed from {out}: {counted(len(gone), 'earlier result')} on {dataset}; other datasets stay")


def digest(scores: Array) -> str:
    """SHA-256 of scores as little-endian float64."""
    return hashlib.sha256(np.ascontiguousarray(scores, dtype="<f8").tobytes()).hexdigest()


def _storable(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
