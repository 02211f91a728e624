"""Writing what jobs found out, on a disk that may be full or read-only for a while: results wait in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench.record import store
from bench.record.store import Record, StoreError
from bench.runner.executors.base import Finished, Job
from bench.runner.jobs import write_outcome

PATIENCE_S = 600.0  # so long a full disk may stay full before the run gives up


@dataclass(slots=True)
class Running:
    """A job that a worker has, how it is shown, and when it started (monotonic)."""

    job: Job
    label: str
    started: float


class Storage:
    """Writes to a run directory; nothing should be started while it is ``failing``.

    Args:
        out: the run directory.
        note: shows a line.

    Attributes:
        failing: whether the directory could not be written when last tried.
    """

    def __init__(self, out: Path, note: Callable[[str], None]) -> None:
        self.out, self.note = out, note
        self.failing = False
        self._unwritten: list[tuple[Running, Finished]] = []
        self._since: float | None = None  # nothing could be stored or started
        self._problem = ""

    def write(self, running: Running, finished: Finished) -> tuple[bool, Record | None]:
        """Put an outcome on disk. Returns whether it is there, and the Record if it completes a Cell."""
        try:
            record = write_outcome(self.out, running.job, finished)
        except StoreError as error:
            self.fail(str(error))
            self._unwritten.append((running, finished))
            return False, None
        self.works()
        return True, record

    def fail(self, problem: str) -> None:
        """The directory cannot be written."""
        if self._since is None:
            self._since = time.monotonic()
            self.note(
                f"{problem}; finished results wait in memory, and nothing new starts until the directory can be "
                f"written again ({PATIENCE_S / 60:.0f} min at most)"
            )
        self.failing, self._problem = True, problem

    def works(self) -> None:
        """The directory can be written."""
        if self._since is not None:
            self._since = None
            self.note("the run directory can be written again; continuing")

    def check(self) -> None:
        """Notice if the directory cannot be written."""
        if problem := store.unwritable(self.out):
            self.fail(problem)

    def retry(self, finish: Callable[[Running, Finished], None], stopping: bool) -> None:
        """If the directory can be written again, ``finish`` what waits.

        Raises:
            StoreError: it has been impossible for too long, or the run is ``stopping``; it names what is lost.
        """
        if not self.failing:
            return
        problem = store.unwritable(self.out)
        if problem is None:
            self.failing = False
            waiting, self._unwritten = self._unwritten, []
            for running, finished in waiting:
                finish(running, finished)  # may fail again
        if (self.failing and stopping) or (self._since and time.monotonic() - self._since > PATIENCE_S):
            lost = ", ".join(running.label for running, _ in self._unwritten) or "nothing"
            raise StoreError(
                f"{problem or self._problem}. Not saved: {lost}; everything else is. The same command runs the rest"
            )
