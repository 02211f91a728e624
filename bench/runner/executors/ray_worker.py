"""The far side of the Ray executor: a worker, an actor on some node that runs one job at a time. Torch-free.

A worker is a :class:`~bench.runner.executors.local.LocalExecutor` with one place: each job has a fresh process, forked
as on a single machine from a forkserver with torch imported, and deaths, time limits and logs are told as there.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import forkserver, util
from pathlib import Path

from bench.machine.versions import VERSION
from bench.record.cells import EfficiencyCell
from bench.record.paths import run_file
from bench.runner.executors.base import Event, Job
from bench.runner.executors.local import LocalExecutor, Slot
from bench.runner.jobs import KEEPS_CHECKPOINT

Stamp = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Said:
    """What a worker says: where it is, what happened and, with a job's last event, the files left (path -> content)."""

    node: str
    event: Event
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
    """One place for jobs on a node.

    Args:
        version: of medbench at the driver.
        device: ``cpu`` or ``cuda:0`` of what Ray shows.
        threads: of a job.
        environment: of the driver, for variables that decide how a Cell is computed; None: it is not set there.
        plugins: contents of the plug-in files by name, for nodes that do not have them.
        download: whether missing dataset files may be fetched.
        folder: where temporary files go, one that ends with the cluster; None: wherever the node keeps them.
    """

    def __init__(
        self, version: str, device: str, threads: int, environment: Mapping[str, str | None],
        plugins: Mapping[str, bytes], download: bool, folder: Path | None,
    ) -> None:  # fmt: skip
        if version != VERSION:
            raise RuntimeError(f"node {platform.node()} has version {VERSION} of medbench, the driver {version}")
        self.plugins, self.download = plugins, download
        self.asked: tuple[str, bool] | None = None
        self.sound: set[tuple[str, int, str]] = set()
        for name in environment:
            os.environ.pop(name, None)
        os.environ |= {name: value for name, value in environment.items() if value is not None}
        if folder:
            tempfile.tempdir = str(folder)
        self.executor = LocalExecutor([Slot(device, threads)])
        self.folder = Path(util.get_temp_dir())  # cleared away by the forkserver, however this process ends
        forkserver.ensure_running()  # its imports begin now

    def run(self, job: Job, stamp: Stamp | None, inputs: Mapping[str, bytes]) -> Iterator[Said]:
        """Run a job and yield what happens to it, its last event at the end.

        Args:
            job: as the driver knows it.
            stamp: tells whether this node sees the driver's run directory, see :func:`run_stamp`.
            inputs: path in the run directory -> content, for a node that does not.
        """
        node = platform.node()
        yield Said(node, Event(job.ticket, "progress"))
        shared = stamp is not None and run_stamp(job.out) == stamp
        out = job.out if shared else Path(tempfile.mkdtemp(dir=self.folder))
        for name, content in {} if shared else inputs.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
        for event in self._events(job, out):
            if event.kind in ("progress", "part"):
                yield Said(node, event)
        keep = event.finished is None or event.finished.result.status in KEEPS_CHECKPOINT
        if event.finished:
            event.finished.environment["node"] = node
        yield Said(node, event, {} if shared else self._files(out, inputs, keep))

    def _files(self, out: Path, inputs: Mapping[str, bytes], keep_checkpoint: bool) -> dict[str, bytes]:
        """Return what a job left in a folder of this node, and remove that."""
        found = {}
        for path in sorted(path for path in out.rglob("*") if path.is_file() and not path.name.startswith(".")):
            name = path.relative_to(out).as_posix()
            if keep_checkpoint if name.startswith("checkpoints/") else name not in inputs:
                found[name] = path.read_bytes()
        shutil.rmtree(out, ignore_errors=True)
        return found

    def _events(self, job: Job, out: Path) -> Iterator[Event]:
        try:
            plugins = tuple(self._plugin(name, job.plugin_base) for name in job.plugins)
            job = dataclasses.replace(job, out=out, plugins=plugins)
            if not isinstance(job.cell, EfficiencyCell):
                job = dataclasses.replace(job, data_root=self._data(job))
            self.executor.submit(job)
        except Exception as error:  # of this node: no room, no data, no process. Another one may do better
            yield Event(job.ticket, "lost", reason=f"{platform.node()}: {str(error) or type(error).__name__}")
            return
        while True:
            if self.asked and self.asked[0] == job.ticket:
                self.executor.cancel(*self.asked)
                self.asked = None
            for event in self.executor.wait(None):
                yield event
                if event.kind not in ("progress", "part"):
                    return

    def cancel(self, ticket: str, gently: bool) -> None:
        """End the job; called beside :meth:`run`, in another thread."""
        self.asked = (ticket, gently)
        self.executor.wake()

    def leave(self) -> None:
        """End the job at once, if there is one, and remove what lies about."""
        self.executor.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _plugin(self, name: str, base: Path) -> str:
        """The plug-in as the driver has it: the node's own file where that is the same."""
        content = self.plugins.get(name)
        if content is None or ((base / name).is_file() and (base / name).read_bytes() == content):
            return name
        path = self.folder / "plugins" / Path(name).name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return str(path)

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
        registry.load_plugins(job.plugins, job.plugin_base)
        info = registry.dataset_info(name)
        if problems := preflight([(info, size)], root):
            if not self.download or any(problem.reason != "missing" for problem in problems):
                raise ValueError(missing_message(problems))
            fetch([problem.file for problem in problems], root or default_root())
        if info.open().fingerprint(size, root or default_root()) != expected:
            raise ValueError(f"{name} at {size} pixels is not the data that the driver has; copy it to this node")
        self.sound.add((name, size, expected))
        return root
