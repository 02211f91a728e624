"""Executes a Plan: one fresh process a Cell, Records written as each ends, resumed by running again.

The driver alone writes Records; it sleeps until a worker speaks or dies. Efficiency Cells come first, in rounds
interleaved over all of them, so that a drift of the machine hits all models alike.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import shutil
import signal
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from bench import store
from bench.cells import AccuracyCell, Cell, EfficiencyCell, Result, cell_label
from bench.config import Loaded
from bench.estimate import estimate_s
from bench.measure.combine import combine
from bench.plan import Plan, set_omp_wait_policy
from bench.store import Record
from bench.worker import Job, work

LOG_TAIL_LINES = 30


class Observer(Protocol):
    """Hears what happens, to show it."""

    def begin(self, jobs: int, cells: int, done: int, estimate_s: float) -> None:
        """The run starts: ``jobs`` (trips to a worker) to do; ``done`` of its ``cells`` are finished already."""

    def start(self, label: str, estimate_s: float) -> None:
        """A worker starts on what ``label`` says."""

    def progress(self, event: dict[str, Any]) -> None:
        """The worker is in a phase, an epoch; keys as in :class:`bench.cells.Context`."""

    def finish(self, label: str, record: Record | None, seconds: float) -> None:
        """A job ended; ``record`` is None after a round that is not the last."""

    def skip(self, estimate_s: float) -> None:
        """A job is not needed any more."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def close(self) -> None:
        """The run ended."""


@dataclass(slots=True)
class Outcome:
    """What a run did: the keys of its Cells, Records written now, Cells found done, how many of all failed."""

    out: Path
    keys: tuple[str, ...]
    written: list[Record] = field(default_factory=list)
    resumed: int = 0
    failed: int = 0
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class _Finished:
    result: Result
    environment: dict[str, Any]
    seconds: float


def execute(loaded: Loaded, plan: Plan, out: Path, observer: Observer, command: str = "") -> Outcome:
    """Run what of ``plan`` has no Record in ``out`` yet.

    Raises:
        StoreError: the run directory cannot be written.
    """
    with _only_driver(out):
        return _execute(loaded, plan, out, observer, command)


@contextlib.contextmanager
def _only_driver(out: Path) -> Iterator[None]:
    """Keep a second driver out of a run directory; the lock ends with its process, however that ends."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", timeout=0)
        with lock:
            yield
    except Timeout:
        raise store.StoreError(f"another bench run is using {out}; wait for it, or choose another --out") from None
    except FileExistsError:
        raise store.StoreError(f"{out} is a file, not a run directory; choose another with --out") from None


def _execute(loaded: Loaded, plan: Plan, out: Path, observer: Observer, command: str) -> Outcome:
    outcome = Outcome(out, tuple(plan.cells))
    store.write_json(out / "run.json", run_info(loaded, plan, command, store.read_run(out)))
    records, problems = store.read_records(out)
    for line in store.set_aside(out, problems):
        observer.note(line)
    retry = set(loaded.sweep.run.retry)
    done = {record["key"] for record in records if record["status"] not in retry}
    # What could not run once and can run now, after an upgrade, is no longer done.
    done -= {r["key"] for r in records if r["status"] == "unsupported" and r["key"] not in plan.unsupported}
    outcome.resumed = len(done & set(plan.cells))
    for key, reason in plan.unsupported.items():
        if key not in done:
            result = Result({}, "unsupported", reason)
            outcome.written.append(_write(out, key, plan.cells[key], _Finished(result, _driver_environment(plan), 0.0)))
    todo = {key: cell for key, cell in plan.cells.items() if key not in done and key not in plan.unsupported}
    for key, cell in todo.items():  # killed between the last round and the Record
        if isinstance(cell, EfficiencyCell) and (record := _combined(out, key, cell)):
            done.add(key)
            outcome.written.append(record)
    todo = {key: cell for key, cell in todo.items() if key not in done}
    jobs = list(_jobs(loaded, plan, out, todo))
    runnable = len(plan.cells) - len(plan.unsupported)
    found = len(done & set(plan.cells) - set(plan.unsupported))
    observer.begin(len(jobs), runnable, found, sum(_estimate_s(job) for job in jobs))
    try:
        with _driver_signals(), _forkserver() as context:
            for job in jobs:
                if job.key in done:  # an earlier round of this Cell ended it
                    observer.skip(_estimate_s(job))
                    continue
                label = cell_label(job.cell) + (f", round {job.round + 1}" if job.round is not None else "")
                observer.start(label, _estimate_s(job))
                started = time.monotonic()
                record = _do(context, job, out, observer)
                if record:
                    done.add(job.key)
                    outcome.written.append(record)
                observer.finish(label, record, time.monotonic() - started)
    except KeyboardInterrupt:
        outcome.interrupted = True
    finally:
        observer.close()
    kept = {record["key"]: record for record in (*records, *outcome.written)}  # what was written now wins
    outcome.failed = sum(kept[key]["status"] in ("failed", "timeout") for key in plan.cells if key in kept)
    return outcome


def run_info(loaded: Loaded, plan: Plan, command: str, before: dict[str, Any]) -> dict[str, Any]:
    """What is written to ``run.json``: what was asked, by all commands that ran into this directory."""
    commands = [*str(before.get("command", "")).splitlines(), command]
    return {
        "schema": store.SCHEMA,
        "command": "\n".join(dict.fromkeys(filter(None, commands))),
        "preset": loaded.sweep.sweep.preset,
        "sweep": loaded.sweep.model_dump(mode="json"),
        "skipped": plan.skipped,
    }


def _jobs(loaded: Loaded, plan: Plan, out: Path, todo: dict[str, Cell]) -> Iterator[Job]:
    common: dict[str, Any] = {
        "device": plan.device,
        "threads": plan.threads,
        "data_root": plan.data_root.resolve() if plan.data_root else None,
        "out": out.resolve(),
        "plugins": tuple(loaded.sweep.plugins),
        "plugin_base": loaded.base,
        "time_limit_s": loaded.sweep.run.timeout_s,
    }
    efficiency = {key: cell for key, cell in todo.items() if isinstance(cell, EfficiencyCell)}
    for number in range(max((cell.rounds for cell in efficiency.values()), default=0)):
        # Every other round backwards: else a model always follows the same neighbour, and its heat shows in no spread.
        order = list(efficiency.items())[:: -1 if number % 2 else 1]
        for key, cell in order:
            if number < cell.rounds and _read_round(out, key, number) is None:
                yield Job(key, cell, number, **common)
    yield from (Job(key, cell, None, **common) for key, cell in todo.items() if isinstance(cell, AccuracyCell))


def _estimate_s(job: Job) -> float:
    seconds = estimate_s(job.cell, job.threads, job.device)
    return seconds / job.cell.rounds if isinstance(job.cell, EfficiencyCell) else seconds


def _round_path(out: Path, key: str, number: int) -> Path:
    return out / "rounds" / key / f"{number}.json"


def _do(context: Any, job: Job, out: Path, observer: Observer) -> Record | None:
    """Execute one job; return the Cell's Record if this job completes it."""
    finished = _in_worker(context, job, observer)
    if job.round is None or finished.result.status != "ok":
        return _write(out, job.key, job.cell, finished)
    assert isinstance(job.cell, EfficiencyCell)
    entry = {"metrics": finished.result.metrics, "environment": finished.environment, "seconds": finished.seconds}
    store.write_json(_round_path(out, job.key, job.round), entry)
    return _combined(out, job.key, job.cell)


