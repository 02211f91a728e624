"""Which job starts next: timed ones first and with nothing beside them, then the others, each under a lease."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping

from bench.errors import StoreError
from bench.plan.base import Plan
from bench.record.cells import needs
from bench.runner.done import Done
from bench.runner.executors.base import Executor, Job
from bench.runner.jobs import job_estimate_s
from bench.runner.leases import Leases
from bench.runner.progress import Observer
from bench.runner.storage import Running
from bench.runner.timing_lock import TimingLock

POLL_S = (0.5, 10.0)  # how often others' leases are looked at: at first, and at most


class Schedule:
    """The jobs that have not started, and the leases of those that have.

    Args:
        plan: of the run.
        done: which Cells are done.
        jobs: to run, in their order.
        leases: of this driver.
        reporter: hears of jobs that are not needed any more, and of other drivers.
        executor: where jobs run.
    """

    def __init__(
        self, plan: Plan, done: Done, jobs: Iterable[Job], leases: Leases, reporter: Observer, executor: Executor
    ) -> None:
        self.plan, self.done, self.leases, self.reporter, self.executor = plan, done, leases, reporter, executor
        self.timed, self.queue, self.later = deque[Job](), deque[Job](), list[Job]()
        for job in jobs:
            (self.timed if job.alone else self.queue).append(job)
        self.lock = TimingLock(leases, plan)
        self._needed: dict[str, tuple[str, ...]] = {}
        self._poll_s, self._said_waiting = POLL_S[0], False

    def pending(self) -> list[Job]:
        """The jobs that have not started."""
        return [*self.timed, *self.queue, *self.later]

    def share(self, job: Job) -> float:
        """The share of the executor that a job takes."""
        return 1.0 if job.alone else 1.0 / max(1, self.executor.parallel)

    def startable(self, running: Mapping[str, Running]) -> Iterator[Job]:
        """Yield jobs to start at once. ``running`` is looked at again after each: it should hold what was yielded.

        Raises:
            StoreError: the run directory cannot be written.
        """
        yield from self._next_timed(running)
        if self.lock.held:
            if self.timed or any(other.job.alone for other in running.values()):
                return  # nothing else now
            self.lock.leave()
        later, self.later = self.later, []
        for job in later:  # one whose trials are done goes before the next network's
            ready = self._needs(job) and not self._waits(job)
            (self.queue.appendleft if ready else self.queue.append)(job)
        while self.queue and self.executor.room(self.queue[0]) and self.lock.may_work():
            job = self.queue.popleft()
            if self._leased(job):
                yield job
        if not running:
            self.lock.stop_work()

    def _next_timed(self, running: Mapping[str, Running]) -> Iterator[Job]:
        while self.timed and self._is_done(self.timed[0]):
            self.timed.popleft()
        if self.timed and self.lock.enter(running) and not running:
            yield self.timed.popleft()

    def _needs(self, job: Job) -> tuple[str, ...]:
        if job.ticket not in self._needed:
            self._needed[job.ticket] = needs(job.cell)
        return self._needed[job.ticket]

    def _waits(self, job: Job) -> bool:
        """Whether a job needs what is still to run."""
        return any(key in self.plan.cells and key not in self.done.statuses for key in self._needs(job))

    def _leased(self, job: Job) -> bool:
        """Whether a job can start under a lease of ours; if not, it is put off or done."""
        if self._waits(job):
            self.later.append(job)
            return False
        try:
            leased = self.leases.take(job.key) is not None
        except StoreError:
            self.later.append(job)
            raise
        if not leased:
            self._say_waiting(job)
            self.later.append(job)
        elif self._is_done(job):
            self.leases.release(job.key, done=True)
        else:
            return True
        return False

    def _is_done(self, job: Job) -> bool:
        found = self.done.found
        if not self.done.has(job):
            return False
        elsewhere = self.done.found - found
        if elsewhere:
            self.look_soon()
        self.reporter.skip(job_estimate_s(job) * self.share(job), elsewhere)
        return True

    def _say_waiting(self, job: Job) -> None:
        if not self._said_waiting and (holder := self.leases.holder(job.key)):
            self.reporter.note(f"another `bench run` is using this directory too: {holder}")
            self._said_waiting = True

    def taken_over(self, job: Job) -> bool:
        """Whether another driver has taken our lease on a running job for abandoned."""
        return self.leases.lost(self.lock.name if job.alone else job.key)

    def finished(self, job: Job) -> None:
        """A job's outcome is on disk."""
        if not job.alone:
            self.leases.release(job.key, done=True)

    def give_back(self, job: Job, again: bool) -> None:
        """A job ended with nothing to store; ``again``: it has to run again."""
        if not job.alone:
            self.leases.release(job.key)
        if again:
            (self.timed.appendleft if job.alone else self.later.append)(job)

    def look_soon(self) -> None:
        """Something happened: others' leases are worth a look."""
        self._poll_s = POLL_S[0]

    def patience_s(self, running: bool) -> float | None:
        """How long to wait for an event before looking at others' leases; None where nothing waits for them."""
        if not self.pending() or (running and not self.later and not self.lock.waits):
            return None
        self._poll_s = min(POLL_S[1], self._poll_s * 1.5)
        return self._poll_s
