"""One sweep from a loaded configuration to its boards: what ``bench run`` and ``bench.run`` share."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from bench import store
from bench.config import Loaded
from bench.files import MissingFilesError
from bench.plan import Plan, make_plan
from bench.progress import make_observer
from bench.report.leaderboard import Report
from bench.runner import Outcome, execute


def run_directory(loaded: Loaded) -> Path:
    """Return the run directory: ``run.out``, or ``results/<preset>``."""
    run = loaded.sweep.run
    return Path(run.out).expanduser() if run.out else Path("results") / (loaded.sweep.sweep.preset or "sweep")


def checked_plan(loaded: Loaded) -> Plan:
    """Make the plan; raise MissingFilesError with one message on all files that are missing or damaged."""
    plan = make_plan(loaded)
    if plan.problems:
        raise MissingFilesError(plan.problems)
    return plan


def run_sweep(loaded: Loaded, console: Console, command: str) -> Outcome:
    """Plan, execute what is not done, write the boards and print them.

    Raises:
        ConfigError, MissingFilesError: nothing has run.
        StoreError: the run directory cannot be written.
    """
    plan = checked_plan(loaded)
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
    records, problems = store.read_records(out)
    for problem in problems:
        console.print(f"left out of the boards: {problem}", soft_wrap=True, markup=False, highlight=False)
    info = store.read_run(out)
    report = Report(records, info, out / "predictions")
    paths = report.write(out)
    report.print(console)
    console.print("written: " + ", ".join(str(path) for path in paths), soft_wrap=True, markup=False, highlight=False)
