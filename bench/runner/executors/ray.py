"""Jobs on a Ray cluster: an existing one, or one of this machine that ends with the run.

Ray finds the places: each is an actor with the resources of a Cell (:mod:`bench.runner.executors.ray_worker`), and
tells when a node has gone; the runner keeps order, claims and Records, so nodes share nothing else.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bench.machine.threads import available_threads, set_omp_wait_policy
from bench.machine.versions import VERSION
from bench.plan.base import Plan
from bench.record.cells import EfficiencyCell, needs
from bench.record.files import atomic_write
from bench.record.paths import checkpoint_path, history_path, predictions_path, record_path, weights_path
from bench.record.store import StoreError
from bench.runner.executors import ray_cluster
from bench.runner.executors.base import Event, Job, Wake
from bench.runner.executors.ray_cluster import Shape
from bench.runner.executors.ray_worker import Assignment, RayWorker, Reply, WorkerSetup, run_stamp
from bench.sweep.config import ConfigError, Loaded

TICK_S = 5.0  # how often the cluster is looked at while a job waits for a place
PATIENCE_S = 300.0  # how long a cluster may have no place at all before the run ends
ATTEMPTS = 5  # to get a worker
LEAVE_S = 3.0  # workers have this long to clear up at the end
CACHES = ("largest_batch", "flops", "ceilings")  # of efficiency jobs, in the run directory
# What decides how a Cell is computed is the driver's on every node; paths (MEDBENCH_DATA, ...) are each node's own.
COMPUTING = (
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MKL_NUM_THREADS", "MEDBENCH_SCAN_BACKEND",
    "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE",
)  # fmt: skip


@dataclass(eq=False, slots=True)
class _Place:
    """A worker as the driver knows it."""

    actor: Any
    alone: bool
    ready: bool = False
    job: Job | None = None
    node: str = ""


class RayExecutor:
    """Runs jobs on a Ray cluster, which is joined, or started, when the first job is to be placed.

    Args:
        address: ``auto`` or ``host:port`` of a cluster that this machine is a node of; None starts one of this machine.
        shape: resources of an accuracy job; fewer threads than 1: decided by the nodes.
        device: ``cpu`` or ``cuda:N``, as planned.
        trains: whether there may be jobs that do not run alone.
        plugins: contents of plug-in files by name.
        download: whether nodes may fetch missing dataset files.
    """

    def __init__(
        self,
        address: str | None,
        shape: Shape,
        device: str,
        trains: bool = True,
        plugins: Mapping[str, bytes] | None = None,
        download: bool = True,
    ) -> None:
        self.address, self.shape, self.device, self.trains = address, shape, device, trains
        self.plugins, self.download = dict(plugins or {}), download
        self.cluster: ray_cluster.Cluster | None = None
        self.places: list[_Place] = []
        self.waiting: deque[Job] = deque()
        self.events: deque[Event] = deque()
        self._answers: deque[tuple[_Place, Any]] = deque()
        self._capacity, self._looked = 0, 0.0
        self._nowhere_since: float | None = None
        self._in_vain = 0  # workers in a row that did not come to be
        self._wake = Wake()
        set_omp_wait_policy()

    # --- the protocol ------------------------------------------------------------------------------------------------

    @property
    def parallel(self) -> int:
        """How many accuracy jobs the cluster has room for now."""
        self._join()
        if time.monotonic() - self._looked > TICK_S:
            self._look()
        return max(1, self._capacity)

    def room(self, job: Job) -> bool:
        """Say whether ``job`` would start about now.

        Where others may join the cluster, one job more than fits is taken: it starts as soon as a node has come, and
        tells an autoscaler that there is a need.
        """
        running = [place for place in self.places if place.job]
        if job.alone or any(place.alone for place in running) or any(waiting.alone for waiting in self.waiting):
            return not running and not self.waiting
        more = 0 if self.address is None else 1
        return len(running) + len(self.waiting) < self.parallel + more

    def submit(self, job: Job) -> None:
        """Give ``job`` to a free worker, or ask Ray for a new one."""
        self._join()
        if job.alone:
            for place in [place for place in self.places if not place.alone]:
                self._dismiss(place)  # it would keep its resources from this job
        self.waiting.append(job)
        self._place_waiting()

    def wait(self, timeout_s: float | None) -> list[Event]:
        """Sleep until a worker speaks or is lost, :meth:`wake` is called or the time is over."""
        for place in [place for place in self.places if place.ready and not place.job]:
            self._dismiss(place)  # the runner has nothing for it: others may need the resources
        if self.waiting:
            timeout_s = TICK_S if timeout_s is None else min(timeout_s, TICK_S)
        if not self.events and not self._answers:
            select.select([self._wake.reader], [], [], timeout_s)
        self._wake.clear()
        while self._answers:
            self._take(*self._answers.popleft())
        self._place_waiting()
        events = list(self.events)
        self.events.clear()
        return events

    def wake(self) -> None:
        """Make :meth:`wait` return; safe in a signal handler and in Ray's threads."""
        self._wake.up()

    def cancel(self, ticket: str, gently: bool) -> None:
        """End a job; gently lets a training keep a checkpoint after its epoch."""
        for job in [job for job in self.waiting if job.ticket == ticket]:
            self.waiting.remove(job)
            self.events.append(Event(ticket, "stopped"))
        for place in self.places:
            if place.job and place.job.ticket == ticket:
                place.actor.cancel.remote(ticket, gently)

    def close(self) -> None:
        """End every worker, and the cluster if it is ours."""
        try:
            self._leave()
        finally:
            if self.cluster:
                for place in self.places:
                    with contextlib.suppress(Exception):
                        self.cluster.ray.kill(place.actor)
                self.places.clear()
                self.cluster.close()
                self.cluster = None
            self._wake.close()

    # --- the cluster -------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        if self.cluster is not None:
            return
        self.cluster = ray_cluster.join(self.address, self.shape.gpus > 0)
        self.shape = self.cluster.fitted(self.shape)
        self._look()
        if self.trains and not self._capacity:
            raise ConfigError(self.cluster.no_place(self.shape))

    def _look(self) -> None:
        assert self.cluster
        self._capacity = self.cluster.capacity(self.shape)
        self._looked = time.monotonic()

    def _place_waiting(self) -> None:
        """Give waiting jobs to free workers, have as many workers as there are jobs, and give up where none can be."""
        for place in self.places:
            if self.waiting and place.ready and not place.job and place.alone == self.waiting[0].alone:
                self._start(place, self.waiting.popleft())
        coming = sum(not place.ready for place in self.places)
        for job in list(self.waiting)[coming:]:
            self._open(job.alone)
        for place in [place for place in self.places if not place.ready][len(self.waiting) :]:
            self._dismiss(place)  # asked for in vain: a free worker took the job
        if not self.waiting or any(place.ready for place in self.places):
            self._nowhere_since = None
        elif not any(job.alone for job in self.waiting):
            assert self.cluster
            self._look()
            now = time.monotonic()
            self._nowhere_since = None if self._capacity else self._nowhere_since or now
            if self._nowhere_since is not None and now - self._nowhere_since > PATIENCE_S:
                raise ConfigError(f"{self.cluster.no_place(self.shape)}. The same command goes on where it stopped")

    def _open(self, alone: bool) -> None:
        assert self.cluster
        environment = {name: os.environ.get(name) for name in COMPUTING}
        device = "cpu" if self.device == "cpu" else "cuda:0"
        plugins = {} if self.cluster.own else self.plugins
        folder = self.cluster.folder
        setup = WorkerSetup(device, self.shape.threads, environment, plugins, self.download, folder, os.nice(0))
        options = self.cluster.whole_node(self.shape) if alone else self.shape.options()
        place = _Place(self.cluster.ray.remote(RayWorker).options(**options, **ray_cluster.ACTOR).remote(setup), alone)
        self.places.append(place)
        self._ask(place, place.actor.hello.remote())

    def _start(self, place: _Place, job: Job) -> None:
        assert self.cluster
        place.job = job
        inputs = {} if self.cluster.own else {name: self.cluster.ray.put(data) for name, data in _inputs(job)}
        self._ask(place, place.actor.start.remote(Assignment(job, run_stamp(job.out), inputs)))

    def _dismiss(self, place: _Place) -> None:
        assert self.cluster
        self.places.remove(place)
        if place.ready and not place.job:
            place.actor.leave.remote()
            place.actor = None  # Ray ends an actor that nobody refers to any more when it has done its work
        else:
            self.cluster.ray.kill(place.actor)

    def _leave(self) -> None:
        """Let workers end their jobs and remove their folders, which a kill would leave behind."""
        leaving = [place.actor.leave.remote() for place in self.places if place.ready]
        if leaving and self.cluster:
            with contextlib.suppress(Exception):
                self.cluster.ray.wait(leaving, num_returns=len(leaving), timeout=LEAVE_S)

    # --- what workers say --------------------------------------------------------------------------------------------

    def _ask(self, place: _Place, answer: Any) -> None:
        """Have the answer, or the news that there will be none, taken in by :meth:`wait`."""

        def arrived(future: Any) -> None:
            self._answers.append((place, future))
            self.wake()

        answer.future().add_done_callback(arrived)

    def _take(self, place: _Place, answer: Any) -> None:
        if place not in self.places:
            return  # dismissed meanwhile
        try:
            reply = answer.result()
        except Exception as error:
            self._lost(place, error)
            return
        if isinstance(reply, Reply):
            self._hear(place, reply)
            return
        place.ready, place.node, self._in_vain = True, reply["node"], 0
        if reply["version"] != VERSION:
            raise ConfigError(
                f"node {place.node} has medbench {reply['version']}, this is {VERSION}; "
                "install the same version on all nodes"
            )
        self._look()

    def _hear(self, place: _Place, reply: Reply) -> None:
        assert place.job
        job, last = place.job, reply.events[-1]
        if last.kind in ("progress", "part"):
            self._ask(place, place.actor.more.remote())
        else:
            place.job = None
            try:
                _keep_files(job.out, reply.files)
            except StoreError as error:
                reply = Reply([*reply.events[:-1], Event(job.ticket, "lost", reason=str(error))])
        self.events.extend(reply.events)

    def _lost(self, place: _Place, error: Exception) -> None:
        """A worker has gone, with its node or alone."""
        assert self.cluster
        with contextlib.suppress(Exception):
            self._dismiss(place)
        self._look()
        reason = ray_cluster.why_lost(error)
        if place.job:
            where = f"node {place.node}: " if place.node else ""
            self.events.append(Event(place.job.ticket, "lost", reason=where + reason))
        elif not place.ready:
            self._in_vain += 1
            if "No module named" in reason:
                raise ConfigError(f"a node of the Ray cluster cannot run cells: {reason}; install medbench there too")
            if self._in_vain >= ATTEMPTS:
                raise ConfigError(f"{self.cluster.name} gives no place for cells, {ATTEMPTS} times in a row: {reason}")


