"""Jobs on this machine: each in a fresh process of a forkserver, on a device and on cores of its own.

The forkserver has torch, timm and our rooms imported and CUDA untouched, so a process is born in hundredths of a second
and inherits nothing of another Cell. The parent sleeps until a worker speaks, dies, or is out of time. Trainings that
share a GPU share a process (:mod:`bench.runner.executors.shared_worker`); one that was lost with its neighbours, or
found no memory beside them, runs again in a process of its own.
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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import util
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from bench.machine.hardware import free_memory_share, gpus
from bench.machine.threads import available_threads, set_omp_wait_policy
from bench.record.cells import AccuracyCell, Result
from bench.record.paths import log_path
from bench.record.types import Fields
from bench.runner.executors.base import Event, Finished, Job, Message, Wake
from bench.runner.executors.packer import MOST, Packer
from bench.runner.executors.shared_worker import work_shared
from bench.runner.worker import SOCKET_FOLDER, work

LOG_TAIL_LINES = 30
FORKSERVER_GONE = 255  # multiprocessing's word for a child of which it will never hear
LAST_WORDS_S = 5.0  # a worker that has sent its result has this long to end by itself
OVERTIME_S = 20.0  # a training out of time has this long to reach its next step, before its neighbours are ended too


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for one accuracy job: a GPU by UUID, or cores (none named: all of them); ``shared``: in one process."""

    device: str
    threads: int
    visible_gpus: str | None = None
    cores: tuple[int, ...] = ()
    shared: bool = False


@dataclass(slots=True, eq=False)
class _Host:
    """A process that serves several jobs of one device."""

    process: ForkServerProcess
    connection: Connection


@dataclass(slots=True)
class _Running:
    job: Job
    slot: Slot | None
    process: ForkServerProcess
    receiver: Connection
    started: float
    oom_kills: int
    stopping: bool = False
    host: _Host | None = None
    overdue: bool = False

    @property
    def deadline(self) -> float | None:
        limit = self.job.time_limit_s
        return None if limit is None else self.started + limit + OVERTIME_S * self.overdue


