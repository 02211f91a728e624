"""Jobs on a Ray cluster: an existing one, or one of this machine that ends with the run.

Ray finds the places: each is an actor with the resources of a Cell (:mod:`bench.runner.executors.ray_worker`), and
Ray tells when a node has gone; the runner keeps order, claims and Records, so nodes share nothing else.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.machine.hardware import gpus
from bench.machine.threads import available_threads, set_omp_wait_policy
from bench.machine.versions import VERSION
from bench.plan.base import Plan
from bench.record.cells import EfficiencyCell, needs
from bench.record.files import atomic_write
from bench.record.paths import checkpoint_path, history_path, predictions_path, record_path, weights_path
from bench.record.store import StoreError
from bench.runner.executors import ray_cluster
from bench.runner.executors.base import Event, Job, Wake
from bench.runner.executors.ray_cluster import Cluster, Shape
from bench.runner.executors.ray_worker import RayWorker, Said, run_stamp
from bench.sweep.config import ConfigError, Loaded

if TYPE_CHECKING:
    from ray.actor import ActorHandle

TICK_S = 5.0  # how often the cluster is looked at while a job waits for a place
ATTEMPTS = 3  # to get a worker
LEAVE_S = 3.0  # workers have this long to clear up at the end
CACHES = ("largest_batch", "flops", "ceilings")  # of efficiency jobs, in the run directory
# What decides how a Cell is computed is the driver's on every node; paths (MEDBENCH_DATA, ...) are each node's own.
COMPUTING = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "MEDBENCH_SCAN_BACKEND",
    "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip


@dataclass(eq=False, slots=True)
class _Place:
    """A worker as the driver knows it; ``node`` is "" until the worker has said its first word on a job."""

    worker: ActorHandle[RayWorker]
    alone: bool
    job: Job | None = None
    node: str = ""
    stopping: bool = False


class RayExecutor:
    """Runs jobs on a Ray cluster, which is joined, or started, when the first job is to be placed.

    Args:
        address: ``auto`` or ``host:port`` of a cluster that this machine is a node of; None starts one of this machine.
        shape: resources of an accuracy job.
        device: ``cpu`` or ``cuda:N``, as planned.
        trains: whether there may be jobs that do not run alone.
        plugins: contents of plug-in files by name.
        download: whether nodes may fetch missing dataset files.
    """

    def __init__(
        self, address: str | None, shape: Shape, device: str, trains: bool, plugins: Mapping[str, bytes], download: bool
    ) -> None:
        self.address, self.shape, self.device, self.trains = address, shape, device, trains
        self.plugins, self.download = plugins, download
        self.places: list[_Place] = []
        self._cluster: Cluster | None = None
        self._said: deque[tuple[_Place, Said | Exception]] = deque()
        self._capacity, self._looked = 0, 0.0
        self._in_vain = 0  # workers in a row that did not come to be
        self._wake = Wake()
        set_omp_wait_policy()

    # --- the protocol ------------------------------------------------------------------------------------------------

    @property
    def parallel(self) -> int:
        """How many accuracy jobs the cluster has room for now."""
        if time.monotonic() - self._looked > TICK_S:
            self._capacity, self._looked = self.cluster.capacity(self.shape), time.monotonic()
        return max(1, self._capacity)

    def room(self, job: Job) -> bool:
        """Say whether ``job`` would start about now.

        Where others may join the cluster, one job more than fits is taken: it starts as soon as a node has come, and
        tells an autoscaler that there is a need.
        """
        busy = [place for place in self.places if place.job]
        if job.alone or any(place.alone for place in busy):
            return not busy
        return len(busy) < self.parallel + (self.address is not None)

    def submit(self, job: Job) -> None:
        """Give ``job`` to a worker that has none, or ask Ray for a new one."""
        for place in [place for place in self.places if not place.job and place.alone != job.alone]:
            self._dismiss(place)  # it would keep its resources from this job
        place = next((place for place in self.places if not place.job), None) or self._opened(job.alone)
        place.job, place.node, place.stopping = job, "", False
        inputs = {} if self.cluster.own else _inputs(job)
        answers = place.worker.run.remote(job, run_stamp(job.out), inputs)
        threading.Thread(target=self._listen, args=(place, answers, self.cluster.ray.get), daemon=True).start()

    def wait(self, timeout_s: float | None) -> list[Event]:
        """Sleep until a worker speaks or is lost, :meth:`wake` is called or the time is over."""
        for place in [place for place in self.places if not place.job]:
            self._dismiss(place)  # the runner has nothing for it: others may need the resources
        if any(not place.node for place in self.places):
            timeout_s = TICK_S if timeout_s is None else min(timeout_s, TICK_S)
        if not self._said:
            select.select([self._wake.reader], [], [], timeout_s)
        self._wake.clear()
        events = []
        while self._said:
            place, said = self._said.popleft()
            if place in self.places and place.job:  # else dismissed meanwhile
                events.append(self._lost(place, said) if isinstance(said, Exception) else self._hear(place, said))
        return events

    def wake(self) -> None:
        """Make :meth:`wait` return; safe in a signal handler and in threads."""
        self._wake.up()

    def cancel(self, ticket: str, gently: bool) -> None:
        """End a job; gently lets a training keep a checkpoint after its epoch."""
        for place in self.places:
            if place.job and place.job.ticket == ticket:
                place.stopping = True
                if place.node:
                    place.worker.cancel.remote(ticket, gently)
                else:
                    self.cluster.end([place.worker])

    def close(self) -> None:
        """End every worker, and the cluster if it is ours."""
        if self._cluster:
            self._cluster.end([place.worker for place in self.places if not place.node])
            self._cluster.end([place.worker for place in self.places if place.node], LEAVE_S)
            self.places.clear()
            self._cluster.close()
            self._cluster = None
        self._wake.close()

    # --- places ------------------------------------------------------------------------------------------------------

    @property
    def cluster(self) -> Cluster:
        """The cluster, joined at first use."""
        if self._cluster is None:
            self._cluster = ray_cluster.join(self.address, self.shape.gpus > 0)
            if self.trains and not self._cluster.capacity(self.shape):
                raise ConfigError(self._cluster.no_place(self.shape))
        return self._cluster

    def _opened(self, alone: bool) -> _Place:
        options = self.cluster.whole_node(self.shape) if alone else self.shape.options()
        environment = {name: os.environ.get(name) for name in COMPUTING}
        device = "cpu" if self.device == "cpu" else "cuda:0"
        plugins = {} if self.cluster.own else self.plugins
        settings = (VERSION, device, self.shape.threads, environment, plugins, self.download, self.cluster.folder)
        place = _Place(self.cluster.worker(RayWorker, options, *settings), alone)
        self.places.append(place)
        return place

    def _dismiss(self, place: _Place) -> None:
        self.places.remove(place)
        place.worker.leave.remote()  # Ray ends an actor that nobody refers to any more when it has done its work

    # --- what workers say --------------------------------------------------------------------------------------------

    def _listen(self, place: _Place, answers: Iterable[object], get: Callable[[object], Said]) -> None:
        """In a thread: pass on what a worker says of a job, or why nothing more will come."""
        try:
            for answer in answers:
                self._said.append((place, get(answer)))
                self.wake()
        except Exception as error:
            self._said.append((place, error))
            self.wake()

    def _hear(self, place: _Place, said: Said) -> Event:
        assert place.job
        job, place.node, self._in_vain = place.job, said.node, 0
        if said.event.kind in ("progress", "part"):
            return said.event
        place.job = None
        try:
            for name, content in said.files.items():
                path = job.out / name
                before = path.read_bytes() if name.startswith("logs/") and path.is_file() else b""
                atomic_write(path, before + content)
        except StoreError as error:
            return Event(job.ticket, "lost", reason=str(error))
        return said.event

    def _lost(self, place: _Place, error: Exception) -> Event:
        """A worker has gone, with its node or alone."""
        assert place.job
        self.places.remove(place)
        self._looked = 0.0
        if place.stopping:
            return Event(place.job.ticket, "stopped")
        reason = ray_cluster.why_lost(error)
        self._in_vain += not place.node
        if "No module named" in reason or "of medbench" in reason or self._in_vain >= ATTEMPTS:
            raise ConfigError(f"a node of the Ray cluster cannot run cells: {reason}; install the same medbench there")
        return Event(place.job.ticket, "lost", reason=f"node {place.node}: {reason}" if place.node else reason)


def make(loaded: Loaded, plan: Plan) -> RayExecutor:
    """Return the executor of a sweep whose ``run.executor`` is ``ray``."""
    run, cores = loaded.sweep.run, available_threads()
    jobs = 1 if isinstance(run.pack, str) else run.pack  # that share the cores, or a GPU
    if plan.device == "cpu":
        shape = Shape(run.threads or max(1, cores // jobs), 0.0, run.ray_memory_gib)
    else:
        shape = Shape(run.threads or max(1, cores // (jobs * len(gpus()))), 1.0 / jobs, run.ray_memory_gib)
    names = [name for name in loaded.sweep.plugins if name.endswith(".py")]
    plugins = {name: (loaded.base / name).read_bytes() for name in names}
    trains = any(not isinstance(plan.cells[key], EfficiencyCell) for key in plan.cells.keys() - plan.unsupported.keys())
    return RayExecutor(run.ray_address, shape, plan.device, trains, plugins, run.download)


def _inputs(job: Job) -> dict[str, bytes]:
    """The files of the run directory that a job reads: path there, content."""
    wanted: list[Path] = [checkpoint_path(job.out, job.key)]
    for key in needs(job.cell):
        of_a_cell = (record_path, history_path, predictions_path, weights_path)
        wanted += [place(job.out, key) for place in of_a_cell]
    if job.alone:
        wanted += [path for name in CACHES for path in (job.out / name).rglob("*")]
    found = {}
    for path in wanted:
        with contextlib.suppress(OSError):  # it is not there, as often
            found[path.relative_to(job.out).as_posix()] = path.read_bytes()
    return found
