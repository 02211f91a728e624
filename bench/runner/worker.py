"""What runs inside a Cell's own process: isolate, execute, send back one Result or one error.

The process is forked from a forkserver that has imported torch and timm and never touched CUDA, so it starts in
a few hundredths of a second and inherits no state of another Cell.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType

from bench.errors import PLACE_FAULTS, BenchError
from bench.record.cells import (
    AccuracyCell,
    Cell,
    Context,
    MustRunAlone,
    Result,
    Stopped,
    TransferCell,
    cell_key,
    tuning_seed,
)
from bench.record.paths import log_path
from bench.record.types import Fields
from bench.runner.executors.base import Job, Message, Send

__all__ = ["Job", "environment", "run_job", "work"]

SOCKET_FOLDER = "MEDBENCH_FORKSERVER_FOLDER"  # tells the forkserver what to remove when its driver was killed


class StopRequest:
    """Whether this process was asked to end (SIGTERM). Who never asks is ended at once."""

    def __init__(self) -> None:
        self.requested = self.listening = False

    def __call__(self) -> bool:
        """Say whether to stop; from the first call on, the caller is trusted to do so at its next good moment."""
        self.listening = True
        return self.requested

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take the signal."""
        if not self.listening:
            os._exit(1)
        self.requested = True


def work(connection: Connection, job: Job) -> None:
    """Run a Job in this process, which serves nothing else; messages as of :func:`run_job`."""
    stop = StopRequest()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what Ctrl-C means
    signal.signal(signal.SIGTERM, stop.handle)
    die_with_driver()
    redirect_output(log_path(job.out, job.key))
    take_place(job)
    with contextlib.suppress(BrokenPipeError):  # the driver has gone: so shall we, within moments
        run_job(job, connection.send, stop)
    connection.close()


def run_job(job: Job, send: Send, stop: Callable[[], bool]) -> None:
    """Execute a Job and tell what happens.

    Sends any number of ``("progress", dict)`` and ``("part", Cell, Result, environment, seconds)``, then one of
    ``("done", Result, environment)``, ``("error", status, reason)``, ``("stopped",)`` after ``stop()`` was true,
    ``("lost", reason)`` when this place cannot be written to, ``("alone", reason)`` when the job must not share its
    process.
    """
    last: Message
    try:
        last = ("done", *_execute(job, send, stop))
    except Stopped:
        last = ("stopped",)
    except MustRunAlone as error:
        last = ("alone", str(error))
    except BaseException as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        last = ("lost", _reason(error)) if _is_of_the_place(error) else ("error", _status(error), _reason(error))
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    send(last)


def die_with_driver() -> None:
    """End this process when the driver is gone, however it died: nobody would read the result."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # a group of its own: whatever it starts ends with it
    with contextlib.suppress(OSError, AttributeError):
        # Killed with the forkserver, which ends with the driver; this holds even where a library keeps the GIL.
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="driver-watch").start()


def redirect_output(log: Path) -> None:
    """Send what is printed to the Cell's log; to nowhere, where that cannot be written."""
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError:
        handle = os.open(os.devnull, os.O_WRONLY)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def take_place(job: Job) -> None:
    """Keep to the cores and GPUs of the job; before CUDA and the OpenMP threads start."""
    if job.visible_gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = job.visible_gpus
    if job.cores and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(OSError):  # the set of allowed cores has shrunk meanwhile
            os.sched_setaffinity(0, job.cores)
    with contextlib.suppress(OSError):  # when memory runs out, the kernel should take this process, not the driver
        Path("/proc/self/oom_score_adj").write_text("500")


def _execute(job: Job, send: Send, stop: Callable[[], bool]) -> tuple[Result, Fields]:
    import torch

    from bench import registry

    torch.set_num_threads(job.threads)
    from bench.plan.fingerprints import changed_since

    registry.load_plugins(job.plugins, job.plugin_base)
    if changed := changed_since(job.cell):
        raise RuntimeError(f"{changed} changed after the run was planned; run the same command again")
    context = Context(
        device=job.device,
        threads=job.threads,
        data_root=job.data_root,
        cache_dir=None,
        out=job.out,
        progress=lambda event: send(("progress", event)),
        time_limit_s=job.time_limit_s,
        stop=stop,
        keep_weights=job.keep_weights,
    )
    started = time.perf_counter()
    result = _frozen(job, context, send) if job.more or _is_frozen(job.cell) else _measured(job, context)
    result.timings.setdefault("worker_s", time.perf_counter() - started)
    return result, environment(job.device)


def _is_frozen(cell: Cell) -> bool:
    return isinstance(cell, AccuracyCell) and cell.track == "frozen"


def _frozen(job: Job, context: Context, send: Send) -> Result:
    """Score the Cells of a job on the features they share; each but the job's own is sent at once."""
    from bench.train.frozen.run import run_frozen

    cells = {cell_key(cell): cell for cell in (*job.more, job.cell) if isinstance(cell, AccuracyCell)}
    where, began = environment(job.device), time.perf_counter()
    last = Result({})
    for key, last in run_frozen(list(cells.values()), context):
        if key != job.key:
            send(("part", cells[key], last, where, time.perf_counter() - began))
            began = time.perf_counter()
    return last


def _measured(job: Job, context: Context) -> Result:
    if isinstance(job.cell, AccuracyCell) and tuning_seed(job.cell.recipe) is not None:
        from bench.train.tuned import run_tuned

        return run_tuned(job.cell, context)
    if isinstance(job.cell, AccuracyCell):
        from bench.train.accuracy import run_accuracy

        return run_accuracy(job.cell, context)
    if isinstance(job.cell, TransferCell):
        from bench.train.transfer import run_transfer

        return run_transfer(job.cell, context)
    from bench.measure.efficiency import measure_round

    assert job.round is not None
    return measure_round(job.cell, context, job.round)


def environment(device: str) -> Fields:
    """Describe what a Cell ran on and with: enough to know which figures may be compared."""
    import torch

    from bench.machine.hardware import hardware_name, machine_info, mps_runs
    from bench.machine.threads import omp_wait_policy
    from bench.machine.versions import library_versions
    from bench.ops import chosen_backend

    info = machine_info()
    found = {
        "device": device,
        "hardware": hardware_name(device, info),
        "cpu_model": info["cpu_model"],
        "cpu_cores": info["cpu_cores"],
        "memory_gib": info["memory_gib"],
        "threads": torch.get_num_threads(),
        "omp_wait_policy": omp_wait_policy(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "scan_backend": chosen_backend(device),
        "versions": library_versions(),
    }
    if device.startswith("cuda"):
        found["cuda"] = torch.version.cuda
        found |= {"mps": True} if mps_runs() else {}
    return found


def _is_of_the_place(error: BaseException) -> bool:
    """Say whether a fault is of the disk that this process was given: another time or place it would not happen."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in PLACE_FAULTS:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _status(error: BaseException) -> str:
    from bench.machine.memory import is_out_of_memory

    return "oom" if is_out_of_memory(error) else "failed"


def _reason(error: BaseException) -> str:
    """One line for people, whatever the error does when it is asked for its text; of our own faults, the place too."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    try:
        lines = str(error).strip().splitlines()
    except Exception as second:
        lines = [f"(its text cannot be had: {type(second).__name__})"]
    text = "".join(c if c.isprintable() else "?" for c in lines[0][:340]) if lines else ""
    if isinstance(error, BenchError):
        return text
    return f"{type(error).__name__}: {text}{where}"[:400]
