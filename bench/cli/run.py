"""``bench run`` and ``bench plan``: a sweep, run or only shown."""

from __future__ import annotations

import json
import signal
import sys
from functools import partial
from typing import TYPE_CHECKING

from bench.cli import flags

if TYPE_CHECKING:
    import argparse

    from rich.console import Console

    from bench.plan.base import Plan
    from bench.plan.estimate import Cost

NOTHING_LEFT = "bench: nothing is left to run; the lines above say what was left out"


def add(commands: flags.Commands) -> None:
    """Add both commands."""
    run = flags.command(
        commands, "run", _run, "train, measure and write a leaderboard; finished cells are not run again"
    )
    flags.add_sweep(run)
    run.add_argument("--yes", action="store_true", help="start sweeps of more than two hours without asking")
    run.add_argument("--dry-run", action="store_true", help="show the plan without running it")

    text = "show what a sweep would run, what it cannot run and why, and its cost"
    plan = flags.command(commands, "plan", _plan, text)
    flags.add_sweep(plan)
    flags.add_json(plan)


def _run(options: argparse.Namespace) -> int:
    from bench.runner.sweep import run_sweep

    if options.dry_run:
        options.json = False
        return _plan(options)
    console = flags.console()
    consent = partial(agree, console=console, yes=options.yes)
    outcome = run_sweep(flags.loaded(options), console, options.command_line, consent)
    if outcome.interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is written: a second Ctrl-C must not change the exit code
        print(f"interrupted; run the same command again to resume ({outcome.out})", file=sys.stderr)
        return flags.INTERRUPTED
    if not outcome.keys:
        print(NOTHING_LEFT, file=sys.stderr)
        return flags.USAGE
    if outcome.failed:
        count = f"{outcome.failed} cell{'s' * (outcome.failed != 1)}"
        print(
            f"{count} failed (reasons above and on the leaderboard); once that is mended, add --retry failed,timeout",
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
        print_plan(plan, out, flags.console(), loaded.sweep.run.keep_weights is not False)
        if options.verbose and not plan.runnable:
            print(missing_details(plan.problems))
    if not plan.cells:
        print(NOTHING_LEFT, file=sys.stderr)
    return 0 if plan.runnable and plan.cells else flags.USAGE


def warning(plan: Plan, cost: Cost) -> str:
    """Say how long a sweep takes here, in days or years, and the flags that would make it feasible; "" if short."""
    from bench.plan.estimate import LONG_S, long_time

    if cost.seconds <= LONG_S:
        return ""
    where = f"one {plan.device}" if plan.device != "cpu" else f"{plan.threads} CPU threads"
    lines = [f"This sweep takes about {long_time(cost.seconds)} on {where} ({cost.cells} cells). Shorter:"]
    lines += [f"  {flags}: about {long_time(less)}" for flags, less in cost.cheaper.items()]
    lines += ["  bench run --preset quick: minutes, for a first look at BreastMNIST"]
    return "\n".join(lines)


def agree(plan: Plan, cost: Cost, console: Console, yes: bool) -> None:
    """Let a short sweep pass; of a long one say what it costs, and ask in a terminal unless ``yes``.

    Raises:
        ConfigError: the user declined, or nobody can be asked. Nothing has run.
    """
    from bench.errors import ConfigError, say

    text = warning(plan, cost)
    if not text:
        return
    say(console, text)
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        missing = f"; {len(plan.problems)} data files are missing besides" if not plan.runnable else ""
        raise ConfigError(f"no terminal to ask in: add --yes to start a sweep of more than two hours{missing}")
    if input("Start it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("not started")
