"""A Ray cluster for the executor: joined or started, quiet, and asked what fits where. Torch-free."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine.hardware import gpus
from bench.machine.threads import available_threads
from bench.sweep.config import ConfigError

CONNECT_S = 5.0
OBJECT_STORE_BYTES = 80 << 20  # of a cluster of our own: results of workers on this machine, a few megabytes each
FOLDER = "medbench-ray-"
LONGEST_BASE = 20  # characters: Ray's sockets lie 65 deeper, and the system allows 107
ACTOR: Mapping[str, Any] = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 4}

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
    """Resources of a Cell: CPUs (its threads; 0: to be decided by the nodes), share of a GPU, memory in GiB."""

    threads: int
    gpus: float = 0.0
    memory_gib: float | None = None

    def options(self) -> dict[str, Any]:
        """As Ray wants them."""
        found: dict[str, Any] = {"num_cpus": self.threads, "num_gpus": self.gpus}
        if self.memory_gib:
            found["memory"] = int(self.memory_gib * 2**30)
        return found

    def __str__(self) -> str:
        parts = [f"{self.threads} CPU{'s' * (self.threads != 1)} (--threads)"]
        if self.gpus:
            parts.append(f"{self.gpus:g} GPU (1 / --pack)")
        if self.memory_gib:
            parts.append(f"{self.memory_gib:g} GiB (run.ray_memory_gib)")
        return ", ".join(parts)


@dataclass(slots=True)
class Cluster:
    """A cluster that this process has joined.

    Attributes:
        ray: the module.
        name: for messages.
        own: whether it was started here, for this run alone: all of it is this machine.
        joined_before: whether this process was a driver of it already, who will want to go on.
        folder: where a cluster of our own keeps its files.
    """

    ray: Any
    name: str
    own: bool
    joined_before: bool
    folder: Path | None = None

    def nodes(self) -> list[dict[str, Any]]:
        """The nodes that are alive."""
        return [node for node in self.ray.nodes() if node["Alive"]]

    def fitted(self, shape: Shape) -> Shape:
        """Decide what was left open: as many threads for a Cell as its share of a GPU entitles it to, on any node."""
        if shape.threads >= 1:
            return shape
        shares = [
            int(node["Resources"].get("CPU", 0) * shape.gpus / node["Resources"]["GPU"])
            for node in self.nodes()
            if node["Resources"].get("GPU", 0) >= shape.gpus
        ]
        return dataclasses.replace(shape, threads=max(1, min(shares, default=1)))

    def capacity(self, shape: Shape) -> int:
        """Count the Cells of ``shape`` that the nodes hold at a time, if nobody else is there."""
        wanted = {"CPU": shape.threads, "GPU": shape.gpus, "memory": (shape.memory_gib or 0) * 2**30}
        wanted = {name: amount for name, amount in wanted.items() if amount}
        return sum(
            int(min(node["Resources"].get(name, 0) / amount + 1e-9 for name, amount in wanted.items()))
            for node in self.nodes()
        )

    def whole_node(self, shape: Shape) -> dict[str, Any]:
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
        if not self.joined_before:
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
    if ray.is_initialized():
        return Cluster(ray, "the Ray cluster of this process", own=False, joined_before=True)
    address = address or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        return _started(ray, with_gpus)
    assert address
    _check(address)
    with _own_signals(), _told(address):
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    return Cluster(ray, f"the Ray cluster at {address}", own=False, joined_before=False)


def _started(ray: Any, with_gpus: bool) -> Cluster:
    # A token for this cluster alone, so that nobody else on the machine may use it and none is kept in the home folder.
    for name, value in {**OWN, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items():
        os.environ.setdefault(name, value)
    base = tempfile.gettempdir()
    if len(base) > LONGEST_BASE:
        base = "/tmp"
    _sweep(Path(base))
    folder = Path(tempfile.mkdtemp(dir=base, prefix=f"{FOLDER}{os.getpid()}-"))
    try:
        with _own_signals(), _told("local"):
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
    return Cluster(ray, "the Ray cluster of this machine", own=True, joined_before=False, folder=folder)


def _check(address: str) -> None:
    """Find out within seconds whether somebody listens: Ray itself takes minutes, and then ends the process."""
    if "://" in address:
        raise ConfigError(
            f"--ray-address {address}: write host:port of the cluster's head, or auto, and start the driver on a node"
        )
    if address == "auto":
        from ray._private.services import find_bootstrap_address

        found = os.environ.get("RAY_ADDRESS") or find_bootstrap_address(None)
        if not found:
            raise ConfigError(
                "--ray-address auto: no Ray cluster has a node on this machine; `ray start` makes one a node, "
                "and without --ray-address bench starts a cluster of this machine alone"
            )
    else:
        found = address
    host, _, port = found.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--ray-address {address}: write host:port of the cluster's head, or auto")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise ConfigError(
            f"--ray-address {address}: no Ray cluster answers at {found} within {CONNECT_S:g} s ({error}); "
            "`ray status` on its head says whether it runs"
        ) from error


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
    """Turn what Ray raises, or how it ends the process, into a message."""
    try:
        yield
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())[:400] or type(error).__name__
        if isinstance(error, SystemExit):
            text = "it does not answer as one"
        where = "cannot start a Ray cluster on this machine" if address == "local" else "cannot join the Ray cluster"
        raise ConfigError(f"{where} (--ray-address {address}): {text}") from error


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


def _sweep(base: Path) -> None:
    """Remove the folders of clusters whose driver was killed."""
    for path in base.glob(f"{FOLDER}*"):
        pid = path.name[len(FOLDER) :].partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)


def why_lost(error: BaseException) -> str:
    """One line on why a worker is gone, from what Ray raised."""
    text = str(error).strip()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "No module named" in text:
        return next(line for line in lines if "No module named" in line)[:300]
    if "node" in text.lower() and ("died" in text.lower() or "dead" in text.lower()):
        return "the node was lost"
    if "unavailable" in text.lower():
        return "the node was lost, or cannot be reached"
    if "memory" in text.lower() and "OOM" in text:
        return "Ray ended it because the node ran out of memory"
    if "worker process" in text.lower() or "exit" in text.lower():
        return "the process that held its place was killed"
    return (lines[0] if lines else type(error).__name__)[:300]
