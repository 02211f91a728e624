"""Which trained weights stay: those that were asked for, and those of recommended models; the others go at the end.

Until then all are kept, since the recommendation is known only from the results. ``RUN/weights/unasked.json`` lists the
Cells whose weights nobody asked for, so that a later command into the same directory can choose again.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Collection
from pathlib import Path

from bench.deploy.which import recommended
from bench.plan.class_maps import keeps_weights
from bench.plan.estimate import size, weights_bytes
from bench.plan.plan import Plan
from bench.record.cells import AccuracyCell, TrialCell
from bench.record.paths import record_path, weights_path
from bench.record.store import write_json
from bench.report.recommend import Limits, RecommendError
from bench.report.standings import ReportData
from bench.report.words import listed

MOST_BYTES = 10 << 30  # of all weights of a run, beyond which none are kept unasked


def unasked(plan: Plan, asked: Collection[str], pending: Collection[str], rule: bool | str) -> set[str]:
    """Keys of trainings whose weights are kept until the run ends although nobody asked for them.

    Trials are among them: the best one is the training of the Cell that it decides about.
    """
    if not rule:
        return set()
    found = {
        k: c
        for k, c in plan.cells.items()
        if k in pending and isinstance(c, AccuracyCell) and (keeps_weights(c) or isinstance(c, TrialCell))
    }
    few = sum(map(weights_bytes, found.values())) <= MOST_BYTES
    return set(found) - set(asked) if few else set()


def note_unasked(out: Path, keys: Collection[str], asked: Collection[str]) -> None:
    """Remember them in the run directory, beside those of earlier commands; what is asked for now is so no longer."""
    before = _listed(out)
    after = sorted((before | set(keys)) - set(asked))
    if after != sorted(before):
        write_json(_list(out), after)


def keep_recommended(out: Path, report: ReportData, limits: Limits | None = None) -> str:
    """Remove the weights that nobody asked for, but those of the model that each board recommends under ``limits``.

    Returns:
        A line for people, or "".
    """
    keys = {key for key in _listed(out) if weights_path(out, key).is_file() and record_path(out, key).is_file()}
    if not keys:
        return ""
    stay: dict[str, str] = {}  # key -> dataset
    models: dict[str, None] = {}
    for board in report.boards:
        with contextlib.suppress(RecommendError):
            found, records = recommended(report, [board], limits)
            own = {r["key"]: str(r["spec"]["dataset"]) for r in records if r["key"] in keys}
            stay |= own
            models |= {str(found.model): None} if own else {}
    for key in keys - stay.keys():
        weights_path(out, key).unlink(missing_ok=True)
    if not stay:
        return ""
    taken = sum(weights_path(out, key).stat().st_size for key in stay)
    cells, datasets = f"{len(stay)} cell{'s' * (len(stay) > 1)}", sorted(set(stay.values()))
    which = f" --dataset {shlex.quote(datasets[0])}" if len(datasets) > 1 else ""
    following = f"bench export-model {shlex.quote(str(out))}{which}"
    return f"Weights of {listed(models)} are kept ({cells}, {size(taken)}; --keep-weights: all). Next: {following}"


def _list(out: Path) -> Path:
    return weights_path(out, "").parent / "unasked.json"


def _listed(out: Path) -> set[str]:
    try:
        return set(json.loads(_list(out).read_bytes()))
    except (OSError, ValueError):
        return set()
