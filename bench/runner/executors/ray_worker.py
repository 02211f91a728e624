"""The far side of the Ray executor: a worker, an actor on some node that runs one job at a time. Torch-free.

A worker is a :class:`~bench.runner.executors.local.LocalExecutor` with one place: each job has a fresh process, forked
as on a single machine from a forkserver with torch imported, and deaths, time limits and logs are told as there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing import forkserver, util
from pathlib import Path
from typing import Any

from bench.machine.versions import VERSION
from bench.record.cells import EfficiencyCell
from bench.record.paths import run_file
from bench.runner.executors.base import Event, Job
from bench.runner.executors.local import LocalExecutor, Slot
from bench.runner.jobs import KEEPS_CHECKPOINT

Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """What a worker is told once: its place, and what all jobs of the run have in common.

    Attributes:
        environment: of the driver, for variables that decide how a Cell is computed; None: it is not set there.
        plugins: contents of the plug-in files by name, for nodes that do not have them.
        download: whether missing dataset files may be fetched.
        folder: where temporary files go, one that ends with the cluster; None: wherever the node keeps them.
        niceness: of the driver: what runs for it should give way as it does, and not more.
    """

    device: str
    threads: int
    environment: Mapping[str, str | None]
    plugins: Mapping[str, bytes]
    download: bool
    folder: Path | None = None
    niceness: int = 0


@dataclass(frozen=True, slots=True)
class Assignment:
    """A job and what it needs of the run directory where that is not shared.

    Attributes:
        run: what tells whether a node sees the driver's run directory, see :func:`run_stamp`.
        inputs: path in the run directory -> content, or Ray's reference to it.
    """

    job: Job
    run: Stamp | None
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a worker answers: what happened and, with a job's last event, the files it left (path -> content)."""

    events: list[Event]
    files: dict[str, bytes] = field(default_factory=dict)


def run_stamp(out: Path) -> Stamp | None:
    """Identify a run directory by its ``run.json``: the same on every node that shares it, and on no other.

    The number of an inode and its time come from the file server; a copy has others. Opening makes NFS ask the server.
    """
    try:
        with run_file(out).open("rb") as file:
            status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


