"""What ``bench inspect`` prints and writes."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bench.data.files import DataError, bundled_note
from bench.data.inspect.scan import Inspection, inspect
from bench.data.look import SPLITS
from bench.errors import say
from bench.registry import dataset_info, file_stem, legible

SHOWN = 8  # of each kind; files have all
_STYLES = {"broken": "bold red", "leak": "bold red", "warning": "yellow", "note": "dim", "fine": "green"}


def run_inspect(
    name: str, console: Console, size: int | None, root: Path | None, out: Path | None, in_json: bool
) -> bool:
    """Inspect a dataset by name, show what was found, write files into ``out`` if given; return whether it is sound.

    Raises:
        RegistryError: an unknown name.
        DataError: no such size, or its files are missing or damaged.
    """
    info = dataset_info(name, refresh=True)
    if size and info.varied:
        raise DataError(f"{info.name}: its images are looked at in their own sizes; leave --size out")
    if size and info.sizes and size not in info.sizes:
        raise DataError(f"{info.name} has no size {size}; it exists in {', '.join(map(str, info.sizes))} pixels")
    bar = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=bar, transient=True, disable=not bar.is_terminal) as bars:
        task = bars.add_task("reading images", total=None)
        found = inspect(info, size, root, lambda done, total: bars.update(task, completed=done, total=total))
    paths = write_files(found, out, root) if out else []
    if in_json:
        print(json.dumps(as_json(found), indent=1, ensure_ascii=False))
        return found.sound
    print_inspection(found, console)
    if note := bundled_note(info, found.size or 0, root):
        say(console, note)
    console.print()
    if paths:
        say(console, "written: " + ", ".join(map(str, paths)))
    else:
        console.print("--out DIR writes a contact sheet (PNG), all findings (CSV) and everything as JSON", style="dim")
    return found.sound


# --- output ----------------------------------------------------------------------------------------------------


def print_inspection(found: Inspection, console: Console) -> None:
    """Print counts, sizes and findings."""
    info = found.info
    size = f", {found.size} pixels" if found.size else ""
    console.print(
        Text.assemble((info.name, "bold"), f"  {info.task}, {info.channels} channel{'s' * (info.channels > 1)}{size}")
    )
    if info.summary:
        console.print(info.summary, markup=False, highlight=False, style="dim")
    console.print(_table(found))
    console.print(f"pixels: {_sizes(found)}", highlight=False)
    console.print()
    for finding in found.findings:
        loud = finding.severity.upper() if finding.severity in ("broken", "leak") else finding.severity
        _print_hanging(console, Text(f"{loud:>7}  ", _STYLES[finding.severity]), finding.text)
        more = len(finding.examples) - SHOWN
        for example in (*finding.examples[:SHOWN], *([f"and {more:,} more"] if more > 0 else [])):
            _print_hanging(console, Text(" " * 11), Text(legible(example), "dim"))


def _print_hanging(console: Console, mark: Text, text: str | Text) -> None:
    """Wrap with every line under the first."""
    grid = Table.grid(padding=0)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(mark, Text(text) if isinstance(text, str) else text)
    console.print(grid)


def _table(found: Inspection) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class", overflow="fold")
    for split in SPLITS:
        table.add_column(split, justify="right", no_wrap=True)
        table.add_column("", justify="right", style="dim", no_wrap=True)
    for name in found.info.classes:
        cells = []
        for split in SPLITS:
            count, total = found.counts[split][name], found.images[split]
            cells += [f"{count:,}" if count else "[red]0[/red]", f"{count / total:.1%}"]
        table.add_row(escape(name), *cells)
    table.add_section()
    table.add_row("[bold]images[/bold]", *(cell for split in SPLITS for cell in (f"{found.images[split]:,}", "")))
    return table


def _sizes(found: Inspection) -> str:
    """Describe widths and heights in a line."""
    if not found.sizes:
        return "unknown, no image can be read"
    if len(found.sizes) <= 3:
        return ", ".join(f"{count:,} of {w} x {h}" for (w, h), count in found.sizes.most_common())
    (w, h), count = found.sizes.most_common(1)[0]
    widths, heights = zip(*found.sizes, strict=True)
    return (
        f"{len(found.sizes):,} different sizes, {min(widths)} to {max(widths)} wide, {min(heights)} to {max(heights)} "
        f"high; most often {w} x {h} ({count:,})"
    )


def as_json(found: Inspection) -> dict[str, object]:
    """The inspection as plain data."""
    info = found.info
    return {
        "dataset": info.name,
        "task": info.task,
        "classes": list(info.classes),
        "channels": info.channels,
        "size": found.size,
        "sound": found.sound,
        "images": found.images,
        "counts": found.counts,
        "pixels": [{"width": w, "height": h, "images": n} for (w, h), n in sorted(found.sizes.items())],
        "patients": found.patients,
        "equal": [{"first": p.first._asdict(), "second": p.second._asdict()} for p in found.equal],
        "near": [{**p._asdict(), "first": p.first._asdict(), "second": p.second._asdict()} for p in found.near],
        "traps": list(info.traps),
        "findings": [asdict(finding) for finding in found.findings],
    }


def write_files(found: Inspection, folder: Path, root: Path | None) -> list[Path]:
    """Write the contact sheet, everything as JSON, and every finding's examples as a table; return the paths."""
    from bench.data.inspect.sheet import draw_sheet

    folder.mkdir(parents=True, exist_ok=True)
    stem = file_stem(found.info.name) + (f"-{found.size}" if found.size else "")
    sheet, data, table = (folder / f"{stem}{suffix}" for suffix in (".png", ".json", ".csv"))
    draw_sheet(found, root, sheet)
    data.write_text(json.dumps(as_json(found), indent=1, ensure_ascii=False), encoding="utf-8", errors="replace")
    with table.open("w", newline="", encoding="utf-8", errors="replace") as stream:
        rows = csv.writer(stream)
        rows.writerow(("severity", "finding", "example"))
        rows.writerows((f.severity, f.text, example) for f in found.findings for example in f.examples or ("",))
    return [sheet, data, table]
