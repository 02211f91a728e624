"""Our own trainings among foreign scores: paired on the same test images, on one board.

Their protocols differ from the foreign ones and from each other; a board of scores compares predictions, not recipes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.errors import DataError
from bench.metrics.one_vs_rest import Array
from bench.record import store
from bench.record.paths import predictions_path, require_run
from bench.record.types import Spec
from bench.report.evidence import UNREADABLE, read_saved
from bench.score.align import Scored, TestSet


def add_runs(found: TestSet, dataset: str, runs: Sequence[Path]) -> str:
    """Add the models of ``runs`` that were tested on these images; return the name of the dataset.

    Images are matched by id where both sides have ids, else by order where all labels agree.

    Raises:
        DataError: a run has no scores of this test set; says which it has.
        StoreError: a folder is not a run directory.
    """
    foreign = {scored.model for scored in found.models}
    for run in runs:
        require_run(run)
        records, _ = store.read_records(run)
        added, others = 0, set()
        for record in sorted(records, key=lambda r: (str(r["spec"].get("model")), r["spec"].get("seed") or 0)):
            if record["kind"] != "accuracy" or record["status"] != "ok":
                continue
            scores = _matched(found, predictions_path(run, record["key"]))
            if scores is None:
                others.add(str(record["spec"]["dataset"]))
                continue
            spec = record["spec"]
            if dataset == "scores":
                dataset = str(spec["dataset"])
            name = f"{spec['model']} ({run.name}{_pixels(records, spec)})"
            found.models.append(Scored(name, int(spec.get("seed") or 0), scores, predictions_path(run, record["key"])))
            added += 1
        if not added:
            have = f"; it has {', '.join(sorted(others))}" if others else ""
            raise DataError(f"{run}: no saved scores of these {len(found.labels):,} test images{have}")
        names = {s.model for s in found.models} - foreign
        found.notes.append(
            f"{run}: {len(names)} models, {added} trainings on the same test images; their protocol is not that of the "
            "other files"
        )
    return dataset


def _pixels(records: Sequence[store.Record], spec: Spec) -> str:
    """The resolution and recipe, where a model of the run was trained in several ways."""
    fields = ("size", "resolution", "resize", "recipe", "precision", "track")
    same = [r["spec"] for r in records if r["kind"] == "accuracy" and r["spec"]["model"] == spec["model"]
            and r["spec"]["dataset"] == spec["dataset"]]  # fmt: skip
    apart = [f for f in fields if len({str(s.get(f)) for s in same}) > 1]
    return "".join(f", {spec.get(f)}" for f in apart)


def _matched(found: TestSet, path: Path) -> Array | None:
    """Scores of a Record in the order of the test set; None if it is another test set or nothing is saved."""
    try:
        saved = read_saved(path)
    except UNREADABLE:
        return None
    scores, labels, names = saved.scores.astype(np.float64), saved.labels, saved.names
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if scores.shape[1:] == (1,):
        scores = np.column_stack([1 - scores[:, 0], scores[:, 0]])
    if labels.shape != found.labels.shape or scores.shape[1] != found.models[0].scores.shape[1]:
        return None
    if names is not None and found.ids is not None and set(names.tolist()) == set(found.ids.tolist()):
        position = {name: i for i, name in enumerate(names.tolist())}
        order = np.array([position[name] for name in found.ids.tolist()])
        scores, labels = scores[order], labels[order]
    return scores if np.array_equal(labels, found.labels) else None
