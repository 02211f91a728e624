"""What runs inside a Cell's own process: isolate, execute, send back one Result or one error.

The process is forked from a forkserver that has imported torch and timm and never touched CUDA, so it starts in
a few hundredths of a second and inherits no state of another Cell.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from bench.cells import AccuracyCell, Cell, Context, Result


@dataclass(frozen=True)
class Job:
    """One trip to a worker: a Cell, or one round of an efficiency Cell, and all it needs."""

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


def work(connection: Connection, job: Job) -> None:
    """Run a Job in this process: send ``("progress", dict)``, then ``("done", Result, dict)`` or ``("error", ...)``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what Ctrl-C means
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _die_with_driver()
    _redirect_output(job.out / "logs" / f"{job.key}.log")
    try:
        result, environment = _execute(connection, job)
        connection.send(("done", result, environment))
    except BaseException as error:
        traceback.print_exc()
        connection.send(("error", _status(error), _reason(error)))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.close()


def _die_with_driver() -> None:
    """End this process when the driver is gone, however it died: nobody would read the result."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="driver-watch").start()


def _redirect_output(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _execute(connection: Connection, job: Job) -> tuple[Result, dict[str, Any]]:
    import torch

    from bench import registry

    torch.set_num_threads(job.threads)
    from bench.plan import changed_since

    registry.load_plugins(job.plugins, job.plugin_base)
    if changed := changed_since(job.cell):
        raise RuntimeError(f"{changed} changed after the run was planned; run again")

    def progress(event: dict[str, Any]) -> None:
        connection.send(("progress", event))

    context = Context(
        device=job.device,
        threads=job.threads,
        data_root=job.data_root,
        cache_dir=None,
        out=job.out,
        progress=progress,
        time_limit_s=job.time_limit_s,
    )
    started = time.perf_counter()
    if isinstance(job.cell, AccuracyCell):
        from bench.training.accuracy import run_accuracy

        result = run_accuracy(job.cell, context)
    else:
        from bench.measure.efficiency import measure_round

        assert job.round is not None
        result = measure_round(job.cell, context, job.round)
    result.timings.setdefault("worker_s", time.perf_counter() - started)
    return result, environment(job.device)


def environment(device: str) -> dict[str, Any]:
    """Describe what a Cell ran on and with: enough to know which figures may be compared."""
    import torch

    from bench.measure.hardware import machine_facts
    from bench.ops import chosen_backend
    from bench.plan import hardware_name, library_versions, omp_wait_policy

    facts = machine_facts()
    found = {
        "device": device,
        "hardware": hardware_name(device, facts),
        "cpu_model": facts["cpu_model"],
        "cpu_cores": facts["cpu_cores"],
        "memory_gib": facts["memory_gib"],
        "threads": torch.get_num_threads(),
        "omp_wait_policy": omp_wait_policy(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "scan_backend": chosen_backend(device),
        "versions": library_versions(),
    }
    if device.startswith("cuda"):
        found["cuda"] = torch.version.cuda
    return found


def _status(error: BaseException) -> str:
    from bench.measure.memory import is_out_of_memory

    return "oom" if is_out_of_memory(error) else "failed"


def _reason(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}{where}"[:400]