class LocalExecutor:
    """Runs jobs in processes of this machine.

    Args:
        slots: places of accuracy jobs, see :func:`make_slots`; a job that runs alone has the whole machine.
        packer: decides how many of the places of each GPU are used.
    """

    def __init__(self, slots: Sequence[Slot], packer: Packer | None = None) -> None:
        self.slots, self.packer = list(slots), packer
        self.hosts: dict[str | None, _Host] = {}
        self.unshared: set[str] = set()  # tickets of jobs that have to run in a process of their own
        self.free = list(slots)
        self.running: dict[str, _Running] = {}
        self._wake = Wake()
        set_omp_wait_policy()
        os.environ[SOCKET_FOLDER] = util.get_temp_dir()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["bench.runner.preload"])

    @property
    def parallel(self) -> int:
        """How many accuracy jobs run at a time."""
        return len(self.slots)

    def room(self, job: Job) -> bool:
        """Say whether ``job`` can start now; one that runs alone only when nothing runs."""
        if job.alone or any(running.job.alone for running in self.running.values()):
            return not self.running
        devices = len({slot.visible_gpus for slot in self.slots})
        return bool(self.free) and (self.packer is None or len(self.running) < self.packer.places * devices)

    def submit(self, job: Job) -> None:
        """Start ``job`` on a free slot."""
        slot = None
        if job.alone:
            self._close_hosts()
        if not job.alone:
            slot = self.free.pop(0)
            job = dataclasses.replace(
                job, device=slot.device, threads=slot.threads, cores=slot.cores, visible_gpus=slot.visible_gpus
            )
            if slot.shared and job.key not in self.unshared and _may_share(job):
                self._submit_shared(job, slot)
                return
        elif job.device.startswith("cuda"):  # all, in NVML's order: cuda:N is then the N-th of the plan for CUDA too
            job = dataclasses.replace(job, visible_gpus=",".join(gpu["uuid"] for gpu in gpus()) or None)
        receiver, sender = self._context.Pipe(duplex=False)
        try:
            process = self._start(work, sender, job)
        except BaseException:
            receiver.close()
            if slot is not None:
                self.free.insert(0, slot)
            raise
        finally:
            sender.close()
        self.running[job.ticket] = _Running(job, slot, process, receiver, time.monotonic(), oom_kills())

    def _submit_shared(self, job: Job, slot: Slot) -> None:
        """Give ``job`` to the process of its device, which is started for the first one."""
        host = self.hosts.get(slot.visible_gpus)
        try:
            if host is None:
                ours, theirs = self._context.Pipe(duplex=True)
                with contextlib.closing(theirs):
                    host = _Host(self._start(work_shared, theirs, job, f"shared-{len(self.hosts)}"), ours)
                self.hosts[slot.visible_gpus] = host
            host.connection.send(("run", job))
        except BaseException:
            self.free.insert(0, slot)
            raise
        running = _Running(job, slot, host.process, host.connection, time.monotonic(), oom_kills(), host=host)
        self.running[job.ticket] = running

    def _start(self, target: Callable[..., None], *arguments: object) -> ForkServerProcess:
        """Start a worker; a forkserver that was killed is started again by multiprocessing at the second try."""
        for last in (False, True):
            process = self._context.Process(target=target, args=arguments)
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
        heard: dict[Connection, _Host | None] = {running.receiver: running.host for running in self.running.values()}
        heard |= {host.connection: host for host in self.hosts.values()}
        ready = wait([*heard, self._wake.reader], timeout_s)
        self._wake.clear()
        events = []
        for connection in ready:
            if isinstance(connection, Connection):
                events += self._heard(connection, heard[connection])
        now = time.monotonic()
        for running in list(self.running.values()):
            if running.deadline is None or now < running.deadline or running.job.ticket not in self.running:
                continue
            if running.host is None:
                events.append(self._ended(running, _timeout(running.job)))
            elif not running.overdue:
                running.overdue = True
                _send(running.host, ("stop", running.job.ticket))
            else:
                events += self._host_ended(running.host)
        return events

    def _heard(self, connection: Connection, host: _Host | None) -> list[Event]:
        """Read one message of a worker, of one that serves many if there is a ``host``, or its death."""
        try:
            received = connection.recv()
        except Exception:  # closed, or torn by a kill in the middle of a message: what unpickling then raises varies
            if host:
                return self._host_ended(host)
            received = None
        if host:
            ticket, message = received
            running = self.running[ticket]
        else:
            running, message = next(r for r in self.running.values() if r.receiver is connection), received
        if message and message[0] == "progress":
            if host:
                self._tell_packer(running, message[1])
            return [Event(running.job.ticket, "progress", progress=message[1])]
        if message and message[0] == "part":
            return [Event(running.job.ticket, "part", cell=message[1], finished=Finished(*message[2:]))]
        return [self._ended(running, self._last_of_many(running, message) if host else message)]

    def _last_of_many(self, running: _Running, message: Message) -> Message:
        """The last message of a training that shared its process: what may be its neighbours' fault is run again."""
        if self.packer:
            self.packer.ended(running.job.ticket)
        if message[:2] == ("error", "oom"):
            message = ("alone", "out of memory beside its neighbours")
        if message[0] == "alone":
            self.unshared.add(running.job.key)
            return ("lost", f"{message[1]}; it runs again in a process of its own")
        return _timeout(running.job) if message[0] == "stopped" and running.overdue else message

    def _host_ended(self, host: _Host) -> list[Event]:
        """A shared process died, or has to: its jobs run again, each in a process of its own."""
        together = [running for running in self.running.values() if running.host is host]
        if any(running.overdue for running in together):
            host.process.kill()
        host.process.join(LAST_WORDS_S)
        _, how = death(host.process.exitcode, False)
        events = []
        for running in together:
            self.unshared.add(running.job.key)
            beside = f", shared by {len(together)} trainings" if len(together) > 1 else ""
            message: Message = ("lost", f"{how}{beside}; it runs again in a process of its own")
            if running.overdue:
                message = _timeout(running.job)
            elif running.stopping:
                message = ("stopped",)
            events.append(self._ended(running, message))
        self._close_host(host)
        return events

    def _close_host(self, host: _Host) -> None:
        host.connection.close()
        _end(host.process)
        self.hosts = {device: other for device, other in self.hosts.items() if other is not host}

    def _close_hosts(self) -> None:
        for host in list(self.hosts.values()):
            self._close_host(host)

    def _tell_packer(self, running: _Running, progress: Fields) -> None:
        if self.packer and "images_per_s" in progress and running.slot:
            beside = sum(other.slot is not None and other.host is running.host for other in self.running.values())
            free = free_memory_share(running.slot.visible_gpus)
            rate, epoch = progress["images_per_s"], progress["epoch"]
            self.packer.heard(running.job.ticket, rate, epoch, time.monotonic(), running=beside, free_share=free)

    def _ended(self, running: _Running, message: Message | None) -> Event:
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
        if running.host is None:
            running.receiver.close()
            _end(running.process, patience_s)
        self.running.pop(running.job.ticket, None)
        if running.slot is not None:
            self.free.insert(0, running.slot)

    def wake(self) -> None:
        """Make :meth:`wait` return; safe in a signal handler."""
        self._wake.up()

    def cancel(self, ticket: str, gently: bool) -> None:
        """End a job; gently lets a training keep a checkpoint after its epoch."""
        running = self.running.get(ticket)
        if running is None:
            return
        running.stopping = True
        if running.host and gently:
            _send(running.host, ("stop", ticket))
            return
        assert running.process.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(running.process.pid, signal.SIGTERM if gently else signal.SIGKILL)

    def close(self) -> None:
        """Kill what still runs and give everything back."""
        if self.packer:
            self.packer.settle()
        for running in list(self.running.values()):
            self._remove(running, patience_s=0.0)
        self._close_hosts()
        self._wake.close()


