"""Cells -> jobs for workers, and what workers give back -> Records. Torch-free.

Efficiency Cells are cut into rounds, whose raw samples wait in ``rounds/`` until the last is done.
"""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from bench import registry
from bench.measure.aggregate import combine
from bench.plan.base import Plan
from bench.plan.estimate import HEAD_S, estimate_s
from bench.record import store
from bench.record.cells import AccuracyCell, Cell, EfficiencyCell, Result, cell_key, cell_label, features_key
from bench.record.paths import checkpoint_path, record_path, round_path, rounds_folder
from bench.record.store import Record
from bench.record.types import Fields
from bench.runner.executors.base import Finished, Job
from bench.sweep.config import Loaded

KEEPS_CHECKPOINT = ("failed", "timeout", "oom")  # statuses after which the same Cell may go on from its checkpoint


def make_jobs(
    loaded: Loaded, plan: Plan, out: Path, pending: Mapping[str, Cell], kept: Collection[str] = ()
) -> Iterator[Job]:
    """Yield the jobs of ``pending`` in their order: rounds of efficiency Cells, interleaved, then all other Cells.

    Args:
        loaded: the sweep.
        plan: what it means.
        out: the run directory.
        pending: key -> Cell, of those to run.
        kept: keys of Cells whose weights are kept.
    """
    common: Fields = {
        "device": plan.device,
        "threads": plan.threads,
        "data_root": plan.data_root.resolve() if plan.data_root else None,
        "out": out.resolve(),
        "plugins": tuple(loaded.sweep.plugins),
        "plugin_base": loaded.base,
        "time_limit_s": loaded.sweep.run.timeout_s,
    }
    timed = {key: cell for key, cell in pending.items() if isinstance(cell, EfficiencyCell)}
    for number in range(max((cell.rounds for cell in timed.values()), default=0)):
        # Every other round backwards: else a model always follows the same neighbour, and its heat shows in no spread.
        order = list(timed.items())[:: -1 if number % 2 else 1]
        for key, cell in order:
            if number < cell.rounds and read_round(out, key, number) is None:
                yield Job(key, cell, number, **common)
    for key, cells in _gathered(pending).items():
        limit = common["time_limit_s"] and common["time_limit_s"] * len(cells)
        given = {**common, "time_limit_s": limit, "more": tuple(cells[:-1])}
        yield Job(key, cells[-1], None, **given, keep_weights=any(cell_key(cell) in kept for cell in cells))


def _gathered(pending: Mapping[str, Cell]) -> dict[str, list[Cell]]:
    """The Cells but efficiency ones, by the key of each job's last: frozen Cells of the same features are one job."""
    groups: dict[str, list[str]] = {}
    for key, cell in pending.items():
        if isinstance(cell, AccuracyCell) and cell.track == "frozen":
            groups.setdefault(features_key(cell), []).append(key)
        elif not isinstance(cell, EfficiencyCell):
            groups[key] = [key]
    return {keys[-1]: [pending[key] for key in keys] for keys in groups.values()}


def job_label(job: Job) -> str:
    """One line for people: what the job does."""
    if job.more:
        return f"{cell_label(job.cell)} and {len(job.more)} more of these features"
    return cell_label(job.cell) + (f", round {job.round + 1}" if job.round is not None else "")


def job_estimate_s(job: Job) -> float:
    """The seconds a job will take, roughly."""
    seconds = estimate_s(job.cell, job.threads, job.device) + HEAD_S * len(job.more)
    return seconds / job.cell.rounds if isinstance(job.cell, EfficiencyCell) else seconds


# --- rounds ----------------------------------------------------------------------------------------------------------


def read_round(out: Path, key: str, number: int) -> Fields | None:
    """Read a round that this machine measured; None if there is none, or it is torn, or another machine's.

    The difference between the rounds of a Cell is its noise: rounds of two machines would show theirs instead.
    """
    try:
        entry = dict(json.loads(round_path(out, key, number).read_bytes()))
    except (FileNotFoundError, ValueError):
        return None
    return entry if entry.get("host", platform.node()) == platform.node() else None


def combined(out: Path, key: str, cell: EfficiencyCell) -> Record | None:
    """Write the Record of a Cell whose rounds are all there; None while one is missing."""
    rounds = [read_round(out, key, number) for number in range(cell.rounds)]
    complete = [item for item in rounds if item is not None]
    if len(complete) < cell.rounds:
        return None
    result = Result(combine([item["metrics"] for item in complete]))
    seconds = sum(item["seconds"] for item in complete)
    return write_finished(out, key, cell, Finished(result, complete[0]["environment"], seconds))