class RayWorker:
    """One place for jobs on a node; the driver asks for :meth:`start`, then for :meth:`more` until a job has ended."""

    def __init__(self, setup: WorkerSetup) -> None:
        self.setup = setup
        self.asked: tuple[str, bool] | None = None
        self.job: Job | None = None
        self.scratch: Path | None = None
        self.given: dict[str, tuple[int, int]] = {}
        self.sound: set[tuple[str, int, str]] = set()
        for name, value in setup.environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if setup.folder:
            tempfile.tempdir = str(setup.folder)
        with contextlib.suppress(OSError):  # only the superuser may take back the 15 that Ray's nodes add
            os.setpriority(os.PRIO_PROCESS, 0, setup.niceness)
        self.executor = LocalExecutor([Slot(setup.device, setup.threads)])
        self.folder = Path(util.get_temp_dir())  # cleared away by the forkserver, however this process ends
        forkserver.ensure_running()  # its imports begin now

    def hello(self) -> dict[str, str]:
        """Say where this is and what runs here."""
        return {"node": platform.node(), "version": VERSION}

    def start(self, assignment: Assignment) -> Reply:
        """Start a job; return when something has happened to it."""
        self.job = assignment.job
        try:
            job = self._settled(assignment)
            if not isinstance(job.cell, EfficiencyCell):
                job = dataclasses.replace(job, data_root=self._data(job))
            self.executor.submit(job)
        except Exception as error:  # of this node: no room, no data, no process. Another one may do better
            reason = f"{platform.node()}: {str(error) or type(error).__name__}"
            return Reply([Event(assignment.job.ticket, "lost", reason=reason)], self._cleared(keep_checkpoint=True))
        return self.more()

    def more(self) -> Reply:
        """Return when something has happened to the job."""
        assert self.job
        events: list[Event] = []
        while not events:
            if self.asked and self.asked[0] == self.job.ticket:
                self.executor.cancel(self.job.ticket, self.asked[1])
                self.asked = None
            events = self.executor.wait(None)
        last = events[-1]
        if last.kind in ("progress", "part"):
            return Reply(events)
        if last.finished:
            finished = last.finished
            named = {**finished.environment, "node": platform.node()}
            events[-1] = dataclasses.replace(last, finished=dataclasses.replace(finished, environment=named))
        again = last.finished is None or last.finished.result.status in KEEPS_CHECKPOINT
        return Reply(events, self._cleared(keep_checkpoint=again))

    def cancel(self, ticket: str, gently: bool) -> None:
        """End the job; called beside :meth:`more`, in another thread."""
        self.asked = (ticket, gently)
        self.executor.wake()

    def leave(self) -> None:
        """End the job at once, if there is one, and remove what lies about."""
        self.executor.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- the run directory -------------------------------------------------------------------------------------------

    def _settled(self, assignment: Assignment) -> Job:
        """Give a job its run directory, a folder of this node where the driver's is not shared, and its plug-ins."""
        job = assignment.job
        job = dataclasses.replace(job, plugins=tuple(self._plugin(name, job.plugin_base) for name in job.plugins))
        if assignment.run is not None and run_stamp(job.out) == assignment.run:
            return job
        self.scratch = Path(tempfile.mkdtemp(dir=self.folder))
        self.given = {}
        for name, content in assignment.inputs.items():
            path = self.scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_fetched(content))
            self.given[name] = _times(path)
        return dataclasses.replace(job, out=self.scratch)

    def _plugin(self, name: str, base: Path) -> str:
        content = self.setup.plugins.get(name)
        if content is None:
            return name
        with contextlib.suppress(OSError):
            if (base / name).read_bytes() == content:
                return name
        path = self.folder / "plugins" / Path(name).name
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            path.write_bytes(content)
        return str(path)

    def _cleared(self, keep_checkpoint: bool) -> dict[str, bytes]:
        """Return what the job left in a folder of this node, and remove that."""
        self.job = None
        if self.scratch is None:
            return {}
        files = {}
        for path in sorted(self.scratch.rglob("*")):
            name = path.relative_to(self.scratch).as_posix()
            wanted = keep_checkpoint or not name.startswith("checkpoints/")
            if path.is_file() and wanted and not path.name.startswith(".") and self.given.get(name) != _times(path):
                files[name] = path.read_bytes()
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch = None
        return files

    # --- data --------------------------------------------------------------------------------------------------------

    def _data(self, job: Job) -> Path | None:
        """Find or fetch a job's data on this node; return the data root.

        Raises:
            ValueError, OSError, FetchError: it is not to be had here, or is not what the Cell's key says.
        """
        from bench import registry
        from bench.data.files import default_root, fetch, missing_message, preflight

        assert not isinstance(job.cell, EfficiencyCell)
        # A driver's folder that this node does not have is no reason to make one of that name.
        root = job.data_root if job.data_root and job.data_root.is_dir() else None
        name, size, expected = job.cell.dataset, job.cell.size, job.cell.data_fingerprint
        if (name, size, expected) in self.sound:
            return root
        try:
            info = registry.dataset_info(name)
        except registry.RegistryError:
            registry.load_plugins(job.plugins, job.plugin_base)  # which may import torch: not for nothing
            info = registry.dataset_info(name)
        if problems := preflight([(info, size)], root):
            if not self.setup.download or any(problem.reason != "missing" for problem in problems):
                raise ValueError(missing_message(problems))
            fetch([problem.file for problem in problems], root or default_root())
        if info.open().fingerprint(size, root or default_root()) != expected:
            raise ValueError(f"{name} at {size} pixels is not the data that the driver has; copy it to this node")
        self.sound.add((name, size, expected))
        return root


def _fetched(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    import ray

    return bytes(ray.get(content))


def _times(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
