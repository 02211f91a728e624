"""A :class:`bench.measure.profile.Profile` for people: two tables and a flame-style picture."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measure.profile import Call, Profile, Row

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


def print_tables(profile: Profile, console: Any = None, operators: int = 15) -> None:
    """Print what was profiled, the table by stage and the ``operators`` longest operators."""
    from rich.console import Console

    console = console or Console()
    threads = f", {profile.threads} thread{'s' * (profile.threads != 1)}" if profile.device == "cpu" else ""
    layout = ", channels last" if profile.channels_last else ""
    console.print(
        f"{profile.model} at {profile.resolution} px, batch {profile.batch}, fp32{layout}, {profile.device}{threads}: "
        f"{1e3 * profile.step_s:.4g} ms a step; under the profiler {profile.outside:.0%} of the time "
        "was outside operators (Python, launches, waiting, the profiler itself)",
        highlight=False,
    )
    stages, by_operator = profile.by_stage(), profile.by_operator()
    console.print(_table("by stage", "stage", stages))
    console.print(_table("by operator", "operator", _with_rest(by_operator, operators)))


def _with_rest(rows: list[Row], most: int) -> list[Row]:
    head, rest = rows[:most], rows[most:]
    if not rest:
        return head
    names = ("calls", "seconds", "share", "macs", "traffic")
    sums = {name: sum(getattr(row, name) for row in rest) for name in names}
    return [*head, Row(name=f"{len(rest)} more", **sums)]


def _table(title: str, first: str, rows: list[Row]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=True)
    for name in ("calls", "ms", "share", "GMACs", "MiB", "GMACs/s", "GB/s"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.name.removeprefix("aten::"), str(row.calls), f"{1e3 * row.seconds:.3f}", f"{row.share:.1%}",
            f"{row.macs / 1e9:.4f}" if row.macs else "", f"{row.traffic / 2**20:.1f}" if row.traffic else "",
            f"{row.gmacs_per_s:.1f}" if row.macs else "", f"{row.gb_per_s:.1f}" if row.traffic else "",
        )  # fmt: skip
    table.caption = "MiB: each operator reads its inputs and writes its outputs once"
    return table


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
    """Nest the calls by module, in the order of the forward pass: time from left to right."""
    root = Box(profile.model, 0.0)
    at = 0.0
    for call in profile.calls:
        node = root
        node.seconds += call.seconds
        for part in re.findall(r"[^.]+(?:\.\d+)*", call.path):  # a list and its number are one part
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
        xlim=(0, 1e3 * root.seconds), ylim=(rows, 0), yticks=[], xlabel="ms in operators, in the order of the pass"
    )
    axes.spines[["left", "right", "top"]].set_visible(False)
    axes.set_title(
        f"{profile.model} at {profile.resolution} px, batch {profile.batch}, fp32, {profile.device}: "
        f"{1e3 * profile.step_s:.4g} ms a step",
        loc="left",
    )
    used = {call.category for call in profile.calls}
    handles = [Patch(color=colour, label=name) for name, colour in COLOURS.items() if name in used]
    figure.legend(handles=handles, loc="outside lower right", ncols=len(handles), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _rows_below(box: Box) -> int:
    return 1 + max((_rows_below(inner) for inner in box.inside), default=0)


def _draw_box(axes: Any, box: Box, depth: int, width_ms: float) -> None:
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
