"""``bench inspect``: what a dataset holds, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli import flags

if TYPE_CHECKING:
    import argparse


def add(commands: flags.Commands) -> None:
    """Add the command."""
    look = flags.command(
        commands, "inspect", _inspect,
        "check a dataset: classes, sizes, unreadable files, duplicates and patients across splits",
        epilog="exit codes: 0 sound, 1 unreadable images or leaks between splits, 2 usage or missing data",
    )  # fmt: skip
    look.add_argument(
        "dataset", help="name, path, folder:PATH, csv:PATH[image=..,label=..], npz:PATH or hf:NAME[config]"
    )
    look.add_argument(
        "--size", type=int, help="image size in pixels, for datasets that come in several (default: the smallest)"
    )
    look.add_argument(
        "--out", type=Path, metavar="DIR", help="write a contact sheet (PNG), the findings (CSV) and everything as JSON"
    )
    flags.add_data_root(look)
    flags.add_json(look)
    flags.add_config(look)
    flags.add_verbose(look)


def _inspect(options: argparse.Namespace) -> int:
    from bench.cli.inspection import run_inspect

    root = flags.data_root(options)
    sound = run_inspect(options.dataset, flags.console(), options.size, root, options.out, options.json)
    return 0 if sound else flags.FAILED
