"""A Ray cluster for the executor: joined or started, quiet, and asked what fits where. Torch-free."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from bench.machine.hardware import gpus
from bench.machine.threads import available_threads
from bench.record.types import Fields
from bench.sweep.config import ConfigError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from bench.runner.executors.ray_worker import RayWorker

CONNECT_S = 5.0
OBJECT_STORE_BYTES = 80 << 20  # of a cluster of our own: results of workers on this machine, a few megabytes each
FOLDER = "medbench-ray-"
LONGEST_BASE = 20  # characters: Ray's sockets lie 65 deeper, and the system allows 107

# Read by Ray when it is imported or a node of ours starts; the user's own environment wins.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_py_gcs_connect_timeout_s": "10",
}
OWN = {
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 would have cells give way to everything else
    "RAY_memory_monitor_refresh_ms": "0",  # cells offer themselves to the kernel, which kills only what is too large
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Resources of a Cell: CPUs (its threads), share of a GPU, memory in GiB."""

    threads: int
    gpus: float = 0.0
    memory_gib: float | None = None

    def options(self) -> Fields:
        """As Ray wants them."""
        memory = {"memory": int(self.memory_gib * 2**30)} if self.memory_gib else {}
        return {"num_cpus": self.threads, "num_gpus": self.gpus, **memory}

    def __str__(self) -> str:
        text = f"{self.threads} CPU{'s' * (self.threads != 1)} (--threads)"
        text += f", {self.gpus:g} GPU (1 / --pack)" if self.gpus else ""
        return text + (f", {self.memory_gib:g} GiB (run.ray_memory_gib)" if self.memory_gib else "")


@dataclass(slots=True)
class Cluster:
    """A cluster that this process has joined.

    Attributes:
        ray: the module.
        name: for messages.
        own: whether it was started here, for this run alone: all of it is this machine.
        folder: where a cluster of our own keeps its files.
    """

    ray: ModuleType
    name: str
    own: bool
    folder: Path | None = None

    def nodes(self) -> list[Fields]:
        """The nodes that are alive."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def worker(self, kind: type[RayWorker], options: Fields, *settings: object) -> ActorHandle[RayWorker]:
        """Ask for an actor with the resources of ``options``; what it is told to do waits until it has a place."""
        rules = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 4}
        made: ActorHandle[RayWorker] = self.ray.remote(kind).options(**options, **rules).remote(*settings)
        return made

    def end(self, workers: Sequence[ActorHandle[RayWorker]], patience_s: float = 0.0) -> None:
        """End workers; with some patience they end their jobs and remove their folders, which a kill leaves behind."""
        with contextlib.suppress(Exception):
            if patience_s and (leaving := [worker.leave.remote() for worker in workers]):
                self.ray.wait(leaving, num_returns=len(leaving), timeout=patience_s)
        for worker in workers:
            with contextlib.suppress(Exception):
                self.ray.kill(worker)

    def capacity(self, shape: Shape) -> int:
        """Count the Cells of ``shape`` that the nodes hold at a time, if nobody else is there."""
        wanted = {"CPU": shape.threads, "GPU": shape.gpus, "memory": (shape.memory_gib or 0) * 2**30}
        wanted = {name: amount for name, amount in wanted.items() if amount}
        return sum(
            int(min(node["Resources"].get(name, 0) / amount + 1e-9 for name, amount in wanted.items()))
            for node in self.nodes()
        )

    def whole_node(self, shape: Shape) -> Fields:
        """All CPUs of the driver's node, and its GPUs for a Cell that needs one: nothing of Ray runs beside it.

        Efficiency Cells stay on the driver's node: their keys hold its hardware, and rounds are compared.

        Raises:
            ConfigError: it offers none.
        """
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        mine = self.ray.get_runtime_context().get_node_id()
        resources: dict[str, float] = next((node["Resources"] for node in self.nodes() if node["NodeID"] == mine), {})
        cpus, count = resources.get("CPU", 0), resources.get("GPU", 0)
        if cpus < 1 or (shape.gpus and count < 1):
            what = "GPU" if cpus >= 1 else "CPU"
            raise ConfigError(
                f"efficiency cells are timed on the node of the driver, but this one offers Ray no {what}; start the "
                f"driver on a node with what is to be measured, or leave them out with --kinds accuracy ({self.name})"
            )
        strategy = NodeAffinitySchedulingStrategy(mine, soft=False)
        return {"num_cpus": cpus, "num_gpus": count if shape.gpus else 0, "scheduling_strategy": strategy}

    def no_place(self, shape: Shape) -> str:
        """Say that nothing fits, and what there is."""
        found = [
            f"{node['NodeManagerHostname']}: {node['Resources'].get('CPU', 0):g} CPU, "
            f"{node['Resources'].get('GPU', 0):g} GPU, {node['Resources'].get('memory', 0) / 2**30:.1f} GiB"
            for node in self.nodes()
        ]
        return f"no node of {self.name} has room for a cell: {shape}. Nodes: {'; '.join(found) or 'none'}"

    def close(self) -> None:
        """Leave the cluster, and end it if it is ours."""
        self.ray.shutdown()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def join(address: str | None, with_gpus: bool) -> Cluster:
    """Join the cluster at ``address``, or where ``RAY_ADDRESS`` says; else start one of this machine.

    Args:
        address: ``auto`` (a cluster that has a node on this machine) or ``host:port``.
        with_gpus: whether a cluster of this machine offers its GPUs.

    Raises:
        ConfigError: Ray is not installed, nobody answers, or this machine is no node of the cluster.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"--executor ray needs Ray: pip install 'medbench[ray]' ({error})") from error
    address = address or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        return _started(ray, with_gpus)
    assert address
    if address != "auto":
        _check(address)
    with _own_signals(), _told(f"cannot join the Ray cluster (--ray-address {address})"):
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    return Cluster(ray, f"the Ray cluster at {address}", own=False)


