"""Executes a Plan: leases Cells, gives them to an executor, writes a Record as each ends; resumed by running again.

The driver alone writes Records; it sleeps until a worker speaks or dies. Efficiency Cells come first, in rounds
interleaved over all of them, so that a drift of the machine hits all models alike, and with nothing beside them.
Several drivers may work on one run directory, on one machine or many (:mod:`bench.runner.leases`).
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.plan.base import Plan
from bench.plan.estimate import HEAD_S
from bench.record import store
from bench.record.cells import Cell, Result, cell_key, never
from bench.record.files import clear_abandoned
from bench.record.paths import run_file
from bench.record.store import Record, StoreError
from bench.runner.done import Done
from bench.runner.executors.base import Event, Executor, Finished, Job
from bench.runner.interrupts import GRACE_S, Interrupts
from bench.runner.jobs import job_estimate_s, job_label, run_info
from bench.runner.leases import Leases
from bench.runner.pending import find_pending
from bench.runner.progress import Observer
from bench.runner.schedule import POLL_S, Schedule
from bench.runner.storage import Running, Storage
from bench.sweep.config import Loaded

ATTEMPTS = 3  # of a job whose place fails


@dataclass(slots=True)
class RunOutcome:
    """What a run did: the keys of its Cells, Records written now, Cells found done, how many of all failed."""

    out: Path
    keys: tuple[str, ...]
    written: list[Record] = field(default_factory=list)
    resumed: int = 0
    failed: int = 0
    interrupted: bool = False


def execute(
    loaded: Loaded,
    plan: Plan,
    out: Path,
    reporter: Observer,
    command: str = "",
    executor: Executor | None = None,
    time_is_up: Callable[[], bool] = never,
) -> RunOutcome:
    """Run what of ``plan`` has no Record in ``out`` yet.

    Args:
        loaded: the sweep.
        plan: what it means.
        out: the run directory.
        reporter: shows what happens.
        command: what was typed, for ``run.json``.
        executor: where jobs run; by default as ``run.executor`` says. It is closed at the end.
        time_is_up: once it says so, nothing more is started; what runs then is waited for.

    Raises:
        StoreError: the run directory cannot be written.
    """
    store.prepare(out)
    store.write_json(run_file(out), run_info(loaded, plan, command, store.read_run(out)))
    leases, interrupts = Leases(out), Interrupts()
    done, begun = Done(out, {}, {}), False
    with interrupts:
        try:
            done, jobs = find_pending(loaded, plan, out, reporter.note)
            executor = executor or make_executor(loaded, plan, reporter.note)
            schedule = Schedule(plan, done, jobs, leases, reporter, executor)
            driver = _Driver(schedule, interrupts, time_is_up)
            driver.begin()
            begun = True
            driver.run()
        except KeyboardInterrupt:
            interrupts.asked = True
        finally:
            interrupts.ending = True
            if executor:
                executor.close()
            leases.close()
            clear_abandoned(out)
            if begun:
                reporter.close()
    failed = sum(done.statuses.get(key) in ("failed", "timeout") for key in plan.cells)
    return RunOutcome(out, tuple(plan.cells), done.written, done.found, failed, interrupts.asked)


def make_executor(loaded: Loaded, plan: Plan, note: Callable[[str], None]) -> Executor:
    """Return the executor that ``run.executor`` names; ``note`` shows a line."""
    from bench.runner.executors.local import LocalExecutor, make_slots
    from bench.runner.executors.packer import Packer

    run = loaded.sweep.run
    if run.executor == "ray":
        from bench.runner.executors.ray import make

        return make(loaded, plan)
    slots = make_slots(plan.device, run.device in ("auto", "cuda"), run.threads, run.pack)
    return LocalExecutor(slots, Packer(tell=note) if run.pack == "auto" and slots[0].shared else None)


class _Driver:
    """One run in progress: starts what the schedule offers, sleeps until a worker speaks, has outcomes stored."""

    def __init__(self, schedule: Schedule, interrupts: Interrupts, time_is_up: Callable[[], bool]) -> None:
        self.schedule, self.interrupts, self.time_is_up = schedule, interrupts, time_is_up
        self.done, self.reporter, self.executor = schedule.done, schedule.reporter, schedule.executor
        self.storage = Storage(self.done.out, self.reporter.note)
        self.running: dict[str, Running] = {}
        self.attempts = Counter[str]()
        self.stopping = False

    def begin(self) -> None:
        """Say how much there is to do; from now on a first signal stops gently."""
        self.interrupts.wake = self.executor.wake
        plan, jobs = self.schedule.plan, self.schedule.pending()
        runnable = plan.cells.keys() - plan.unsupported.keys()
        estimate = sum(job_estimate_s(job) * self.schedule.share(job) for job in jobs)
        self.reporter.begin(len(runnable), len(runnable & self.done.statuses.keys()), estimate)

    def run(self) -> None:
        """Run everything, or until asked to stop."""
        while self._step():
            pass

    def _step(self) -> bool:
        """Start what can start, sleep, take in what happened; False when all is done."""
        if not self._ending() and not self.storage.failing:
            try:
                for job in self.schedule.startable(self.running):
                    self._launch(job)
                    if self._ending():
                        break
            except StoreError as error:
                self.storage.fail(str(error))
        waiting = self.storage.failing or (not self._ending() and self.schedule.pending())
        if not self.running and not waiting:
            return False
        for event in self.executor.wait(self._patience_s()):
            self._take(event)
        if self.interrupts.asked and not self.stopping:
            self._stop_gently()
        if self.interrupts.deadline is not None and time.monotonic() >= self.interrupts.deadline:
            self.interrupts.deadline = None
            for ticket in self.running:
                self.executor.cancel(ticket, gently=False)
        self.storage.retry(self._finish, self.stopping)
        return True

    def _ending(self) -> bool:
        """Whether nothing more is started."""
        return self.stopping or self.time_is_up()

    def _patience_s(self) -> float | None:
        """How long to sleep: until somebody speaks, unless what is on disk has to be looked at."""
        if self.interrupts.deadline is not None:
            return max(0.0, self.interrupts.deadline - time.monotonic())
        if self.storage.failing:
            return POLL_S[0] * 4
        return None if self._ending() else self.schedule.patience_s(bool(self.running))

    def _launch(self, job: Job) -> None:
        self.storage.works()
        label = job_label(job)
        if any(running.label == label for running in self.running.values()):
            label += f" [{job.key[:6]}]"
        self.reporter.start(label, job_estimate_s(job), self.schedule.share(job))
        self.running[job.ticket] = running = Running(job, label, time.monotonic())
        try:
            self.executor.submit(job)
        except OSError as error:  # no memory, no more processes
            del self.running[job.ticket]
            self._lost(running, f"cannot start a worker: {error.strerror or error}")

    def _take(self, event: Event) -> None:
        running = self.running.get(event.ticket)
        if running is None:
            return
        if event.kind == "progress":
            self.reporter.progress(running.label, event.progress)
            return
        if event.kind == "part":
            assert event.cell and event.finished
            self._store_part(running, event.cell, event.finished)
            return
        del self.running[event.ticket]
        self.schedule.look_soon()
        if event.kind == "finished":
            assert event.finished
            self._finish(running, event.finished)
        elif event.kind == "stopped":
            self._give_back(running, "stopped", again=False)
        else:
            self._lost(running, event.reason)

    def _finish(self, running: Running, finished: Finished) -> None:
        if self.schedule.taken_over(running.job):
            self._give_back(running, "given up: another `bench run` has taken it over", again=True)
            return
        stored, record = self.storage.write(running, finished)
        if not stored:
            return
        if record:
            self.done.add(record)
            if record["status"] != finished.result.status:
                ended = f"{finished.result.status} ({finished.result.reason})"
                self.reporter.note(
                    f"{running.label}: trained again for its weights, but {ended}; the earlier result is kept"
                )
        for cell in running.job.more:  # what a worker that died has not done ends as its job did
            if finished.result.status != "ok" and cell_key(cell) not in self.done.statuses:
                self._store_part(running, cell, finished)
        self.schedule.finished(running.job)
        self.reporter.finish(running.label, record, finished.seconds)

    def _store_part(self, running: Running, cell: Cell, finished: Finished) -> None:
        """One of the Cells that a job does in one go is done."""
        own = dataclasses.replace(running.job, key=cell_key(cell), cell=cell, more=())
        _, record = self.storage.write(dataclasses.replace(running, job=own, label=job_label(own)), finished)
        if record:
            self.done.add(record)
            self.reporter.skip(HEAD_S, 1)

    def _give_back(self, running: Running, said: str, again: bool) -> None:
        """A job ended with nothing to store."""
        self.schedule.give_back(running.job, again)
        self.reporter.finish(running.label, None, time.monotonic() - running.started, said)

    def _lost(self, running: Running, reason: str) -> None:
        """The job's place failed: run it again, unless that keeps happening."""
        job = running.job
        self.attempts[job.ticket] += 1
        if self.attempts[job.ticket] >= ATTEMPTS:
            environment = {"device": job.device, "threads": job.threads}
            seconds = time.monotonic() - running.started
            text = f"{reason} ({ATTEMPTS} times)"
            self._finish(running, Finished(Result({}, "failed", text), environment, seconds))
            return
        self._give_back(running, f"will run again: {reason}", again=True)
        self.storage.check()

    def _stop_gently(self) -> None:
        self.stopping = True
        if any(not running.job.alone for running in self.running.values()):
            limit = "" if self.interrupts.deadline is None else f", {GRACE_S:.0f} s at most"
            self.reporter.note(
                f"stopping after the current epoch (checkpoint kept{limit}); press Ctrl-C again to stop at once"
            )
        for ticket in list(self.running):
            self.executor.cancel(ticket, gently=True)
