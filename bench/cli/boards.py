"""What is made of finished Records: ``bench leaderboard``, ``report``, ``export``, ``merge``."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli import flags

if TYPE_CHECKING:
    from bench.metrics.operating import Rule

_TIMES = {"k": 1e3, "m": 1e6, "g": 1e9}


def add(commands: flags.Commands) -> None:
    """Add the four commands."""
    board = flags.command(commands, "leaderboard", _leaderboard, "rebuild the leaderboard of a run from its records")
    board.add_argument("directory", type=Path, metavar="RUN", help="run directory")
    board.add_argument("--print", action="store_true", help="print all tables instead of writing them")
    add_rule(board)

    text = "write the leaderboard, report.html and the figures (PNG, SVG) of a run"
    report = flags.command(commands, "report", _report, text)
    report.add_argument("directory", type=Path, metavar="RUN", help="run directory")
    report.add_argument("--no-figures", action="store_true", help="skip the figures (much faster)")
    report.add_argument(
        "--checklist", choices=["tripod-ai", "stard-ai", "claim"],
        help="also write CHECKLIST.md, the reporting guideline filled in from the records",
    )  # fmt: skip
    add_rule(report)

    export = flags.command(commands, "export", _export, "export the records of a run as one table")
    export.add_argument("directory", type=Path, metavar="RUN", help="run directory")
    export.add_argument("file", type=Path, metavar="FILE", help="output file; ends in .csv, .json or .parquet")

    text = "merge several run directories into one"
    merge = flags.command(commands, "merge", _merge, text)
    merge.add_argument("out", type=Path, metavar="OUT", help="run directory to create or to add to")
    merge.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories to read")


def add_rule(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the operating point; :func:`rule` reads them."""
    group = parser.add_argument_group(
        "operating point",
        "how the threshold is chosen on the validation split (default: maximal sensitivity + specificity)",
    )
    one = group.add_mutually_exclusive_group()
    one.add_argument("--sensitivity", type=chance, metavar="X", help="reach at least this sensitivity, such as 0.95")
    one.add_argument("--specificity", type=chance, metavar="X", help="reach at least this specificity, such as 0.9")
    one.add_argument(
        "--cost",
        type=positive,
        metavar="N",
        help="minimise the expected cost, where a miss costs as much as N false alarms",
    )
    text = "prevalence of the disease where the model will be used, such as 0.01 (default: that of the images)"
    group.add_argument("--prevalence", type=chance, metavar="P", help=text)


def rule(options: argparse.Namespace) -> Rule:
    """The operating point that was asked for."""
    from bench.metrics.operating import Rule

    return Rule(options.sensitivity, options.specificity, options.cost, options.prevalence)


def chance(text: str) -> float:
    """Parse a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number between 0 and 1 (such as 0.95)")
    return value


def positive(text: str) -> float:
    """A number above 0, also as ``5M`` or ``500k``."""
    factor = _TIMES.get(text[-1:].lower(), 1.0)
    try:
        value = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0 (such as 5, 2.5, 500k, 5M)")
    return value


def _leaderboard(options: argparse.Namespace) -> int:
    if options.print:
        from bench.report.build import read_report

        read_report(options.directory, rule(options))[0].print(flags.console())
        return 0
    from bench.runner.sweep import rebuild_boards

    rebuild_boards(options.directory, flags.console(), rule=rule(options))
    return 0


def _report(options: argparse.Namespace) -> int:
    from bench.report.build import rebuild

    paths, problems = rebuild(
        options.directory, figures=not options.no_figures, rule=rule(options), guideline=options.checklist
    )
    _say_left_out(problems)
    for folder in sorted({path.parent for path in paths}):
        names = [path.name for path in paths if path.parent == folder]
        shown = ", ".join(names) if len(names) <= 6 else f"{len(names)} files"
        print(f"written: {folder}: {shown}")
    return 0


def _export(options: argparse.Namespace) -> int:
    from bench.report.write.csv import export_records

    rows, problems = export_records(options.directory, options.file)
    _say_left_out(problems)
    print(f"written: {options.file} ({rows} records)")
    return 0


def _say_left_out(problems: Iterable[object]) -> None:
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)


def _merge(options: argparse.Namespace) -> int:
    from bench.record.merge import merge

    merged = merge(options.out, options.runs)
    for line in merged.notes:
        print(f"note: {line}")
    for line in merged.refused:
        print(f"refused: {line}", file=sys.stderr)
    print(
        f"{merged.out}: {merged.added} record{'s' * (merged.added != 1)} added, "
        f"{merged.replaced} replaced (without a result before), "
        f"{merged.present} {'was' if merged.present == 1 else 'were'} there already, {len(merged.refused)} refused; "
        f"`bench leaderboard {shlex.quote(str(merged.out))}` makes its boards"
    )
    return flags.FAILED if merged.refused else 0
