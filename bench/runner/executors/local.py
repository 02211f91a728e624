"""Jobs on this machine: each in a fresh process of a forkserver, on a device and on cores of its own.

The forkserver has torch, timm and our rooms imported and CUDA untouched, so a process is born in hundredths of a second
and inherits nothing of another Cell. The parent sleeps until a worker speaks, dies, or is out of time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import sys
import time
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.machine.hardware import gpus
from bench.machine.threads import available_threads, set_omp_wait_policy
from bench.record.cells import Result
from bench.record.paths import log_path
from bench.runner.executors.base import Event, Finished, Job
from bench.runner.worker import SOCKET_FOLDER, work

LOG_TAIL_LINES = 30
FORKSERVER_GONE = 255  # multiprocessing's word for a child of which it will never hear
LAST_WORDS_S = 5.0  # a worker that has sent its result has this long to end by itself


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one accuracy job: a GPU by UUID, or cores (none named: all of them)."""

    device: str
    threads: int
    visible_gpus: str | None = None
    cores: tuple[int, ...] = ()


@dataclass(slots=True)
class _Running:
    job: Job
    slot: Slot | None
    process: Any
    receiver: Connection
    started: float
    oom_kills: int
    stopping: bool = False

    @property
    def deadline(self) -> float | None:
        limit = self.job.time_limit_s
        return None if limit is None else self.started + limit


class LocalExecutor:
    """Runs jobs in processes of this machine.

    Args:
        slots: places of accuracy jobs, see :func:`make_slots`; a job that runs alone has the whole machine.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.slots = list(slots)
        self.free = list(slots)
        self.running: dict[str, _Running] = {}
        self._wake_reader, self._wake_writer = os.pipe()
        for end in (self._wake_reader, self._wake_writer):
            os.set_blocking(end, False)
        set_omp_wait_policy()
        os.environ[SOCKET_FOLDER] = util.get_temp_dir()
        self._context: Any = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["bench.runner.preload"])

    @property
    def parallel(self) -> int:
        """How many accuracy jobs run at a time."""
        return len(self.slots)

    def room(self, job: Job) -> bool:
        """Say whether ``job`` can start now; one that runs alone only when nothing runs."""
        if job.alone or any(running.job.alone for running in self.running.values()):
            return not self.running
        return bool(self.free)

    def submit(self, job: Job) -> None:
        """Start ``job`` on a free slot."""
        slot = None
        if not job.alone:
            slot = self.free.pop(0)
            job = dataclasses.replace(
                job, device=slot.device, threads=slot.threads, cores=slot.cores, visible_gpus=slot.visible_gpus
            )
        elif job.device.startswith("cuda"):  # all, in NVML's order: cuda:N is then the N-th of the plan for CUDA too
            job = dataclasses.replace(job, visible_gpus=",".join(gpu["uuid"] for gpu in gpus()) or None)
        receiver, sender = self._context.Pipe(duplex=False)
        try:
            process = self._start(sender, job)
        except BaseException:
            receiver.close()
            if slot is not None:
                self.free.insert(0, slot)
            raise
        finally:
            sender.close()
        self.running[job.ticket] = _Running(job, slot, process, receiver, time.monotonic(), oom_kills())

    def _start(self, sender: Connection, job: Job) -> Any:
        """Start a worker; a forkserver that was killed is started again by multiprocessing at the second try."""
        for last in (False, True):
            process = self._context.Process(target=work, args=(sender, job))
            try:
                with _without_main():
                    process.start()  # the first one waits for the forkserver's imports, no part of a Cell's time
                break
            except (OSError, EOFError):
                if last:
                    raise
        return process

    def wait(self, timeout_s: float | None) -> list[Event]:
        """Sleep until a worker speaks or dies, a time limit is over, or :meth:`wake` is called."""
        ends = [r.deadline for r in self.running.values() if r.deadline is not None]
        if ends:
            left = max(0.0, min(ends) - time.monotonic())
            timeout_s = left if timeout_s is None else min(timeout_s, left)
        receivers = {running.receiver: running for running in self.running.values()}
        ready = wait([*receivers, self._wake_reader], timeout_s)
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wake_reader, 512):
                pass
        events = [self._heard(receivers[r]) for r in ready if isinstance(r, Connection)]
        now = time.monotonic()
        for running in list(self.running.values()):
            if running.deadline is not None and now >= running.deadline:
                reason = f"took longer than {running.job.time_limit_s:g} s (run.timeout_s)"
                events.append(self._ended(running, ("error", "timeout", reason)))
        return events

    def _heard(self, running: _Running) -> Event:
        """Read one message of a worker, or its death."""
        try:
            message = running.receiver.recv()
        except Exception:  # closed, or torn by a kill in the middle of a message: what unpickling then raises varies
            return self._ended(running, None)
        if message[0] == "progress":
            return Event(running.job.ticket, "progress", progress=message[1])
        if message[0] == "part":
            return Event(running.job.ticket, "part", cell=message[1], finished=Finished(*message[2:]))
        return self._ended(running, message)

    def _ended(self, running: _Running, message: tuple[Any, ...] | None) -> Event:
        """Clean up after a worker and say how it ended; ``message`` is its last, None if it died without one."""
        job = running.job
        seconds = time.monotonic() - running.started
        if message is None:
            running.process.join(LAST_WORDS_S)
            status, reason = death(running.process.exitcode, oom_kills() > running.oom_kills, len(self.running))
            message = ("error", status, reason)
            if running.process.exitcode == FORKSERVER_GONE:
                message = ("lost", "the process that starts workers was killed, and they with it")
            if running.stopping:
                message = ("stopped",)
        self._remove(running, patience_s=0.0 if message[:2] == ("error", "timeout") else LAST_WORDS_S)
        if message[0] == "done":
            return Event(job.ticket, "finished", finished=Finished(message[1], message[2], seconds))
        if message[0] == "stopped":
            return Event(job.ticket, "stopped")
        if message[0] == "lost":
            return Event(job.ticket, "lost", reason=message[1])
        result = Result({"log_tail": log_tail(job)}, message[1], message[2])
        environment = {"device": job.device, "threads": job.threads}
        return Event(job.ticket, "finished", finished=Finished(result, environment, seconds))

    def _remove(self, running: _Running, patience_s: float) -> None:
        running.receiver.close()
        process = running.process
        if patience_s:
            process.join(patience_s)
        if process.is_alive():
            process.kill()
        process.join()
        # The worker leads a group of its own: what it started (compilers, loaders) goes with it.
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.close()
        self.running.pop(running.job.ticket, None)
        if running.slot is not None:
            self.free.insert(0, running.slot)

    def wake(self) -> None:
        """Make :meth:`wait` return; safe in a signal handler."""
        with contextlib.suppress(OSError):
            os.write(self._wake_writer, b"x")

    def cancel(self, ticket: str, gently: bool) -> None:
        """End a job; gently lets a training keep a checkpoint after its epoch."""
        running = self.running.get(ticket)
        if running is None:
            return
        running.stopping = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.process.pid, signal.SIGTERM if gently else signal.SIGKILL)

    def close(self) -> None:
        """Kill what still runs and give everything back."""
        for running in list(self.running.values()):
            self._remove(running, patience_s=0.0)
        os.close(self._wake_reader)
        os.close(self._wake_writer)


def make_slots(device: str, several: bool, threads: int, pack: int) -> list[Slot]:
    """Divide this machine among accuracy jobs.

    Args:
        device: ``cpu`` or ``cuda:N``, as planned.
        several: whether other GPUs of the same name may be used beside ``device``.
        threads: of each worker; 0 divides the cores evenly.
        pack: jobs that share a GPU, or the cores.
    """
    cores = sorted_cores()
    if device == "cpu":
        share = max(1, len(cores) // pack)
        parts = [tuple(cores[i * share : (i + 1) * share]) for i in range(pack)] if pack > 1 else [()]
        if pack > len(cores):
            parts = [()] * pack  # more workers than cores: the kernel shares them out
        return [Slot("cpu", threads or share, cores=part) for part in parts]
    found = gpus()
    index = int(device.partition(":")[2] or 0)
    chosen = [gpu for gpu in found if gpu["name"] == found[index]["name"]] if several else [found[index]]
    places = [gpu["uuid"] for _ in range(pack) for gpu in chosen]  # every GPU has one before any has two
    share = threads or max(1, len(cores) // len(places))
    return [Slot("cuda:0", share, visible_gpus=uuid) for uuid in places]


def sorted_cores() -> list[int]:
    """The cores this process may use, hardware threads of one core side by side."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(available_threads()))

    def place(cpu: int) -> tuple[int, int, int]:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            package, core = (int((topology / n).read_text()) for n in ("physical_package_id", "core_id"))
        except (OSError, ValueError):
            package, core = 0, cpu
        return package, core, cpu

    return sorted(os.sched_getaffinity(0), key=place)


