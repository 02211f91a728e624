"""``bench run`` and ``bench plan``: a sweep, run or only shown."""

from __future__ import annotations

import json
import signal
import sys
from typing import TYPE_CHECKING, Any

from bench.cli import flags

if TYPE_CHECKING:
    import argparse

    from bench.plan.base import Plan
    from bench.plan.estimate import Cost

NOTHING_LEFT = "bench: no cell was left to run"


def add(commands: Any) -> None:
    """Add both commands."""
    run = flags.command(commands, "run", _run, "plan, run what is not done yet, write and print the leaderboard")
    flags.add_sweep(run)
    run.add_argument("--yes", action="store_true", help="start a sweep of more than two hours without asking")
    run.add_argument("--dry-run", action="store_true", help="show the plan and run nothing")

    text = "show the cells of a sweep, what is unsupported and why, and a rough time"
    plan = flags.command(commands, "plan", _plan, text)
    flags.add_sweep(plan)
    flags.add_json(plan)


def _run(options: argparse.Namespace) -> int:
    from bench.cli.consent import agree
    from bench.runner.sweep import run_sweep

    if options.dry_run:
        options.json = False
        return _plan(options)
    loaded = flags.loaded(options)
    console = flags.console()

    def consent(plan: Plan, cost: Cost) -> None:
        agree(plan, cost, console, options.yes)

    outcome = run_sweep(loaded, console, options.command_line, consent)
    if outcome.interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written: a second Ctrl-C must not change the exit code
        print(f"interrupted: the same command goes on where it stopped ({outcome.out})", file=sys.stderr)
        return flags.INTERRUPTED
    if not outcome.keys:
        print(NOTHING_LEFT, file=sys.stderr)
        return flags.USAGE
    if outcome.failed:
        print(
            f"{outcome.failed} cell{'s' * (outcome.failed != 1)} failed; try again with --retry failed,timeout",
            file=sys.stderr,
        )
    return flags.FAILED if outcome.failed else 0


def _plan(options: argparse.Namespace) -> int:
    from bench.cli.listing import plan_json, print_plan
    from bench.data.files import missing_details
    from bench.plan.plan import make_plan
    from bench.runner.sweep import run_directory

    loaded = flags.loaded(options)
    plan = make_plan(loaded)
    out = run_directory(loaded)
    if options.json:
        print(json.dumps(plan_json(plan, out), indent=1))
    else:
        if loaded.note:
            print(loaded.note)
        print_plan(plan, out, flags.console(), loaded.sweep.run.keep_weights)
        if options.verbose and not plan.runnable:
            print(missing_details(plan.problems))
    if not plan.cells:
        print(NOTHING_LEFT, file=sys.stderr)
    return 0 if plan.runnable and plan.cells else flags.USAGE