def make(loaded: Loaded, plan: Plan) -> RayExecutor:
    """Return the executor of a sweep whose ``run.executor`` is ``ray``."""
    run = loaded.sweep.run
    cores = available_threads()
    pack = 1 if isinstance(run.pack, str) else run.pack
    if plan.device == "cpu":
        shape = Shape(run.threads or max(1, cores // pack), 0.0, run.ray_memory_gib)
    else:
        shape = Shape(run.threads, 1.0 / pack, run.ray_memory_gib)
    names = [name for name in loaded.sweep.plugins if name.endswith(".py")]
    plugins = {name: (loaded.base / name).read_bytes() for name in names}
    trains = any(
        not isinstance(cell, EfficiencyCell) and key not in plan.unsupported for key, cell in plan.cells.items()
    )
    return RayExecutor(run.ray_address, shape, plan.device, trains, plugins, run.download)


def _inputs(job: Job) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the run directory that a job reads: path there, content."""
    wanted = [checkpoint_path(job.out, job.key)]
    for key in needs(job.cell):
        of_a_cell = (record_path, history_path, predictions_path, weights_path)
        wanted += [place(job.out, key) for place in of_a_cell]
    if job.alone:
        wanted += [path for name in CACHES for path in (job.out / name).rglob("*")]
    for path in wanted:
        with contextlib.suppress(OSError):  # it is not there, as often
            yield path.relative_to(job.out).as_posix(), path.read_bytes()


def _keep_files(out: Path, files: Mapping[str, bytes]) -> None:
    """Put what a job left on its node into the run directory. Raises StoreError."""
    for name, content in files.items():
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts:
            raise StoreError(f"a node sent a file {name!r}, which lies outside of {out}")
        path = out / name
        if parts[0] == "splits" and path.exists():
            continue
        if parts[0] == "logs":
            with contextlib.suppress(OSError):
                content = path.read_bytes() + content
        atomic_write(path, content)