def _may_share(job: Job) -> bool:
    """Whether a job may run beside others in one process: a training does, what only computes features does not."""
    return isinstance(job.cell, AccuracyCell) and job.cell.track != "frozen"


def _timeout(job: Job) -> tuple[str, str, str]:
    return "error", "timeout", f"took longer than {job.time_limit_s:g} s (run.timeout_s)"


def _send(host: _Host, message: tuple[str, str]) -> None:
    with contextlib.suppress(OSError):  # it is gone, which its silence will tell
        host.connection.send(message)


def _end(process: ForkServerProcess, patience_s: float = 0.0) -> None:
    """End a worker and what it started."""
    if patience_s:
        process.join(patience_s)
    if process.is_alive():
        process.kill()
    process.join()
    # The worker leads a group of its own: what it started (compilers, loaders) goes with it.
    assert process.pid
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.close()


def make_slots(device: str, several: bool, threads: int, pack: int | str) -> list[Slot]:
    """Divide this machine among accuracy jobs.

    Args:
        device: ``cpu`` or ``cuda:N``, as planned.
        several: whether other GPUs of the same name may be used beside ``device``.
        threads: of each worker; 0 divides the cores evenly.
        pack: jobs that share a GPU, or the cores; ``auto`` offers as many places of a GPU as may be worth it.
    """
    cores = sorted_cores()
    if isinstance(pack, str):
        pack = 1 if device == "cpu" else MOST
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
    return [Slot("cuda:0", share, visible_gpus=uuid, shared=pack > 1) for uuid in places]


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
        return "oom", f"the kernel killed the worker, out of memory{shared}"
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
