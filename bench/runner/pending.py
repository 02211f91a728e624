"""What of a Plan is done, by the Records on disk, and the jobs of the rest. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.plan import class_maps
from bench.plan.base import Plan
from bench.record import store
from bench.record.cells import Cell, EfficiencyCell, Result
from bench.record.store import Record, Stamp
from bench.runner.executors.base import Finished, Job
from bench.runner.jobs import combined, make_jobs, write_finished
from bench.sweep.config import Loaded


@dataclass(slots=True)
class Todo:
    """What there is to do.

    Attributes:
        statuses: key -> status of what is done, Cells of other sweeps in the same directory included.
        stamps: key -> stamp of Records that are there and are to be replaced.
        jobs: what has to run, in its order.
        written: Records that needed no worker and were written now.
        found: how many of the Plan's Cells were done before.
    """

    statuses: dict[str, str]
    stamps: dict[str, Stamp]
    jobs: list[Job] = field(default_factory=list)
    written: list[Record] = field(default_factory=list)
    found: int = 0

    def add(self, record: Record) -> None:
        """Note a Record that was written now."""
        self.statuses[record["key"]] = record["status"]
        self.written.append(record)


def find_todo(loaded: Loaded, plan: Plan, out: Path, note: Callable[[str], None]) -> Todo:
    """Read what is on disk, write what needs no worker, and line up the jobs of the rest.

    Args:
        loaded: the sweep.
        plan: what it means.
        out: the run directory.
        note: called with lines for people.

    Raises:
        StoreError: the run directory cannot be written, or holds Records of another version.
    """
    found, problems = store.read_states(out)
    for line in store.set_aside(out, problems):
        note(line)
    retry = set(loaded.sweep.run.retry)
    # What could not run once and can run now, after an upgrade, is no longer done.
    again = {
        key
        for key, state in found.items()
        if state.status in retry or (state.status == "unsupported" and key not in plan.unsupported)
    }
    kept = class_maps.kept_weights(plan.cells, found.keys() - again, loaded.sweep.run.keep_weights)
    finished = {key for key in plan.cells if key in found and found[key].status == "ok"}
    if bare := class_maps.to_train_again(finished, kept, out):
        note(f"{len(bare)} cells are trained again: their weights are needed and were not kept")
        again |= set(bare)
    todo = Todo(
        {key: state.status for key, state in found.items() if key not in again},
        {key: found[key].stamp for key in again},
    )
    todo.found = len(todo.statuses.keys() & plan.cells.keys())
    todo.jobs = list(make_jobs(loaded, plan, out, _without_worker(plan, out, todo), kept))
    return todo


def _without_worker(plan: Plan, out: Path, todo: Todo) -> dict[str, Cell]:
    """Write the Records of Cells that no worker is needed for; return the others."""
    environment = {"device": plan.device, "threads": plan.threads}
    rest: dict[str, Cell] = {}
    for key, cell in plan.cells.items():
        if key in todo.statuses:
            continue
        if reason := plan.unsupported.get(key):
            finished = Finished(Result({}, "unsupported", reason), environment, 0.0)
            todo.add(write_finished(out, key, cell, finished))
        # killed between the last round and the Record
        elif isinstance(cell, EfficiencyCell) and (record := combined(out, key, cell)):
            todo.add(record)
        else:
            rest[key] = cell
    return rest
