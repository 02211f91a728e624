"""Draw the figures of a run with matplotlib: colours that colour-blind readers tell apart, names beside the data."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# As in assets/report.css (light) and assets/core.js; a family has a marker and dashes too, never a colour alone.
COLOURS = ("#2143e2", "#952000", "#006a4c", "#c45eae", "#809a00", "#498ef5", "#312251")
MARKERS = ("o", "s", "^", "D", "X", "v", "P")
DASHES: tuple[object, ...] = ("-", (0, (7, 3)), (0, (2, 2)), (0, (9, 3, 2, 3)), (0, (5, 2, 1, 2)), (0, (12, 3)), "--")
SOFT, GRID = "#565f6b", "#e3e6eb"
DPI = 150
MAX_CLASS = 14  # characters of a class name at a confusion matrix
_PLAIN = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4}  # behind a name that lies on a line
_STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.edgecolor": SOFT, "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "axes.grid": True, "grid.color": GRID, "text.usetex": False,
    "text.parse_math": False, "svg.hashsalt": "medbench", "svg.fonttype": "path", "figure.facecolor": "white",
    "axes.titlesize": 10, "xtick.color": SOFT, "ytick.color": SOFT, "lines.linewidth": 1.4,
}  # fmt: skip


class Axis(NamedTuple):
    """An axis: its title with the unit, its scale, and whether numbers between whole ones have no meaning."""

    title: str
    logarithmic: bool = False
    ticks: tuple[float, ...] = ()
    whole: bool = False


class Point(NamedTuple):
    """One model; ``number`` is its family's."""

    x: float
    y: float
    label: str
    number: int
    low: float | None = None
    high: float | None = None


class Curve(NamedTuple):
    """One line; without a label it is named by another of its model."""

    label: str
    number: int
    points: tuple[tuple[float, float], ...]


class Rank(NamedTuple):
    """A model's rank, the range it can have, and its tie groups as letters."""

    label: str
    number: int
    x: float
    low: float
    high: float
    groups: str


Panel = tuple[str, Callable[["Axes"], None]]  # its title, and what draws it
Seeds = Sequence[Sequence[Sequence[float]]]  # of each seed its bins: confidence, share that is right, number