def _combined(out: Path, key: str, cell: EfficiencyCell) -> Record | None:
    """Write the Record of a Cell whose rounds are all there; None while one is missing."""
    rounds = [_read_round(out, key, number) for number in range(cell.rounds)]
    complete = [item for item in rounds if item is not None]
    if len(complete) < cell.rounds:
        return None
    result = Result(combine([item["metrics"] for item in complete]))
    seconds = sum(item["seconds"] for item in complete)
    return _write(out, key, cell, _Finished(result, complete[0]["environment"], seconds))


def _read_round(out: Path, key: str, number: int) -> dict[str, Any] | None:
    try:
        return dict(json.loads(_round_path(out, key, number).read_bytes()))
    except (FileNotFoundError, ValueError):
        return None


def _in_worker(context: Any, job: Job, observer: Observer) -> _Finished:
    """Run a job in its own process and wait for its Result, its death or its time limit."""
    log = job.out / "logs" / f"{job.key}.log"
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(sender, job), daemon=True)
    with _without_main():
        process.start()  # the first one waits for the forkserver's imports, which are no part of a Cell's time
    started = time.monotonic()
    sender.close()
    message: tuple[Any, ...] | None = None
    try:
        while message is None:
            left = None if job.time_limit_s is None else max(0.0, started + job.time_limit_s - time.monotonic())
            if not wait([receiver], left):
                reason = f"took longer than {job.time_limit_s:g} s (run.timeout_s)"
                message = ("error", "timeout", reason)
                break
            try:
                received = receiver.recv()
            except EOFError:
                process.join()
                message = ("error", "failed", _death(process.exitcode))
                break
            if received[0] == "progress":
                observer.progress(received[1])
            else:
                message = received
    finally:
        seconds = time.monotonic() - started
        receiver.close()
        _end(process)
    if message[0] == "done":
        return _Finished(message[1], message[2], seconds)
    environment = {"device": job.device, "threads": job.threads}
    return _Finished(Result({"log_tail": _tail(log)}, message[1], message[2]), environment, seconds)


def _end(process: Any) -> None:
    process.join(5)
    if process.is_alive():
        process.kill()
        process.join()


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = "; the kernel kills processes when memory runs out" if name == "SIGKILL" else ""
        return f"the worker was killed by {name}{hint}"
    return f"the worker ended without a result (exit status {exitcode})"


def _tail(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    except OSError:
        return []


def _write(out: Path, key: str, cell: Cell, finished: _Finished) -> Record:
    result = finished.result
    metrics = dict(result.metrics)
    record: Record = {
        "schema": store.SCHEMA,
        "key": key,
        "kind": cell.kind,
        "status": result.status,
        "reason": result.reason,
        "spec": store.plain(cell.spec()),
        "log_tail": metrics.pop("log_tail", []),
        "metrics": store.plain(metrics),
        "environment": finished.environment,
        "timings": {"wall_s": round(finished.seconds, 3), **store.plain(result.timings)},
    }
    store.write_record(out, record, result.arrays, result.history)
    shutil.rmtree(out / "rounds" / key, ignore_errors=True)
    return record


def _driver_environment(plan: Plan) -> dict[str, Any]:
    return {"device": plan.device, "threads": plan.threads}


# --- processes -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _forkserver() -> Iterator[Any]:
    """Provide a multiprocessing context whose server has torch, timm and our rooms imported, CUDA untouched."""
    set_omp_wait_policy()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.preload"])
    yield context


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


@contextlib.contextmanager
def _driver_signals() -> Iterator[None]:
    """Let SIGTERM (a scheduler's preemption) end the run as cleanly as Ctrl-C does."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread: the caller handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
