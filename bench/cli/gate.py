"""What is significant between runs: ``bench compare``, and the gate, ``bench baseline`` and ``bench check``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bench.cli import flags


def add(commands: flags.Commands) -> None:
    """Add the three commands."""
    compare = flags.command(
        commands, "compare", _compare, "compare two runs or two models and test whether they differ"
    )
    compare.add_argument("a", metavar="A", help="RUN or RUN:model")
    compare.add_argument("b", metavar="B", help="RUN or RUN:model to compare with A; differences are B minus A")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")

    baseline = flags.command(commands, "baseline", _baseline, "write a compact baseline for `bench check`")
    baseline.add_argument("run", type=Path, metavar="RUN", help="run directory")
    baseline.add_argument("--out", required=True, type=Path, metavar="FILE", help="output file")
    baseline.add_argument(
        "--allow-incomplete", action="store_true", help="accept an interrupted run; cells it lacks are never checked"
    )

    check = flags.command(
        commands, "check", _check, "compare a run with a baseline and fail if it got worse",
        epilog="exit codes: 0 no regression, 1 regression, 2 usage or broken input, 3 nothing comparable, 4 cells "
        "failed or absent (where several hold: 2, 1, 4, 3)",
    )  # fmt: skip
    check.add_argument("run", type=Path, metavar="RUN", help="run directory")
    check.add_argument("--baseline", required=True, type=Path, metavar="FILE", help="file written by `bench baseline`")
    check.add_argument("--allow-missing", action="store_true", help="do not fail on cells that the run lacks")
    check.add_argument(
        "--alpha", type=flags.share, default=0.05, help="family-wise error rate of the whole check (default: 0.05)"
    )
    for flag, least, text in (
        ("--min-accuracy", 0.01, "AUC or ACC"),
        ("--min-speed", 0.05, "throughput"),
        ("--min-memory", 0.05, "peak memory"),
    ):  # fmt: skip
        check.add_argument(
            flag,
            type=flags.share,
            default=least,
            help=f"smallest loss of {text} that counts (default: {least})",
            metavar="X",
        )
    noise = "standard deviation of AUC and ACC over trainings, assumed for cells with one seed (default: 0.02; 0: none)"
    check.add_argument("--seed-noise", type=flags.share, default=0.02, help=noise)
    check.add_argument("--json", type=Path, metavar="FILE", help="write all findings as JSON")
    check.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML")


def _compare(options: argparse.Namespace) -> int:
    from bench.report.compare.compare import run_compare

    return run_compare(options.a, options.b, flags.console(), options.json)


def _baseline(options: argparse.Namespace) -> int:
    from bench.report.compare.gate_output import run_baseline

    return run_baseline(options.run, options.out, flags.console(), allow_incomplete=options.allow_incomplete)


def _check(options: argparse.Namespace) -> int:
    from bench.report.compare.gate import Options
    from bench.report.compare.gate_output import run_check

    least = Options(
        options.alpha,
        options.min_accuracy,
        options.min_speed,
        options.min_memory,
        options.seed_noise,
        options.allow_missing,
    )
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    return run_check(
        options.run, options.baseline, least, flags.console(),
        json_path=options.json, junit_path=options.junit, summary_path=Path(summary) if summary else None,
    )  # fmt: skip