def _started(ray: ModuleType, with_gpus: bool) -> Cluster:
    # A token for this cluster alone, so that nobody else on the machine may use it and none is kept in the home folder.
    for name, value in {**OWN, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
        os.environ.setdefault(name, value)
    base = tempfile.gettempdir()
    base = base if len(base) <= LONGEST_BASE else "/tmp"
    for path in Path(base).glob(f"{FOLDER}*"):  # of clusters whose driver was killed
        pid = path.name[len(FOLDER) :].partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=base, prefix=f"{FOLDER}{os.getpid()}-"))
    try:
        with _own_signals(), _told("cannot start a Ray cluster on this machine"):
            ray.init(
                address="local",
                num_cpus=available_threads(),
                num_gpus=len(gpus()) if with_gpus else 0,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return Cluster(ray, "the Ray cluster of this machine", own=True, folder=folder)


def _check(address: str) -> None:
    """Find out within seconds whether somebody listens: Ray itself takes minutes, and then ends the process."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ConfigError(
            f"--ray-address {address}: write host:port of the cluster's head, or auto, and start the driver on a node"
        )
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise ConfigError(
            f"--ray-address {address}: no Ray cluster answers at {address} within {CONNECT_S:g} s ({error}); "
            "`ray status` on its head says whether it runs"
        ) from error


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn what Ray raises, or how it ends the process, into a message."""
    try:
        yield
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what}: {' '.join(str(error).split())[:400] or type(error).__name__}") from error


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep our signal handlers: Ray puts its own in their place."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            with contextlib.suppress(ValueError, TypeError):  # not in the main thread; a handler not of Python
                signal.signal(number, handler)


def why_lost(error: BaseException) -> str:
    """One line on why a worker is gone, from the many that Ray raises."""
    text = " ".join(str(error).split())
    why = re.search(r"No module named '[^']+'|node \S+ has version .* of medbench.*|(died|dead) because [^.]+", text)
    return (why[0] if why else text or type(error).__name__)[:300]
