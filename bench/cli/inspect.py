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
        "what a dataset holds: classes, sizes, duplicates and patients across splits, unreadable files, known issues",
        epilog="exit codes: 0 sound; 1 broken images, or equal pixels or one patient in two splits; 2 usage or data",
    )  # fmt: skip
    look.add_argument("dataset", help="a name, or folder:PATH, csv:PATH[image=..,label=..], hf:NAME[config]")
    look.add_argument("--size", type=int, help="side length in pixels, of a set that exists in several (the smallest)")
    look.add_argument("--out", type=Path, metavar="DIR", help="write a contact sheet (PNG), findings and JSON there")
    flags.add_data_root(look)
    flags.add_json(look)
    flags.add_config(look)
    flags.add_verbose(look)


def _inspect(options: argparse.Namespace) -> int:
    from bench.cli.inspection import run_inspect

    root = flags.data_root(options)
    sound = run_inspect(options.dataset, flags.console(), options.size, root, options.out, options.json)
    return 0 if sound else flags.FAILED
