"""The command ``bench explain``: which Cells, then each, then all side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.cli import flags


def add(commands: flags.Commands) -> None:
    """Add the command."""
    explain = flags.command(
        commands, "explain", _explain, "show where a trained model looks: activation maps and receptive fields",
        epilog="example: bench explain runs/quick 3f2a (one cell by the start of its key; `all`: every cell)",
    )  # fmt: skip
    explain.add_argument("directory", type=Path, metavar="RUN", help="run directory; cells whose weights were kept")
    explain.add_argument("cells", nargs="*", metavar="CELL", help="keys of cells, their first characters, or `all`")
    explain.add_argument(
        "--per-class",
        type=flags.count,
        default=2,
        help="images per class, of right and of wrong predictions each (default: 2)",
    )
    explain.add_argument(
        "--images", type=flags.count, default=16, help="images to average a receptive field over (default: 16)"
    )
    explain.add_argument("--device", type=flags.device, default="cpu", help="cpu or cuda:N (default: cpu)")
    flags.add_data_root(explain)
    flags.add_config(explain)
    flags.add_verbose(explain)


def _explain(options: argparse.Namespace) -> int:
    from bench.explain.which import find_cells, where_it_ran

    root = flags.data_root(options)
    run, root = options.directory.resolve(), root.resolve() if root else None
    with where_it_ran(run) as root_of_run:
        records = find_cells(run, options.cells)
        from bench.explain.run import Settings, explain_cell, side_by_side

        given = root if options.data_root else root_of_run or root
        settings = Settings(options.per_class, options.images, options.device, given)
        for record in records:
            print(f"{record['key'][:8]} {record['spec']['model']}")
            print(f"written: {explain_cell(run, record, settings)}")
        print(f"written: {side_by_side(run)}")
    return 0
