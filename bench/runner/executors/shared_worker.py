"""A process in which several trainings share one device: each in a thread, on a CUDA stream of its own.

Replayed steps of small networks leave most of a GPU idle, and processes that take turns on it gain nothing. The
numbers of a training are those it has alone (:mod:`bench.train.turns`). A crash ends all of them; whoever started the
process runs each again in a process of its own.
"""

from __future__ import annotations

import contextlib
import contextvars
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, TextIO

from bench.record.paths import log_path
from bench.runner.executors.base import Job, Message
from bench.runner.worker import die_with_driver, redirect_output, run_job, take_place

if TYPE_CHECKING:
    import torch

DEVICE_LOST = 70  # exit status: CUDA cannot be used any more, by nobody in this process


class _Logs(io.TextIOBase):
    """Standard output of each training in a log of its own; `turns.launch` takes the log along to its thread."""

    def __init__(self, fallback: TextIO) -> None:
        self._log = contextvars.ContextVar("log", default=fallback)

    def write(self, text: str) -> int:
        return self._log.get().write(text)

    def flush(self) -> None:
        self._log.get().flush()

    @contextlib.contextmanager
    def into(self, log: TextIO) -> Iterator[None]:
        """Send what this thread prints to ``log``."""
        token = self._log.set(log)
        try:
            yield
        finally:
            self._log.reset(token)


class SharedWorker:
    """Runs the jobs that come through ``connection``, each in a thread.

    Reads ``("run", Job)`` and ``("stop", ticket)``; sends ``(ticket, message)``, messages as of
    :func:`bench.runner.worker.run_job`.
    """

    def __init__(self, connection: Connection, first: Job) -> None:
        self.connection, self.device = connection, first.device
        self.stops: dict[str, threading.Event] = {}
        self.most: dict[str, int] = {}  # ticket -> the most trainings that it shared the process with, itself included
        self._lock = threading.Lock()
        self._streams: list[torch.cuda.Stream] = []  # those that are free: memory cached for a stream serves no other
        self._logs = _Logs(sys.stdout)
        sys.stdout = sys.stderr = self._logs  # type: ignore[assignment]

    def serve(self) -> None:
        """Run jobs until the other end is closed."""
        while True:
            try:
                what, value = self.connection.recv()
            except EOFError:
                return
            if what == "stop":
                if event := self.stops.get(value):
                    event.set()
                continue
            with self._lock:
                self.stops[value.ticket], self.most[value.ticket] = threading.Event(), 1
                self.most = {ticket: max(most, len(self.most)) for ticket, most in self.most.items()}
            threading.Thread(target=self._run, args=(value,), daemon=True, name=value.ticket).start()

    def _run(self, job: Job) -> None:
        stop = self.stops[job.ticket]
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(_opened(job))
            stack.enter_context(self._logs.into(log))
            stack.enter_context(self._stream())
            run_job(job, lambda message: self._say(job.ticket, message), stop.is_set)

    def _say(self, ticket: str, message: Message) -> None:
        if message[0] == "error" and not self._device_works():
            os._exit(DEVICE_LOST)
        with self._lock, contextlib.suppress(BrokenPipeError):
            if message[0] != "progress":
                del self.stops[ticket]
                shared = self.most.pop(ticket)
                if message[0] == "done":
                    message[2]["packed"] = shared
            self.connection.send((ticket, message))

    def _device_works(self) -> bool:
        if self.device == "cpu":
            return True
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError:  # an illegal access poisons the context
            return False
        return True

    @contextlib.contextmanager
    def _stream(self) -> Iterator[None]:
        """Take part with generators, and on a GPU with a stream, of one's own."""
        import torch

        from bench.train.turns import join, turn

        device = torch.device(self.device)
        with join(device), contextlib.ExitStack() as stack:
            if device.type == "cuda":
                stream = self._streams.pop() if self._streams else torch.cuda.Stream(device)
                stack.enter_context(torch.cuda.stream(stream))
            yield
            if device.type == "cuda":
                with turn():
                    gc.collect()
                    torch.cuda.empty_cache()
                self._streams.append(stream)


def _opened(job: Job) -> TextIO:
    try:
        log_path(job.out, job.key).parent.mkdir(parents=True, exist_ok=True)
        return log_path(job.out, job.key).open("a", encoding="utf-8", errors="replace", buffering=1)
    except OSError:
        return open(os.devnull, "w", encoding="utf-8")


def work_shared(connection: Connection, first: Job, name: str) -> None:
    """Serve jobs of one device in this process; ``first`` says which, ``name`` is that of its log."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the driver speaks through the connection
        signal.signal(number, signal.SIG_IGN)
    die_with_driver()
    redirect_output(log_path(first.out, name))
    take_place(first)
    SharedWorker(connection, first).serve()