def render(draw: Callable[[Figure], None]) -> dict[str, bytes]:
    """Draw a figure; return its files by suffix, ``png`` and ``svg``. Equal figures give equal bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in any script still gets drawn
        canvas = Figure(layout="constrained")
        FigureCanvasAgg(canvas)
        draw(canvas)
        png, svg = io.BytesIO(), io.BytesIO()
        canvas.savefig(png, format="png", dpi=DPI, metadata={"Software": None})
        canvas.set_layout_engine("none")  # it stays where it is: finding the layout takes half of the time
        canvas.savefig(svg, format="svg", metadata={"Date": None, "Creator": "medbench"})
    return {"png": png.getvalue(), "svg": svg.getvalue()}


def _set_up(axes: Axes, x: Axis, y: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    for axis, which, scale in ((x, axes.xaxis, axes.set_xscale), (y, axes.yaxis, axes.set_yscale)):
        if axis.logarithmic:
            scale("log")
            which.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
            which.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
            which.set_minor_formatter(NullFormatter())
            which.set_minor_locator(NullLocator())
        if axis.whole:
            which.set_major_locator(MaxNLocator(integer=True))
        if axis.ticks:
            which.set_ticks(list(axis.ticks))
    axes.set_xlabel(x.title)
    axes.set_ylabel(y.title)


def scatter(
    canvas: Figure, *, title: str, note: str, x: Axis, y: Axis, points: Sequence[Point], front: Sequence[int]
) -> None:
    """Points with the front (indices)."""
    canvas.set_size_inches(7.2, 4.8)
    axes = canvas.subplots()
    _set_up(axes, x, y)
    if len(front) > 1:
        edge = [points[i] for i in front]
        falling = edge[-1].y < edge[0].y
        axes.step([p.x for p in edge], [p.y for p in edge], where="pre" if falling else "post", color=SOFT,
                  linestyle="--", linewidth=1.2, zorder=1)  # fmt: skip
    for p in points:
        colour = COLOURS[p.number % len(COLOURS)]
        if p.low is not None and p.high is not None:
            axes.plot([p.x, p.x], [p.low, p.high], color=colour, alpha=0.4, linewidth=1.2, zorder=2)
        axes.plot(p.x, p.y, MARKERS[p.number % len(MARKERS)], color=colour, markersize=7, zorder=3)
    axes.margins(0.1, 0.08)
    axes.set_title(title, loc="left")
    _note(canvas, note)
    _label_points(canvas, axes, points)


def _note(canvas: Figure, text: str) -> None:
    lines = textwrap.fill(text, int(15.5 * canvas.get_size_inches()[0]))
    canvas.supxlabel(lines, fontsize=7, color=SOFT, x=0.01, ha="left")


def _label_points(canvas: Figure, axes: Axes, points: Sequence[Point]) -> None:
    """Names beside points, where they cover neither a point nor another name; the rest stay unnamed."""
    canvas.draw_without_rendering()  # the layout decides where the points are
    centres = axes.transData.transform([(p.x, p.y) for p in points])
    scale = canvas.dpi / 72
    taken = [(x - 5 * scale, y - 5 * scale, x + 5 * scale, y + 5 * scale) for x, y in centres]
    box = axes.get_window_extent()
    for i, (p, (x, y)) in enumerate(zip(points, centres, strict=True)):
        wide, tall = 4.6 * len(p.label) * scale, 8 * scale
        for dx, dy in ((7, -3), (-7, -3), (0, 8), (0, -15), (6, 6), (6, -13), (-6, 6), (-6, -13)):
            left = x + dx * scale - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
            area = (left, y + dy * scale, left + wide, y + dy * scale + tall)
            if area[0] < box.x0 or area[2] > box.x1 + 8 * scale or area[1] < box.y0 or area[3] > box.y1 + tall:
                continue
            if any(_meet(area, other) for j, other in enumerate(taken) if j != i):
                continue
            taken.append(area)
            side = "right" if dx < 0 else "center" if dx == 0 else "left"
            axes.annotate(p.label, (p.x, p.y), (dx, dy), textcoords="offset points", fontsize=7.5, ha=side,
                          annotation_clip=False, bbox=_PLAIN)  # fmt: skip
            break


def _meet(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def lines(
    canvas: Figure, *, title: str, note: str, axes: Sequence[tuple[Axis, Axis]], panels: Sequence[Sequence[Curve]]
) -> None:
    """Panels of lines side by side."""
    names = max(sum(bool(curve.label) for curve in panel) for panel in panels)
    canvas.set_size_inches(1.2 + 6.2 * len(panels), max(4.2, min(10.0, 1.2 + 0.15 * names)))
    canvas.suptitle(title, x=0.01, ha="left", fontsize=10)
    _note(canvas, note)
    several = canvas.subplots(1, len(panels), squeeze=False)[0]
    for ax, (x, y), panel in zip(several, axes, panels, strict=True):
        _set_up(ax, x, y)
        for curve in panel:
            xs, ys = zip(*curve.points, strict=True)
            n = curve.number
            dots = {"marker": MARKERS[n % len(MARKERS)], "markersize": 4} if len(xs) <= 12 else {}
            ax.plot(xs, ys, color=COLOURS[n % len(COLOURS)], linestyle=DASHES[n % len(DASHES)], **dots)
    canvas.draw_without_rendering()
    for ax, panel in zip(several, panels, strict=True):
        _label_ends(ax, [curve for curve in panel if curve.label])


def _label_ends(axes: Axes, curves: Sequence[Curve]) -> None:
    """Names at the right of the axes, at the height of the lines' ends, moved apart where they would touch."""
    low, high = axes.get_window_extent().y0, axes.get_window_extent().y1
    heights = {id(c): float(axes.transData.transform(c.points[-1])[1]) for c in curves}
    order = sorted(curves, key=lambda c: heights[id(c)])
    gap = min(8.5 * axes.figure.dpi / 72, (high - low) / max(len(order) - 1, 1))
    ys = [heights[id(c)] for c in order]
    for i in range(1, len(ys)):
        ys[i] = max(ys[i], ys[i - 1] + gap)
    ceiling = high
    for i in reversed(range(len(ys))):
        ys[i] = min(ys[i], ceiling)
        ceiling = ys[i] - gap
    for curve, y in zip(order, ys, strict=True):
        colour = COLOURS[curve.number % len(COLOURS)]
        arrow = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5, "relpos": (0, 0.5)}
        axes.annotate(
            curve.label, curve.points[-1], (1.03, (y - low) / (high - low)), textcoords="axes fraction", fontsize=7,
            va="center", arrowprops=arrow,
        )  # fmt: skip


