"""Before a long sweep: what it costs, what would make it shorter, and whether to start."""

from __future__ import annotations

import sys

from rich.console import Console

from bench.plan.estimate import LONG_S, Cost, long_time
from bench.plan.plan import Plan
from bench.sweep.config import ConfigError


def warning(plan: Plan, cost: Cost) -> str:
    """Say how long a sweep takes here, in days or years, and the flags that would make it feasible; "" if short."""
    if cost.seconds <= LONG_S:
        return ""
    where = f"one {plan.device}" if plan.device != "cpu" else f"{plan.threads} CPU threads"
    lines = [f"This sweep takes about {long_time(cost.seconds)} on {where} ({cost.cells} cells). Shorter:"]
    lines += [f"  {flags}: about {long_time(less)}" for flags, less in cost.cheaper.items()]
    lines += ["  bench run --preset quick: minutes, for a first look"]
    return "\n".join(lines)


def agree(plan: Plan, cost: Cost, console: Console, yes: bool) -> None:
    """Let a short sweep pass; of a long one say what it costs, and ask in a terminal unless ``yes``.

    Raises:
        ConfigError: the user declined, or nobody can be asked. Nothing has run.
    """
    text = warning(plan, cost)
    if not text:
        return
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        missing = f"; {len(plan.problems)} data files are missing besides" if not plan.runnable else ""
        raise ConfigError(f"no terminal to ask in: add --yes to start a sweep of more than two hours{missing}")
    if input("Start it? [y/N] ").strip().lower() not in ("y", "yes"):
        raise ConfigError("not started")
