"""What ``bench inspect`` prints and writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bench.data.files import DataError, bundled_note
from bench.data.inspect.scan import Inspection, Member, inspect
from bench.data.look import SPLITS
from bench.registry import dataset_info, file_stem

SHOWN = 8  # of each kind; files have all
LEAK, WARNING, NOTE, FINE = "LEAK", "warning", "note", "fine"
_STYLES = {LEAK: "bold red", "BROKEN": "bold red", WARNING: "yellow", NOTE: "dim", FINE: "green"}


class Finding(NamedTuple):
    """One line: how bad it is, what it is, and examples."""

    state: str
    text: str
    examples: tuple[str, ...] = ()


def findings(found: Inspection) -> list[Finding]:
    """Put an inspection into words, the worst first."""
    said = [*_faults(found), *_leaks(found), *_doubts(found)]
    order = ["BROKEN", LEAK, WARNING, NOTE, FINE]
    return sorted(said, key=lambda finding: order.index(finding.state))


def _images(count: int, what: str = "image") -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _line(member: Member) -> str:
    where = member.name if member.name.startswith(member.split) else f"{member.split}: {member.name}"
    return f"{where} ({member.label})" if member.label else where


def _faults(found: Inspection) -> Iterator[Finding]:
    if found.unreadable:
        lines = [why if member.name in why else f"{member.name}: {why}" for member, why in found.unreadable]
        yield Finding("BROKEN", f"{_images(len(found.unreadable))} cannot be read", tuple(lines))
    else:
        yield Finding(FINE, f"all {sum(found.images.values()):,} images can be read")


def _leaks(found: Inspection) -> Iterator[Finding]:
    groups = found.leaking
    if groups:
        lines = [" = ".join(map(_line, group)) for group in groups]
        pairs = _pairwise((a.split, b.split) for g in groups for a, b in _first_of_each_split(g))
        yield Finding(LEAK, f"the same pixels in two splits: {_images(len(groups), 'picture')} ({pairs})", tuple(lines))
    else:
        yield Finding(FINE, "no two splits share an image with equal pixels")
    if not found.patients:
        yield Finding(NOTE, "this source names no patients, so whether splits share some cannot be checked")
    elif any(found.shared_patients.values()):
        shared = {pair: names for pair, names in found.shared_patients.items() if names}
        counts = ", ".join(f"{one}-{two} {len(names):,}" for (one, two), names in shared.items())
        lines = [f"{one} and {two}: {name}" for (one, two), names in shared.items() for name in names]
        yield Finding(LEAK, f"patients (or lesions) in two splits: {counts}", tuple(lines))
    else:
        counts = ", ".join(f"{name} {count:,}" for name, count in found.patients.items())
        yield Finding(FINE, f"no patient (or lesion) is in two splits ({counts})")


def _first_of_each_split(group: list[Member]) -> list[tuple[Member, Member]]:
    seen = {member.split: member for member in reversed(group)}
    members = [seen[split] for split in SPLITS if split in seen]
    return [(one, two) for i, one in enumerate(members) for two in members[i + 1 :]]


def _pairwise(pairs: Iterator[tuple[str, str]]) -> str:
    counts: dict[str, int] = {}
    for one, two in pairs:
        name = "-".join(sorted((one, two), key=SPLITS.index))
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def _doubts(found: Inspection) -> Iterator[Finding]:
    if found.near:
        lines = [
            f"{_line(p.first)} ~ {_line(p.second)}: {p.bits} bits differ, correlation {p.correlation:.2f}"
            for p in found.near
        ]
        pairs = _pairwise((p.first.split, p.second.split) for p in found.near)
        yield Finding(WARNING, f"nearly the same in two splits, for you to look at: {pairs}", tuple(lines))
    if groups := found.disagreeing:
        lines = [" = ".join(map(_line, group)) for group in groups]
        yield Finding(WARNING, f"equal pixels, different labels: {_images(len(groups), 'picture')}", tuple(lines))
    within = [group for group in found.same if len({member.split for member in group}) < len(group)]
    if within:
        lines = [" = ".join(map(_line, group)) for group in within]
        yield Finding(WARNING, f"repeated within a split: {_images(len(within), 'picture')}", tuple(lines))
    for split, names in found.missing_classes.items():
        yield Finding(WARNING, f"split {split} has no image of: {', '.join(names)}")
    if found.blank:
        yield Finding(WARNING, f"{_images(len(found.blank))} of one gray level", tuple(map(_line, found.blank)))
    if found.ungrouped:
        yield Finding(WARNING, f"{_images(found.ungrouped)} without a patient, although the source names patients")
    if found.gray:
        yield Finding(NOTE, f"{_images(found.gray)} of this colour dataset are gray")
    for one in found.info.findings:
        if one.severity != "leak":  # those the pixels and patients have shown
            yield Finding(NOTE if one.severity == "note" else WARNING, one.text, one.examples)
    for issue in () if found.info.findings else found.info.traps:
        yield Finding(WARNING, f"known issue: {issue}")


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
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    console.print()
    if paths:
        console.print("written: " + ", ".join(map(str, paths)), markup=False, highlight=False, soft_wrap=True)
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
    for finding in findings(found):
        line = Text.assemble((finding.state.rjust(7), _STYLES[finding.state]), "  ", finding.text)
        console.print(_hanging(line))
        for example in finding.examples[:SHOWN]:
            console.print(_hanging(Text(example, style="dim"), 11))
        if len(finding.examples) > SHOWN:
            console.print(_hanging(Text(f"and {len(finding.examples) - SHOWN:,} more", style="dim"), 11))


def _hanging(text: Text, indent: int = 0) -> Table:
    """Wrap with every line under the first."""
    grid = Table.grid(padding=0)
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    mark = text[:9] if not indent else Text(" " * indent)
    grid.add_row(mark, text[9:] if not indent else text)
    return grid


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


def as_json(found: Inspection) -> dict[str, Any]:
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
        "unreadable": [{"name": member.name, "split": member.split, "why": why} for member, why in found.unreadable],
        "same_across_splits": [[member._asdict() for member in group] for group in found.leaking],
        "same": [[member._asdict() for member in group] for group in found.same],
        "near": [
            {"first": p.first._asdict(), "second": p.second._asdict(), "bits": p.bits, "correlation": p.correlation}
            for p in found.near
        ],
        "patients": found.patients,
        "shared_patients": {f"{one}-{two}": names for (one, two), names in found.shared_patients.items()},
        "images_without_patient": found.ungrouped,
        "blank": [member._asdict() for member in found.blank],
        "gray": found.gray,
        "missing_classes": found.missing_classes,
        "traps": list(info.traps),
        "findings": [{"state": f.state, "text": f.text, "examples": len(f.examples)} for f in findings(found)],
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
        rows.writerow(("state", "finding", "example"))
        rows.writerows((f.state, f.text, example) for f in findings(found) for example in f.examples or ("",))
    return [sheet, data, table]
