"""Runs for the tests: in this process, whose forkserver has torch imported already, or in one that can be killed."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from bench.cli.main import main
from bench.plan.plan import make_plan
from bench.record import store
from bench.runner import runner
from bench.sweep import config

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PLUGIN = HERE / "places_plugin.py"


def here(folder, *arguments):
    """Run ``bench`` in this process, as if in ``folder``; return its exit code and what it printed."""
    said = io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        patch.chdir(folder)
        patch.setenv("COLUMNS", "200")
        patch.setenv("MEDBENCH_CACHE", str(folder / "cache"))
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return code, said.getvalue()


def apart(folder, *arguments, **environment):
    """Start ``bench`` in ``folder`` as a process of its own."""
    more = {"COLUMNS": "200", "MEDBENCH_CACHE": str(folder / "cache"), "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        cwd=folder, env={**os.environ, **more}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # whoever runs the tests in the background may have had SIGINT ignored for all its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def wait_for(condition, seconds=400):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def interrupt_when(condition, number=signal.SIGINT):
    """Send a signal to this process as soon as ``condition()`` holds."""

    def watch():
        if wait_for(condition):
            os.kill(os.getpid(), number)

    for each in (signal.SIGINT, signal.SIGTERM):  # a run that has ended already leaves them to pytest
        signal.signal(each, lambda number, frame: None)
    threading.Thread(target=watch, daemon=True).start()


class Listener:
    """An observer that remembers, and calls ``heard`` with each progress event."""

    def __init__(self, heard=lambda label, event: None):
        self.notes, self.ended, self.heard = [], [], heard

    def __getattr__(self, name):
        return lambda *args, **kwargs: None

    def progress(self, label, event):
        self.heard(label, event)

    def finish(self, label, record, seconds, said="round done"):
        self.ended.append((label, record and record["status"], said))

    def note(self, text):
        self.notes.append(text)


def sweep(models, out, seeds=(0,), **keys):
    flags = {
        "plugins": [str(PLUGIN)],
        "sweep.models": list(models),
        "sweep.datasets": ["place_data"],
        "sweep.resolutions": [28],
        "efficiency.resolutions": [28],
        "efficiency.batches": [2],
        "efficiency.budget_s": 0.01,
        "efficiency.rounds": 1,
        "sweep.recipe": "quick",
        "sweep.epochs": 1,
        "sweep.seeds": list(seeds),
        "sweep.kinds": ["accuracy"],
        "run.device": "cpu",
        "run.out": str(out),
        **keys,
    }
    return config.load(flags=flags)


def run(models, out, listener=None, executor=None, **keys):
    loaded = sweep(models, out, **keys)
    return runner.execute(loaded, make_plan(loaded), Path(out), listener or Listener(), executor=executor)


def results(out):
    """What must not depend on what happened, or where: status, metrics without rates, scores to the bit."""
    records, problems = store.read_records(out)
    assert not problems
    found = {}
    for record in records:
        if record["kind"] == "accuracy":
            with np.load(out / "predictions" / f"{record['key']}.npz", allow_pickle=False) as file:
                scores = {name: file[name].tobytes() for name in file.files}
            metrics = {name: value for name, value in record["metrics"].items() if "per_s" not in name}
            found[record["key"]] = (record["status"], metrics, scores)
    return found
