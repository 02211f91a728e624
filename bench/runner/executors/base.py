"""What the runner asks of an executor and what it hears from it. Torch-free plain data.

The runner decides what runs next, claims Cells and writes Records; an executor only finds a place for a job, runs it in
a fresh process there and tells what happened. It writes nothing into the run directory but what the worker itself does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from bench.record.cells import Cell, EfficiencyCell, Result
from bench.record.types import Fields


@dataclass(frozen=True)
class Job:
    """One trip to a worker: a Cell, or one round of an efficiency Cell, and all it needs. Picklable.

    ``more`` are Cells done in the same go, since they share what takes long: frozen ones of the same features. Each
    gets a Record of its own; ``cell`` comes last.

    ``device``, ``threads``, ``cores`` and ``visible_gpus`` are what the driver planned; an executor may replace them
    by the place it found, but never for a job that runs ``alone``: its Cell's key says what it is measured on.
    """

    key: str
    cell: Cell
    round: int | None
    device: str
    threads: int
    data_root: Path | None
    out: Path
    plugins: tuple[str, ...]
    plugin_base: Path
    time_limit_s: float | None = None
    keep_weights: bool = False
    cores: tuple[int, ...] = ()
    visible_gpus: str | None = None
    more: tuple[Cell, ...] = ()

    @property
    def ticket(self) -> str:
        """Names the job among all of a run."""
        return self.key if self.round is None else f"{self.key}/{self.round}"

    @property
    def alone(self) -> bool:
        """Whether nothing else may run on the machine meanwhile: it is timed."""
        return isinstance(self.cell, EfficiencyCell)


@dataclass(frozen=True, slots=True)
class Finished:
    """A job's outcome, to be stored: its Result (of any status), where it ran, how long it took."""

    result: Result
    environment: Fields
    seconds: float


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to a job.

    Attributes:
        ticket: the job's.
        kind: ``part``: ``cell``, one of the job's ``more``, is ``finished``; ``progress``: ``progress`` holds the
            worker's phase, epoch, ...; ``finished``: the job ended and ``finished`` says how, a worker's death, fault
            or time limit included (status ``failed``, ``oom`` or ``timeout``, ``metrics["log_tail"]`` the end of its
            log); ``stopped``: it ended because it was cancelled; ``lost``: its place failed and not the job (a node
            gone, a full disk): run it again. ``reason`` says why.
    """

    ticket: str
    kind: Literal["progress", "part", "finished", "stopped", "lost"]
    progress: Fields = field(default_factory=dict)
    finished: Finished | None = None
    reason: str = ""
    cell: Cell | None = None


class Executor(Protocol):
    """Runs jobs. All methods are called from one thread, but for :meth:`wake`.

    Every submitted job gives exactly one last event (``finished``, ``stopped`` or ``lost``).
    """

    @property
    def parallel(self) -> int:
        """How many accuracy jobs run at a time (it may grow with a cluster)."""

    def room(self, job: Job) -> bool:
        """Say whether ``job`` would start about now. A job that runs ``alone`` has room only when nothing runs."""

    def submit(self, job: Job) -> None:
        """Start ``job``; called after :meth:`room` said yes."""

    def wait(self, timeout_s: float | None) -> list[Event]:
        """Sleep until something happens, :meth:`wake` is called or the time is over; return what happened."""

    def wake(self) -> None:
        """Make a :meth:`wait` in progress, or the next one, return at once. Safe in a signal handler."""

    def cancel(self, ticket: str, gently: bool) -> None:
        """End a job. Gently: a training first keeps a checkpoint after its epoch; everything else ends at once."""

    def close(self) -> None:
        """End every process, at once; nothing stays behind."""


class Wake:
    """A pipe that ends a sleep: its ``reader`` is among what is waited for; safe in signal handlers and threads."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        for end in (self.reader, self._writer):
            os.set_blocking(end, False)

    def up(self) -> None:
        """End the sleep in progress, or the next one."""
        with contextlib.suppress(OSError):
            os.write(self._writer, b"x")

    def clear(self) -> None:
        """Forget calls of :meth:`up` so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.reader, 512):
                pass

    def close(self) -> None:
        """Close the pipe; a late :meth:`up` does nothing."""
        os.close(self.reader)
        os.close(self._writer)
        self._writer = -1


Message = tuple[Any, ...]  # of a worker: a word and what belongs to it, see bench.runner.worker.run_job
Send = Callable[[Message], None]