def bars(canvas: Figure, *, title: str, note: str, axis: str, ranks: Sequence[Rank]) -> None:
    """Ranks, one line per model, the best on top."""
    from matplotlib.ticker import MaxNLocator

    canvas.set_size_inches(7.2, 1.3 + 0.21 * len(ranks))
    axes = canvas.subplots()
    for y, bar in enumerate(ranks):
        colour = COLOURS[bar.number % len(COLOURS)]
        axes.plot([bar.low, bar.high], [y, y], color=colour, alpha=0.5, linewidth=3, solid_capstyle="butt")
        axes.plot(bar.x, y, MARKERS[bar.number % len(MARKERS)], color=colour, markersize=6)
        axes.annotate(bar.groups, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=8)
    axes.set_yticks(range(len(ranks)), [bar.label for bar in ranks], fontsize=8)
    axes.set_ylim(len(ranks) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{axis} (letters: tie groups)")
    axes.set_title(title, loc="left")
    _note(canvas, note)


def grid(canvas: Figure, *, title: str, panels: Sequence[Panel], note: str = "") -> None:
    """Small panels in rows."""
    across = min(4, len(panels))
    down = ceil(len(panels) / across)
    canvas.set_size_inches(max(2.5 * across, 4.5), 2.6 * down + 0.4)
    canvas.suptitle(title, x=0.01, ha="left", fontsize=10)
    _note(canvas, note)
    several = canvas.subplots(down, across, squeeze=False).ravel()
    for axes, (name, draw) in zip(several, panels, strict=False):
        axes.set_title(name, fontsize=7)
        draw(axes)
    for axes in several[len(panels) :]:
        axes.set_visible(False)


def confusion(axes: Axes, *, counts: list[list[int]], classes: Sequence[str] = ()) -> None:
    """A confusion matrix, truth by row; without ``classes`` they are numbered."""
    share = [[n / max(sum(line), 1) for n in line] for line in counts]
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.grid(False)
    size = range(len(counts))
    names = [name if len(name) <= MAX_CLASS else f"{name[: MAX_CLASS - 1]}…" for name in classes or map(str, size)]
    small = 6 if len(counts) < 8 else 4
    long = max(map(len, names)) > 3
    axes.set_xticks(list(size), names, fontsize=small, rotation=30 if long else 0, ha="right" if long else "center")
    axes.set_yticks(list(size), names, fontsize=small)
    axes.set_xlabel("predicted", fontsize=8)
    axes.set_ylabel("true", fontsize=8)
    for i in size:
        for j in size:
            axes.text(j, i, str(counts[i][j]), ha="center", va="center", fontsize=8 if len(counts) < 6 else 5,
                      color="white" if share[i][j] > 0.55 else "#1b1f24")  # fmt: skip


def reliability(axes: Axes, *, bins: Seeds, scaled: Seeds, number: int) -> None:
    """Reliability curves: the bins of each seed, before and after temperature scaling."""
    axes.plot([0, 1], [0, 1], color=SOFT, linestyle="--", linewidth=1)
    colour = COLOURS[number % len(COLOURS)]
    for own in bins:
        axes.plot([b[0] for b in own], [b[1] for b in own], color=colour, marker="o", markersize=3)
    for own in scaled:
        axes.plot([b[0] for b in own], [b[1] for b in own], ":", color=colour, linewidth=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_aspect("equal")
    axes.set_xlabel("confidence", fontsize=8)
    axes.set_ylabel("share correct", fontsize=8)