# --- deaths ----------------------------------------------------------------------------------------------------------


def death(exitcode: int | None, out_of_memory: bool, neighbours: int = 1) -> tuple[str, str]:
    """Status and reason of a worker that ended without a word.

    Args:
        exitcode: as multiprocessing gives it, negative for a signal.
        out_of_memory: whether the kernel killed a process for memory meanwhile.
        neighbours: jobs that ran at the time, itself included.
    """
    if exitcode is None or exitcode >= 0:
        return "failed", f"the worker ended without a result (exit status {exitcode})"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    if name == "SIGKILL" and out_of_memory:
        shared = f"; {neighbours} cells shared it (run.pack)" if neighbours > 1 else ""
        return "oom", f"the kernel killed the worker, out of memory (it may use {memory_gib():.1f} GiB{shared})"
    hint = "; the kernel does that when memory runs out" if name == "SIGKILL" else ""
    return "failed", f"the worker was killed by {name}{hint}"


def oom_kills() -> int:
    """Processes the kernel has killed for memory so far, in our control group and on the machine; 0 if unknown."""
    found = 0
    for source in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat"):
        with contextlib.suppress(OSError, ValueError):
            for line in Path(source).read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    found += int(count)
    return found


def memory_gib() -> float:
    """Memory that this machine, or our control group, may use, in GiB."""
    import psutil

    found = float(psutil.virtual_memory().total)
    for source in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            found = min(found, float(Path(source).read_text()))
    return found / 2**30


def log_tail(job: Job) -> list[str]:
    """The last lines that a job's worker printed."""
    try:
        with log_path(job.out, job.key).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            return file.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        return []


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep children from importing the caller's ``__main__`` again.

    multiprocessing re-imports it so that functions defined there can be found; ours are all in modules, and a
    user's script that calls ``bench.run`` without a ``__main__`` guard would start itself over and over.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
