"""What is made of finished Records: ``bench leaderboard``, ``report``, ``export``, ``merge``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import flags

if TYPE_CHECKING:
    import argparse


def add(commands: Any) -> None:
    """Add the four commands."""
    board = flags.command(commands, "leaderboard", _leaderboard, "rebuild the boards of a run from its records")
    board.add_argument("directory", type=Path)
    board.add_argument("--print", action="store_true", help="print all tables and write nothing")

    text = "write the boards, report.html and all figures (PNG, SVG) of a run"
    report = flags.command(commands, "report", _report, text)
    report.add_argument("directory", type=Path)
    report.add_argument(
        "--no-figures", action="store_true", help="leave figures/ as it is; takes a second, not a minute"
    )

    export = flags.command(commands, "export", _export, "write every record of a run as one table")
    export.add_argument("directory", type=Path)
    export.add_argument("file", type=Path, help="ends in .csv, .json or .parquet")

    text = "join runs: their records, and what belongs to them, in one directory"
    merge = flags.command(commands, "merge", _merge, text)
    merge.add_argument("out", type=Path, metavar="OUT", help="a run directory, new or not; what it holds stays")
    merge.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directories, only read")


def _leaderboard(options: argparse.Namespace) -> int:
    if options.print:
        from bench.report.build import read_report

        read_report(options.directory)[0].print(flags.console())
        return 0
    from bench.runner.sweep import rebuild_boards

    rebuild_boards(options.directory, flags.console())
    return 0


def _report(options: argparse.Namespace) -> int:
    from bench.report.build import rebuild

    paths, problems = rebuild(options.directory, figures=not options.no_figures)
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
