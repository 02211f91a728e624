"""What of a Plan is done, by the Records on disk, and the jobs of the rest. Torch-free."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.deploy.kept import note_unasked, unasked
from bench.plan import class_maps
from bench.plan.base import Plan
from bench.record import store
from bench.record.cells import AccuracyCell, Cell, EfficiencyCell, Result, needs
from bench.registry import counted
from bench.runner.done import Done
from bench.runner.executors.base import Finished, Job
from bench.runner.jobs import combined, make_jobs, write_finished
from bench.sweep.config import Loaded


def find_pending(loaded: Loaded, plan: Plan, out: Path, note: Callable[[str], None]) -> tuple[Done, list[Job]]:
    """Read what is on disk, write what needs no worker, and line up the jobs of the rest.

    Args:
        loaded: the sweep.
        plan: what it means.
        out: the run directory.
        note: called with lines for people.

    Returns:
        What is done, and the jobs of the rest in their order.

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
        if state.status in retry
        or (state.noisy and "noisy" in retry)
        or (state.status == "unsupported" and key not in plan.unsupported)
    }
    # A trial that runs again may change what it decides about.
    tuned = {key: cell for key, cell in plan.cells.items() if isinstance(cell, AccuracyCell) and key in found}
    again |= {key for key, cell in tuned.items() if set(needs(cell)) & again}
    kept = class_maps.kept_weights(plan.cells, found.keys() - again, loaded.sweep.run.keep_weights is True)
    finished = {key for key in plan.cells if key in found and found[key].status == "ok"}
    if bare := class_maps.to_train_again(finished, kept, out):
        note(f"{counted(len(bare), 'cell')} will be trained again: weights are needed and were not kept")
        again |= set(bare)
    done = Done(
        out,
        {key: state.status for key, state in found.items() if key not in again},
        {key: found[key].stamp for key in again},
    )
    done.found = len(done.statuses.keys() & plan.cells.keys())
    rest = _without_worker(plan, done)
    more = unasked(plan, kept, rest, loaded.sweep.run.keep_weights)
    note_unasked(out, more, kept)
    return done, list(make_jobs(loaded, plan, out, rest, kept | more))


def _without_worker(plan: Plan, done: Done) -> dict[str, Cell]:
    """Write the Records of Cells that no worker is needed for; return the others."""
    environment = {"device": plan.device, "threads": plan.threads}
    rest: dict[str, Cell] = {}
    for key, cell in plan.cells.items():
        if key in done.statuses:
            continue
        if reason := plan.unsupported.get(key):
            finished = Finished(Result({}, "unsupported", reason), environment, 0.0)
            done.add(write_finished(done.out, key, cell, finished))
        # killed between the last round and the Record
        elif isinstance(cell, EfficiencyCell) and (record := combined(done.out, key, cell)):
            done.add(record)
        else:
            rest[key] = cell
    return rest
