"""Executes a Plan: claims Cells, gives them to an executor, writes a Record as each ends; resumed by running again.

The driver alone writes Records; it sleeps until a worker speaks or dies. Efficiency Cells come first, in rounds
interleaved over all of them, so that a drift of the machine hits all models alike, and with nothing beside them.
Several drivers may work on one run directory, on one machine or many (:mod:`bench.runner.leases`).
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.plan.base import Plan
from bench.record import store
from bench.record.cells import Result, needs
from bench.record.files import clear_abandoned
from bench.record.paths import record_path, run_file
from bench.record.store import Record, StoreError
from bench.runner.executors.base import Event, Executor, Finished, Job
from bench.runner.jobs import combined, job_estimate_s, job_label, read_round, run_info, write_outcome
from bench.runner.leases import Claims
from bench.runner.pending import Todo, find_todo
from bench.runner.reporter import Observer, Steady
from bench.runner.timing_lock import QuietRoom
from bench.sweep.config import Loaded

POLL_S = (0.5, 10.0)  # how often others' claims are looked at: at first, and at most
GRACE_S = 25.0  # after SIGTERM: schedulers kill after 30 s
PATIENCE_S = 600.0  # so long a full disk may stay full before the run gives up
ATTEMPTS = 3  # of a job whose place fails


@dataclass(slots=True)
class Outcome:
    """What a run did: the keys of its Cells, Records written now, Cells found done, how many of all failed."""

    out: Path
    keys: tuple[str, ...]
    written: list[Record] = field(default_factory=list)
    resumed: int = 0
    failed: int = 0
    interrupted: bool = False


def execute(
    loaded: Loaded, plan: Plan, out: Path, observer: Observer, command: str = "", executor: Executor | None = None
) -> Outcome:
    """Run what of ``plan`` has no Record in ``out`` yet.

    Args:
        loaded: the sweep.
        plan: what it means.
        out: the run directory.
        observer: shows what happens.
        command: what was typed, for ``run.json``.
        executor: where jobs run; by default as ``run.executor`` says. It is closed at the end.

    Raises:
        StoreError: the run directory cannot be written.
    """
    store.prepare(out)
    store.write_json(run_file(out), run_info(loaded, plan, command, store.read_run(out)))
    return _Driver(loaded, plan, out, observer, executor).run()


def make_executor(loaded: Loaded, plan: Plan) -> Executor:
    """Return the executor that ``run.executor`` names."""
    from bench.runner.executors.local import LocalExecutor, make_slots

    run = loaded.sweep.run
    if run.executor == "ray":
        from bench.runner.executors.ray import make

        return make(loaded, plan)
    return LocalExecutor(make_slots(plan.device, run.device in ("auto", "cuda"), run.threads, run.pack))


@dataclass(slots=True)
class _Running:
    job: Job
    label: str
    started: float


class _Driver:
    """One run in progress."""

    def __init__(self, loaded: Loaded, plan: Plan, out: Path, observer: Observer, executor: Executor | None) -> None:
        self.loaded, self.plan, self.out = loaded, plan, out
        self.observer: Any = Steady(observer)
        self.outcome = Outcome(out, tuple(plan.cells))
        self.statuses: dict[str, str] = {}  # of Cells that are done
        self.stamps: dict[str, store.Stamp] = {}  # of Records that are there and are to be replaced
        self.timed, self.queue, self.later = deque[Job](), deque[Job](), list[Job]()
        self.running: dict[str, _Running] = {}
        self.unwritten: list[tuple[_Running, Finished]] = []
        self.attempts = Counter[str]()
        self.interrupts: list[int] = []
        self.stopping = False
        self.hard_stop: float | None = None
        self.problem = ""
        self.stuck = False  # the run directory could not be written when last tried
        self.trouble_since: float | None = None  # since when nothing could be stored or started
        self.poll_s, self.said_waiting = POLL_S[0], False
        self.claims = Claims(out)
        self.room = QuietRoom(self.claims, plan)
        self.executor = executor

    def run(self) -> Outcome:
        """Do everything."""
        begun = False
        try:
            with self._signals():
                self._line_up(find_todo(self.loaded, self.plan, self.out, self.observer.note))
                self.executor = self.executor or make_executor(self.loaded, self.plan)
                self._begin()
                begun = True
                while self._step(self.executor):
                    pass
        except KeyboardInterrupt:
            self.stopping = True
        finally:
            if self.executor:
                self.executor.close()
            self.claims.close()
            clear_abandoned(self.out)
            if begun:
                self.observer.close()
        self.outcome.interrupted = self.stopping
        planned = (self.statuses.get(key) for key in self.plan.cells)
        self.outcome.failed = sum(status in ("failed", "timeout") for status in planned)
        return self.outcome

    def _line_up(self, todo: Todo) -> None:
        self.statuses, self.stamps = todo.statuses, todo.stamps
        self.outcome.resumed, self.outcome.written = todo.found, todo.written
        for job in todo.jobs:
            (self.timed if job.alone else self.queue).append(job)

    def _keep(self, record: Record) -> None:
        self.statuses[record["key"]] = record["status"]
        self.outcome.written.append(record)

    def _begin(self) -> None:
        runnable = self.plan.cells.keys() - self.plan.unsupported.keys()
        jobs = [*self.timed, *self.queue]
        estimate = sum(job_estimate_s(job) * self._share(job) for job in jobs)
        self.observer.begin(len(jobs), len(runnable), len(runnable & self.statuses.keys()), estimate)

    def _share(self, job: Job) -> float:
        assert self.executor
        return 1.0 if job.alone else 1.0 / max(1, self.executor.parallel)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _step(self, executor: Executor) -> bool:
        """Start what can start, sleep, take in what happened; False when all is done."""
        if not self.stopping and not self.stuck:
            try:
                self._start_jobs(executor)
            except StoreError as error:
                self._say_stuck(str(error))
        waiting = self.stuck or (not self.stopping and (self.timed or self.queue or self.later))
        if not self.running and not waiting:
            return False
        for event in executor.wait(self._patience(bool(waiting))):
            self._take(event)
        if self.interrupts and not self.stopping:
            self._stop_gently(executor)
        if self.hard_stop is not None and time.monotonic() >= self.hard_stop:
            for ticket in self.running:
                executor.cancel(ticket, gently=False)
            self.hard_stop = None
        self._write_again()
        return True

    def _patience(self, waiting: bool) -> float | None:
        """How long to sleep: until somebody speaks, unless what is on disk has to be looked at."""
        if self.hard_stop is not None:
            return max(0.0, self.hard_stop - time.monotonic())
        if self.stuck:
            return POLL_S[0] * 4
        if not waiting or (self.running and not self.later and not self.room.waits):
            return None
        self.poll_s = min(POLL_S[1], self.poll_s * 1.5)
        return self.poll_s

    def _start_jobs(self, executor: Executor) -> None:
        while self.timed:
            job = self.timed[0]
            if self._is_done(job):
                self.timed.popleft()
                continue
            if self.room.enter(self.running) and not self.running:
                self.timed.popleft()
                self._launch(executor, job)
            break
        if self.room.inside:
            if self.timed or any(running.job.alone for running in self.running.values()):
                return  # nothing else now
            self.room.leave()
        self.queue.extend(self.later)
        self.later.clear()
        while self.queue and executor.room(self.queue[0]) and self.room.may_work():
            self._start_or_put_off(executor, self.queue.popleft())
        if not self.running:
            self.room.stop_work()

    def _start_or_put_off(self, executor: Executor, job: Job) -> None:
        needed = needs(job.cell)
        if needed in self.plan.cells and needed not in self.statuses:
            self.later.append(job)
        elif not self._claimed(job):
            self._say_waiting(job)
            self.later.append(job)
        elif self._is_done(job):
            self.claims.release(job.key, done=True)
        else:
            self._launch(executor, job)

    def _claimed(self, job: Job) -> bool:
        try:
            return self.claims.take(job.key) is not None
        except StoreError:
            self.later.append(job)
            raise

    def _is_done(self, job: Job) -> bool:
        """Whether a job need not run any more: its Cell ended in an earlier round, or another driver was faster."""
        elsewhere = job.key not in self.statuses and self._done_elsewhere(job)
        done = job.key in self.statuses
        if not done and job.round is not None and read_round(self.out, job.key, job.round) is not None:
            done = True
            if record := combined(self.out, job.key, job.cell):  # type: ignore[arg-type]
                self._keep(record)
        if done:
            self.observer.skip(job_estimate_s(job) * self._share(job), int(elsewhere))
        return done

    def _launch(self, executor: Executor, job: Job) -> None:
        self._works_again()
        label = job_label(job)
        if any(running.label == label for running in self.running.values()):
            label += f" [{job.key[:6]}]"
        self.observer.start(label, job_estimate_s(job), self._share(job))
        self.running[job.ticket] = running = _Running(job, label, time.monotonic())
        try:
            executor.submit(job)
        except OSError as error:  # no memory, no more processes
            del self.running[job.ticket]
            self._lost(running, f"cannot start a worker: {error.strerror or error}")

    def _done_elsewhere(self, job: Job) -> bool:
        """Whether another driver has written the Cell's Record since we read what is there."""
        path = record_path(self.out, job.key)
        stamp = store.stamp_of(path)
        if stamp is None or stamp == self.stamps.get(job.key):
            return False
        try:
            self.statuses[job.key] = store.read_record(path)["status"]
        except StoreError:
            return False  # damaged: it is written anew
        self.outcome.resumed += 1
        self.poll_s = POLL_S[0]
        return True

    def _say_waiting(self, job: Job) -> None:
        if not self.said_waiting and (holder := self.claims.holder(job.key)):
            self.observer.note(f"another bench run works on this directory too: {holder}")
            self.said_waiting = True

    # --- what happened -----------------------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        running = self.running.get(event.ticket)
        if running is None:
            return
        if event.kind == "progress":
            self.observer.progress(running.label, event.progress)
            return
        del self.running[event.ticket]
        self.poll_s = POLL_S[0]
        if event.kind == "finished":
            assert event.finished
            self._finish(running, event.finished)
        elif event.kind == "stopped":
            self._give_back(running, "stopped", again=False)
        else:
            self._lost(running, event.reason)

    def _finish(self, running: _Running, finished: Finished) -> None:
        job = running.job
        if self.claims.lost(self.room.name if job.alone else job.key):
            self._give_back(running, "given up: another bench run has taken it over", again=True)
            return
        try:
            record = write_outcome(self.out, job, finished)
        except StoreError as error:
            self._say_stuck(str(error))
            self.unwritten.append((running, finished))
            return
        self._works_again()
        if record:
            self._keep(record)
            if record["status"] != finished.result.status:
                ended = f"{finished.result.status} ({finished.result.reason})"
                self.observer.note(f"{running.label}: trained again for its weights, {ended}; the earlier result stays")
        if not job.alone:
            self.claims.release(job.key, done=True)
        self.observer.finish(running.label, record, finished.seconds)

    def _give_back(self, running: _Running, said: str, again: bool) -> None:
        """A job ended with nothing to store."""
        if not running.job.alone:
            self.claims.release(running.job.key)
        if again:
            (self.timed.appendleft if running.job.alone else self.later.append)(running.job)
        self.observer.finish(running.label, None, time.monotonic() - running.started, said)

    def _lost(self, running: _Running, reason: str) -> None:
        """The job's place failed: run it again, unless that keeps happening."""
        job = running.job
        self.attempts[job.ticket] += 1
        if self.attempts[job.ticket] >= ATTEMPTS:
            environment = {"device": job.device, "threads": job.threads}
            seconds = time.monotonic() - running.started
            text = f"{reason} ({ATTEMPTS} times)"
            self._finish(running, Finished(Result({}, "failed", text), environment, seconds))
            return
        self._give_back(running, f"to run again: {reason}", again=True)
        if problem := store.unwritable(self.out):
            self._say_stuck(problem)

    def _say_stuck(self, problem: str) -> None:
        if self.trouble_since is None:
            self.trouble_since = time.monotonic()
            self.observer.note(
                f"{problem}; nothing new is started until that works again (for {PATIENCE_S / 60:.0f} min at most); "
                "what is finished waits in memory"
            )
        self.stuck, self.problem = True, problem

    def _write_again(self) -> None:
        """Try again what could not be written; go on when it is."""
        if not self.stuck:
            return
        problem = store.unwritable(self.out)
        if problem is None:
            self.stuck = False
            waiting, self.unwritten = self.unwritten, []
            for running, finished in waiting:
                self._finish(running, finished)  # may be stuck again
        since = self.trouble_since
        if (self.stuck and self.stopping) or (since is not None and time.monotonic() - since > PATIENCE_S):
            lost = ", ".join(running.label for running, _ in self.unwritten) or "nothing"
            raise StoreError(f"{problem or self.problem}. Not stored and to be run again: {lost}; all else is on disk")

    def _works_again(self) -> None:
        if self.trouble_since is not None:
            self.trouble_since = None
            self.observer.note("the run directory can be written again: going on")

    # --- signals -----------------------------------------------------------------------------------------------------

    def _stop_gently(self, executor: Executor) -> None:
        self.stopping = True
        if self.interrupts[0] != signal.SIGINT:
            self.hard_stop = time.monotonic() + GRACE_S
        if any(not running.job.alone for running in self.running.values()):
            limit = "" if self.hard_stop is None else f" (within {GRACE_S:.0f} s)"
            self.observer.note(
                f"stopping: trainings keep a checkpoint at the end of their epoch{limit}; once more stops at once"
            )
        for ticket in list(self.running):
            executor.cancel(ticket, gently=True)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C, SIGTERM (a scheduler's preemption) and SIGHUP end the run cleanly; the second one at once."""

        def interrupt(number: int, frame: Any) -> None:
            self.interrupts.append(number)
            if len(self.interrupts) > 1 or self.executor is None:
                raise KeyboardInterrupt
            self.executor.wake()

        before = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup wants SIGHUP ignored
                    before[number] = signal.signal(number, interrupt)
        except ValueError:  # not in the main thread: the caller handles signals
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