# --- Records ---------------------------------------------------------------------------------------------------------


def write_outcome(out: Path, job: Job, finished: Finished) -> Record | None:
    """Put a job's outcome on disk; return the Cell's Record if this job completes it.

    Raises:
        StoreError: the run directory cannot be written.
    """
    if job.round is None or finished.result.status != "ok":
        return write_finished(out, job.key, job.cell, finished)
    assert isinstance(job.cell, EfficiencyCell)
    entry = {
        "metrics": finished.result.metrics,
        "environment": finished.environment,
        "seconds": finished.seconds,
        "host": platform.node(),
    }
    store.write_json(round_path(out, job.key, job.round), entry)
    return combined(out, job.key, job.cell)


def write_finished(out: Path, key: str, cell: Cell, finished: Finished) -> Record:
    """Write a Cell's Record, and clear away what was kept for the case of its interruption.

    A Cell that had a result and ran again only for its weights keeps that result if it fails now.
    """
    result = finished.result
    if result.status != "ok" and (before := _result_of(out, key)):
        return before
    metrics = dict(result.metrics)
    record: Record = {
        "schema": store.SCHEMA,
        "key": key,
        "kind": cell.kind,
        "status": result.status,
        "reason": result.reason,
        "family": registry.family_of(cell.model),
        "spec": store.plain(cell.spec()),
        "log_tail": metrics.pop("log_tail", []),
        "metrics": {},
        "environment": finished.environment,
        "timings": {"wall_s": round(finished.seconds, 3), **store.plain(result.timings)},
    }
    if "data" in metrics:
        record["data"] = store.plain(metrics.pop("data"))
    record["metrics"] = store.plain(metrics)
    store.write_record(out, record, result.arrays, result.history)
    shutil.rmtree(rounds_folder(out, key), ignore_errors=True)
    if result.status not in KEEPS_CHECKPOINT:
        with contextlib.suppress(OSError):
            checkpoint_path(out, key).unlink(missing_ok=True)
    return record


def _result_of(out: Path, key: str) -> Record | None:
    """The Record of a Cell that has a result."""
    try:
        record = store.read_record(record_path(out, key))
    except store.StoreError:
        return None
    return record if record["status"] == "ok" else None


def run_info(loaded: Loaded, plan: Plan, command: str, before: Fields) -> Fields:
    """What is written to ``run.json``: what was asked, by all commands that ran into this directory.

    Its paths are absolute, or relative to its ``folder``, so that it can be read from anywhere.
    """
    sweep = loaded.sweep.model_dump(mode="json")
    sweep["run"]["data_root"] = str(plan.data_root.resolve()) if plan.data_root else None
    sweep["plugins"] = [str(loaded.base / name) if name.endswith(".py") else name for name in loaded.sweep.plugins]
    commands = [*str(before.get("command", "")).splitlines(), command]
    return {
        "schema": store.SCHEMA,
        "command": "\n".join(dict.fromkeys(filter(None, commands))),
        "preset": loaded.sweep.sweep.preset,
        "date": time.strftime("%Y-%m-%d"),
        "folder": str(Path.cwd()),
        "plugin_base": str(loaded.base),
        "sweep": sweep,
        "skipped": plan.skipped,
        "datasets": {**_mapping(before.get("datasets")), **about_datasets(plan)},
        "planned": {**_mapping(before.get("planned")), command: sorted(plan.cells)},
    }


ABOUT = (
    "task", "classes", "channels", "modality", "licence", "citation", "source", "n_train", "n_val", "n_test",
    "mirror_safe", "traps",
)  # fmt: skip


def about_datasets(plan: Plan) -> dict[str, Fields]:
    """What is known of each dataset of a plan, for those who read its scores: traps, task, classes, licence."""
    names = {str(cell.dataset) for cell in plan.cells.values() if not isinstance(cell, EfficiencyCell)}
    infos = {dataset: registry.dataset_info(dataset) for dataset in sorted(names)}
    return {dataset: {field: getattr(info, field) for field in ABOUT} for dataset, info in infos.items()}


def _mapping(value: object) -> Fields:
    return value if isinstance(value, dict) else {}
