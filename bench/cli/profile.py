"""``bench profile``: its options, two tables and a flame-style picture."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from bench.cli import flags
from bench.machine.compiler import why_not_compiled
from bench.measure.profile.passes import Call
from bench.measure.profile.profile import CallGroup, Profile, profile_model
from bench.report.blocks import Column, Section, tabled
from bench.report.write.render import terminal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

COLOURS = {
    "convolution": "#4477aa",
    "matrix product": "#66ccee",
    "attention": "#aa3377",
    "scan": "#ee6677",
    "norm": "#ccbb44",
    "elementwise": "#228833",
    "data movement": "#bbbbbb",
}
SMALLEST_SHARE = 0.001  # of the picture's width: narrower boxes are not drawn


def _name(row: CallGroup) -> str:
    return row.name.removeprefix("aten::")


# A heading (with how soon it goes where the terminal is narrow) and how a row fills it.
_COLUMNS: tuple[tuple[Column, Callable[[CallGroup], str]], ...] = (
    (Column("calls", drop=5), lambda row: str(row.calls)),
    (Column("ms"), lambda row: f"{1e3 * row.seconds:.3f}"),
    (Column("share"), lambda row: f"{row.share:.1%}"),
    (Column("GMACs", drop=2), lambda row: f"{row.macs / 1e9:.4f}" if row.macs else ""),
    (Column("MiB", drop=3), lambda row: f"{row.traffic / 2**20:.1f}" if row.traffic else ""),
    (Column("GMACs/s", drop=2), lambda row: f"{row.gmacs_per_s:.1f}" if row.macs else ""),
    (Column("GB/s", drop=3), lambda row: f"{row.gb_per_s:.1f}" if row.traffic else ""),
    (Column("of roof", drop=1), lambda row: f"{row.of_roof:.0%}" if row.of_roof is not None else ""),
)


def refusal(options: argparse.Namespace) -> str | None:
    """Why these options of the command line cannot be; None where they can."""
    if options.precision == "tf32" and options.device == "cpu":
        return "--precision tf32: tf32 is a mode of CUDA devices; fp32 and bf16 run on the CPU"
    if options.train and options.batch == 1:
        return "--train --batch 1: batch norm cannot be trained on one image; take --batch 2 or more"
    if options.compile and (reason := why_not_compiled(options.device)):
        return f"--compile: {reason}"
    return None


def main(options: argparse.Namespace) -> int:
    """Run the command with its parsed options; return its exit status."""
    if reason := refusal(options):
        print(f"bench: {reason}", file=sys.stderr)
        return 2
    found = profile_model(
        options.model, options.resolution, options.batch or (8 if options.train else 1), options.device, options.trace,
        precision=options.precision, train=options.train, compiled=options.compile, threads=options.threads,
        ceilings=True,
    )  # fmt: skip
    if options.json:
        print(json.dumps(found.to_json(), indent=1))
    else:
        print_tables(found, flags.console())
    if found.busy:
        print(f"bench: unreliable profile, the machine was busy: {found.busy}. Run it again.", file=sys.stderr)
    if options.picture:
        draw(found, options.picture)
    for path in filter(None, (options.picture, options.trace)):
        print(f"written: {path}", file=sys.stderr)
    return 0


def heading(profile: Profile) -> str:
    """What was profiled and the figures of the whole step."""
    threads = f", {profile.threads} thread{'s' * (profile.threads != 1)}" if profile.device == "cpu" else ""
    layout = ", channels last" if profile.channels_last else ""
    mode = ", training step" if profile.mode == "train" else ""
    return (
        f"{profile.model} at {profile.resolution} px, batch {profile.batch}, {profile.precision}{layout}{mode}, "
        f"{profile.device}{threads}: {1e3 * profile.step_s:.4g} ms a step"
    )


def print_tables(profile: Profile, console: Console, operators: int = 15) -> None:
    """Print what was profiled, the table by stage and the ``operators`` longest operators."""
    lines = [
        f"{heading(profile)}; under the profiler {profile.outside:.0%} of the time was outside operators (Python, "
        "launches, waiting, the profiler itself)"
    ]
    if profile.compiled_step_s is not None:
        speed = profile.step_s / profile.compiled_step_s
        lines.append(f"compiled: {1e3 * profile.compiled_step_s:.4g} ms a step, {speed:.2f} times as fast")
    if profile.ceilings and profile.mfu is not None:
        lines.append(
            f"measured ceilings: {profile.ceilings.gflops_per_s[profile.precision]:.0f} GFLOP/s (2 a MAC), "
            f"{profile.ceilings.copy_gb_per_s:.1f} GB/s of a copy; MFU of the step {profile.mfu:.0%}"
        )
    for line in lines:
        console.print(line, highlight=False)
    for what, rows in (("stage", profile.by_stage()), ("operator", _with_rest(profile.by_operator(), operators))):
        table = tabled(((Column(what, left=True, code=True), _name), *_COLUMNS), rows)
        terminal([Section(f"by {what}", [table])], console)
    roof = "; of roof: the least time the ceilings allow over the time taken, above 100% where caches helped"
    console.print(
        f"MiB: each operator reads its inputs and writes its outputs once{roof if profile.ceilings else ''}",
        style="dim", highlight=False,
    )  # fmt: skip


def _with_rest(rows: list[CallGroup], most: int) -> list[CallGroup]:
    head, rest = rows[:most], rows[most:]
    if not rest:
        return head
    names = ("calls", "seconds", "share", "macs", "traffic")
    sums = {name: sum(getattr(row, name) for row in rest) for name in names}
    least = sum((row.of_roof or 0.0) * row.seconds for row in rest)
    of_roof = least / sums["seconds"] if rest[0].of_roof is not None and sums["seconds"] else None
    return [*head, CallGroup(name=f"{len(rest)} more", of_roof=of_roof, **sums)]


# ---- the picture -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Box:
    """A module or, at the leaves, an operator; ``start`` and ``seconds`` along the axis of time."""

    name: str
    start: float
    seconds: float = 0.0
    call: Call | None = None
    inside: list[Box] = field(default_factory=list)


def boxes(profile: Profile) -> Box:
    """Nest the calls by module, in the order of the step: time from left to right; what is not forward by its phase."""
    root = Box(profile.model, 0.0)
    at = 0.0
    for call in profile.calls:
        node = root
        node.seconds += call.seconds
        parts = re.findall(r"[^.]+(?:\.\d+)*", call.path)  # a list and its number are one part
        for part in parts if call.phase == "forward" else (call.phase, *parts):
            if not (node.inside and node.inside[-1].name == part and node.inside[-1].call is None):
                node.inside.append(Box(part, at))
            node = node.inside[-1]
            node.seconds += call.seconds
        node.inside.append(Box(call.operator.partition("::")[2], at, call.seconds, call))
        at += call.seconds
    return root


def draw(profile: Profile, path: Path) -> None:
    """Write the picture: modules hang below the modules they are part of, operators in colour at the bottom.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError("the picture needs matplotlib: pip install matplotlib") from error

    root = boxes(profile)
    rows = _rows_below(root)
    figure = Figure(figsize=(15, 1.6 + 0.42 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_box(axes, root, 0, 1e3 * root.seconds)
    axes.set(
        xlim=(0, 1e3 * root.seconds), ylim=(rows, 0), yticks=[], xlabel="ms in operators, in the order of the step"
    )
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_title(heading(profile), loc="left")
    used = {call.category for call in profile.calls}
    handles = [Patch(color=colour, label=name) for name, colour in COLOURS.items() if name in used]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _rows_below(box: Box) -> int:
    return 1 + max((_rows_below(inner) for inner in box.inside), default=0)


def _draw_box(axes: Axes, box: Box, depth: int, width_ms: float) -> None:
    left, width = 1e3 * box.start, 1e3 * box.seconds
    if width < SMALLEST_SHARE * width_ms:
        return
    colour = COLOURS[box.call.category] if box.call else ("#e8e8e8", "#dcdcdc")[depth % 2]
    axes.barh(depth + 0.5, width, 0.94, left, color=colour, edgecolor="white", linewidth=0.6)
    letters = int(95 * 1.75 * width / width_ms)
    if letters >= 3:
        name = box.name if len(box.name) <= letters else box.name[: letters - 1] + "…"
        axes.text(left + width / 2, depth + 0.5, name, ha="center", va="center", fontsize=7, clip_on=True)
    for inner in box.inside:
        _draw_box(axes, inner, depth + 1, width_ms)
