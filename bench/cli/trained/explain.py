"""The command ``bench explain``: which, then each, then all side by side and a table of radii.

``RUN/explain/receptive_fields.png`` and ``radii.png`` show everything that was explained in this run so far.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.cli import flags

if TYPE_CHECKING:
    from rich.console import Console

    from bench.explain.run import Settings

STATES = ("at initialisation", "pretrained", "trained")


def add(commands: Any) -> None:
    """Add the command."""
    explain = flags.command(
        commands, "explain", _explain, "where a trained model looks: overlays on test images, receptive fields",
        epilog="examples:\n"
        "  bench explain runs/quick 3f2a               one cell, by its key or how that begins (`all`: every one)\n"
        "  bench explain --erf-only resnet18,swin --resolutions 64,224",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    explain.add_argument("directory", nargs="?", type=Path, metavar="RUN", help="a run made with --keep-weights")
    explain.add_argument("cells", nargs="*", metavar="CELL", help="keys or their beginnings, or `all`")
    explain.add_argument("--erf-only", metavar="MODELS", help="receptive fields of networks without a run, on noise")
    explain.add_argument(
        "--resolutions", default="64", help="of --erf-only, side lengths in pixels: 64,224 (default 64)"
    )
    explain.add_argument("--out", type=Path, default=Path("explain"), help="of --erf-only (default explain)")
    explain.add_argument(
        "--per-class", type=flags.count, default=2, help="right, and wrong, images of each class (default 2)"
    )
    explain.add_argument(
        "--images", type=flags.count, default=16, help="images a receptive field is the mean of (default 16)"
    )
    explain.add_argument("--device", type=flags.device, default="cpu", help="cpu or cuda:N (default cpu)")
    flags.add_data_root(explain)
    flags.add_config(explain)
    flags.add_verbose(explain)


def _explain(options: argparse.Namespace) -> int:
    root = flags.data_root(options)
    if options.directory is None:
        explain(options, root, flags.console())
        return 0
    from bench.explain.which import where_it_ran

    options.directory, root = options.directory.resolve(), root.resolve() if root else None
    with where_it_ran(options.directory) as root_of_run:
        explain(options, root if options.data_root else root_of_run or root, flags.console())
    return 0


def side_by_side(folder: Path) -> list[Path]:
    """Draw all that lies under ``folder`` (RUN/explain) in one picture of maps and one of radii; return both."""
    from bench.explain.pictures import INITIAL, FieldRow, fields, radii
    from bench.record.store import atomic_write

    rows = [FieldRow(*row) for row in _rows(sorted(folder.glob("*/explain.json")))]
    if not rows:
        return []
    rows.sort(key=lambda row: (row.label, row.state, row.resolution))
    maps = [row for row in rows if row.state != INITIAL] or rows
    paths = [folder / "receptive_fields.png", folder / "radii.png"]
    atomic_write(paths[0], fields("Effective receptive fields", maps))
    atomic_write(paths[1], radii(rows))
    return paths


def _rows(files: Iterable[Path]) -> Iterable[tuple[str, str, int, list[Any]]]:
    import numpy as np

    from bench.explain.field import spread
    from bench.record.store import StoreError
    from bench.registry import display_name

    for path in files:
        try:
            facts = json.loads(path.read_bytes())
            with np.load(path.with_name("fields.npz"), allow_pickle=False) as stored:
                maps = {name: stored[name].astype(float) for name in stored.files}
        except Exception as error:
            raise StoreError(f"cannot read {path.parent} ({error}); delete it and run bench explain again") from error
        for state in dict.fromkeys(name.partition("/")[0] for name in maps):
            lines = [(s["name"], m := maps[f"{state}/{s['name']}"], spread(m)) for s in facts["stages"]]
            on = f" on {display_name(facts['dataset'])}" if facts["dataset"] else ""
            seed = f", seed {facts['seed']}" if "seed" in facts else ""
            yield f"{facts['model']}{on}{seed}", state, facts["resolution"], lines


def explain(options: argparse.Namespace, data_root: Path | None, console: Console) -> None:
    """Do what the command's flags say.

    Raises:
        RegistryError: both or neither of a run and ``--erf-only`` are given, or a resolution is no number.
        StoreError: see :func:`bench.explain.which.find_cells`.
    """
    from bench.explain.run import Settings
    from bench.registry import RegistryError, split_names

    if (options.directory is None) == (options.erf_only is None):
        raise RegistryError("give either RUN and CELL, or --erf-only MODELS")
    sides = options.resolutions.split(",")
    if not all(side.strip().isdecimal() and int(side) for side in sides):
        raise RegistryError(f"--resolutions {options.resolutions}: expected side lengths in pixels, such as 64,224")
    settings = Settings(options.per_class, options.images, options.device, data_root)
    if options.erf_only is None:
        run_cells(options.directory, options.cells, settings, console)
    else:
        names = split_names(options.erf_only)
        run_networks(names, [int(side) for side in sides], options.out, settings, console)


def run_cells(run: Path, wanted: Sequence[str], settings: Settings, console: Console) -> None:
    """Explain Cells of a run and print their radii."""
    from bench.explain.run import explain_cell
    from bench.explain.which import find_cells

    folders = []
    for record in find_cells(run, wanted):
        console.print(f"{record['key'][:8]} {record['spec']['model']}", markup=False, highlight=False)
        folders.append(explain_cell(run, record, settings))
    _finish(folders, run / "explain", console)


def run_networks(
    names: Sequence[str], resolutions: Sequence[int], out: Path, settings: Settings, console: Console
) -> None:
    """Draw the receptive fields of networks without a run and print their radii."""
    from bench.explain.run import explain_network
    from bench.registry import expand_models

    folders = []
    for name in map(str, expand_models(names)):
        for resolution in resolutions:
            console.print(f"{name} at {resolution} px", markup=False, highlight=False)
            folders.append(explain_network(name, resolution, out, settings))
    _finish(folders, out, console)


def _finish(folders: Sequence[Path], top: Path, console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    found = [json.loads((folder / "explain.json").read_bytes()) for folder in folders]
    stages = max(len(facts["stages"]) for facts in found)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("model", "px", "state", *(f"stage {i + 1}" for i in range(stages))):
        table.add_column(heading, justify="left" if heading in ("model", "state") else "right", overflow="fold")
    for facts in found:
        for state in STATES:
            if state in facts["stages"][0]:
                measured = [stage[state] for stage in facts["stages"]]
                radii = [f"{m['radius_50_px']:.1f}/{m['radius_95_px']:.1f}" if m else "-" for m in measured]
                table.add_row(
                    Text(facts["model"]),
                    str(facts["resolution"]),
                    "initial" if state == "at initialisation" else state,
                    *radii,
                )
    paths = side_by_side(top)
    print("receptive field: radius (px) that holds 50 % / 95 % of the influence on the central cell")
    console.print(table)
    for path in [*folders, *paths]:
        print(f"written: {path}")
