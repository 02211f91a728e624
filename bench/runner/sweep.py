"""One sweep from a loaded configuration to its boards: what ``bench run`` and ``bench.run`` share."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bench.data.download import FetchError
from bench.data.files import MissingFilesError, default_root, fetch
from bench.plan.plan import Plan, make_plan
from bench.record import store
from bench.report.build import Report
from bench.report.rows import read_run_directory
from bench.runner.progress import fetch_bars, make_observer
from bench.runner.runner import Outcome, execute
from bench.sweep.config import Loaded


def run_directory(loaded: Loaded) -> Path:
    """Return the run directory: ``run.out``, or ``results/<preset>``."""
    run = loaded.sweep.run
    return Path(run.out).expanduser() if run.out else Path("results") / (loaded.sweep.sweep.preset or "sweep")


def ready_plan(loaded: Loaded, console: Console) -> Plan:
    """Make the plan and download what files it misses; damaged files are the user's to replace.

    Raises:
        MissingFilesError: one message on all files that are still missing or damaged.
    """
    plan = make_plan(loaded)
    missing = [problem for problem in plan.problems if problem.reason == "missing"]
    if missing and loaded.sweep.run.download:
        root = plan.data_root or default_root()
        console.print(f"downloading {len(missing)} files to {root}", soft_wrap=True, markup=False, highlight=False)
        try:
            with fetch_bars(console) as progress:
                # One try without pause: without a network the answer should come at once; `bench fetch` is patient.
                fetch([problem.file for problem in missing], root, progress, attempts=1)
        except FetchError as error:
            reason = str(error).splitlines()[0]
            console.print(f"could not download: {reason}", soft_wrap=True, markup=False, highlight=False)
        plan = make_plan(loaded)
    if not plan.runnable:
        raise MissingFilesError(plan.problems)
    return plan


def run_sweep(loaded: Loaded, console: Console, command: str) -> Outcome:
    """Plan, execute what is not done, write the boards and print them.

    Raises:
        ConfigError, MissingFilesError: nothing has run.
        StoreError: the run directory cannot be written.
    """
    plan = ready_plan(loaded, console)
    for line in plan.skipped:
        console.print(f"left out: {line}", soft_wrap=True, markup=False, highlight=False)
    out = run_directory(loaded)
    outcome = execute(loaded, plan, out, make_observer(console), command)
    rebuild_boards(out, console)
    return outcome


def rebuild_boards(out: Path, console: Console) -> None:
    """Write a run's boards from its Records and print them. Raises StoreError where there is no run."""
    if not (out / "cells").is_dir() and not (out / "run.json").is_file():
        raise store.StoreError(f"{out} is no run directory: it has neither cells/ nor run.json")
    records, info, problems = read_run_directory(out)
    for problem in problems:
        console.print(f"left out of the boards: {problem}", soft_wrap=True, markup=False, highlight=False)
    report = Report(records, info, out / "predictions", problems)
    paths = report.write(out)
    report.print(console)
    console.print("written: " + ", ".join(str(path) for path in paths), soft_wrap=True, markup=False, highlight=False)
