"""One sweep from a loaded configuration to its boards: what ``bench run`` and ``bench.run`` share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

from rich.console import Console

from bench.data.download import FetchError, unresolved
from bench.data.files import MissingFilesError, default_root, fetch
from bench.deploy.kept import keep_recommended
from bench.errors import say
from bench.metrics.operating import YOUDEN, Rule
from bench.plan.estimate import Cost, bundled_notes, cost_of
from bench.plan.look_ahead import look_ahead
from bench.plan.plan import Plan, make_plan
from bench.record import store
from bench.report.build import read_report
from bench.report.standings import ReportData
from bench.report.write.terminal import print_screen
from bench.runner.progress import Observer, fetch_bars
from bench.runner.runner import RunOutcome, execute
from bench.sweep.config import Loaded


def run_directory(loaded: Loaded) -> Path:
    """Return the run directory: ``run.out``, or ``runs/<preset>``, ``runs/<stem of --config>``, ``runs/sweep``."""
    run = loaded.sweep.run
    return Path(run.out).expanduser() if run.out else Path("runs") / loaded.name


Consent = Callable[[Plan, Cost], None]  # raises where a sweep should not start


def ready_plan(loaded: Loaded, console: Console, command: str, consent: Consent | None = None) -> Plan:
    """Make the plan, say what it costs and download what files it misses; damaged files are the user's to replace.

    Args:
        loaded: the configuration.
        console: for the progress of downloads.
        command: what the user typed, repeated in the error's advice.
        consent: given the plan and what it costs before anything is downloaded; raises to stop.

    Raises:
        MissingFilesError: one message on all files that are still missing or damaged.
    """
    plan = make_plan(loaded)
    failure: FetchError | None = None
    run = loaded.sweep.run
    states = store.read_states(run_directory(loaded))[0]
    noisy = "noisy" in run.retry
    done = {k for k, s in states.items() if s.status not in run.retry and not (noisy and s.noisy)}
    cost = cost_of(plan, done, run.keep_weights is not False)
    memory = [f"memory: {text}" for text in cost.too_large]
    for line in [loaded.note, *bundled_notes(plan), *memory, f"total: {cost}"]:
        if line:
            say(console, line)
    missing = [problem for problem in plan.problems if problem.reason == "missing" and run.download]
    if missing and (failure := unresolved(missing[0].file)):  # nothing to ask: it cannot start
        raise MissingFilesError(plan.problems, failure, _without(plan, command))
    if consent and not run.ray_address:  # a cluster is not this machine
        consent(plan, cost)
    if missing:
        root = plan.data_root or default_root()
        say(console, f"downloading {len(missing)} files to {root}")
        try:
            with fetch_bars(console) as progress:
                # One try without pause: without a network the answer should come at once; `bench fetch` is patient.
                fetch([problem.file for problem in missing], root, progress, attempts=1)
        except FetchError as error:
            failure = error
        plan = make_plan(loaded)
    if not plan.runnable:
        raise MissingFilesError(plan.problems, failure, _without(plan, command))
    return plan


def _without(plan: Plan, command: str) -> str:
    """How to run the Cells that need none of the missing files; "" where there is none."""
    missing = {problem.dataset for problem in plan.problems}
    left = [c for c in plan.cells.values() if not missing & {getattr(c, "dataset", ""), getattr(c, "target", "")}]
    if not left or not command.startswith("bench run"):
        return ""
    kinds = Counter(cell.kind for cell in left)
    cells = " and ".join(f"{count} {kind} cell{'s' * (count > 1)}" for kind, count in kinds.items())
    return f"Without them ({cells}):\n  {command} --skip-missing"


def run_sweep(loaded: Loaded, console: Console, command: str, consent: Consent | None = None) -> RunOutcome:
    """Plan, execute what is not done, write the boards and print them.

    Args:
        loaded: the sweep.
        console: where lines for people go.
        command: what was typed.
        consent: given the plan and what it costs before anything is downloaded or run; raises to stop.

    Raises:
        ConfigError, MissingFilesError: nothing has run.
        StoreError: the run directory cannot be written.
    """
    plan = ready_plan(loaded, console, command, consent)
    for line in plan.skipped:
        say(console, f"left out: {line}")
    out = run_directory(loaded)
    look_ahead(loaded, plan, out, console)
    outcome = execute(loaded, plan, out, Observer(console), command)
    report = rebuild_boards(out, console, outcome.keys)
    if not outcome.interrupted and (line := keep_recommended(out, report)):
        say(console, line)
    return outcome


def rebuild_boards(out: Path, console: Console, keys: Collection[str] = (), rule: Rule = YOUDEN) -> ReportData:
    """Write a run's boards from its Records and print what they come to, above all of the Cells ``keys``.

    ``rule`` chooses the operating point.

    Raises:
        StoreError: ``out`` is not a run directory, or cannot be written.
    """
    report, problems = read_report(out, rule)
    for problem in problems:
        say(console, f"left out of the leaderboard: {problem}")
    report.write(out)
    print_screen(report, out, console, keys)
    return report
